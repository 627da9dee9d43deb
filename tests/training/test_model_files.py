"""The trained model's folder: new weights of every module, under the names of init."""

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from configs.schema.init import BaseConfig
from configs.schema.training import AdapterConfig, SideConfig
from merging.compatibility import require_compatible, write_model
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder
from pipeline.core.packed import use_packed
from pipeline.core.safetensors_io import weight_files
from tests.support.small_bases import tiny_base, tiny_model
from tests.support.zoo import OF_QWEN, TEXTS, animal
from training.bases.hub import make_from_hub
from training.model_files import choose_attention, encoder_of, load_model, merge_adapter, save_model
from training.vocabulary.shrinking import copy_base, shrink
from training.vocabulary.tokenizer_file import TokenizerFile

SIDE = SideConfig(anchor_length=32, positive_length=32)


def trained(init: Path, folder: Path) -> Path:
    """The model with noise on all trained weights."""
    model = load_model(init, "auto", SIDE)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    save_model(model, init, folder)
    np.testing.assert_allclose(load_folder(folder, "cpu").encode(TEXTS), model.encode(TEXTS), atol=1e-6)
    return folder


def test_a_module_after_the_transformer_is_saved_with_its_trained_weights(tmp_path: Path) -> None:
    init = animal("Dense")
    folder = trained(init, tmp_path / "side")
    before, after = (load_file(each / "2_Dense/model.safetensors") for each in (init, folder))
    assert before.keys() == after.keys() and not any(before[name].equal(after[name]) for name in before)
    names = [{path.relative_to(each) for path in each.rglob("*")} for each in (init, folder)]
    assert names[0] == names[1]
    require_compatible({"init": init, "symmetric": folder})


def test_the_side_of_a_base_in_16_bit_is_loaded_in_32(tmp_path: Path) -> None:
    init = tiny_model(tmp_path / "init")
    config = json.loads((init / "config.json").read_text()) | {"dtype": "float16"}
    (init / "config.json").write_text(json.dumps(config))
    folder = trained(init, tmp_path / "side")
    assert AutoModel.from_pretrained(folder).dtype == torch.float32
    assert json.loads((folder / "config.json").read_text()) == config | {"dtype": "float32"}


def test_the_shards_of_init_are_not_kept_next_to_the_trained_weights(tmp_path: Path) -> None:
    init = tiny_model(tmp_path / "init")
    encoder = AutoModel.from_pretrained(init)
    (init / "model.safetensors").unlink()
    encoder.save_pretrained(init, max_shard_size="30KB")
    assert len(weight_files(init)) > 1
    assert {path.name for path in trained(init, tmp_path / "side").glob("*.safetensors*")} == {"model.safetensors"}


def test_an_adapter_is_saved_as_full_weights(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    init, adapter = tiny_base(), AdapterConfig(rank=3, alpha=6, targets=["query", "dense"])
    model = load_model(init, "auto", dataclasses.replace(SIDE, adapter=adapter))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == ("lora_" in name) and not ("lora_" in name and "pooler" in name)
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    query = model[0].model.encoder.layer[0].attention.self.query
    product = 2 * query.lora_B["default"].weight @ query.lora_A["default"].weight
    expected = model.encode(TEXTS)
    merge_adapter(encoder_of(model))
    save_model(model, init, tmp_path / "side")
    np.testing.assert_allclose(load_folder(tmp_path / "side", "cpu").encode(TEXTS), expected, atol=1e-6)
    before, after = (load_file(folder / "model.safetensors") for folder in (init, tmp_path / "side"))
    name = "encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(after[name], before[name] + product.detach(), atol=1e-6, rtol=0)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert {name.rpartition(".")[2] for name in moved} == {"weight"} and len(moved) == 2 * 4
    require_compatible({"init": init, "symmetric": tmp_path / "side"})


def test_an_adapter_s_input_stays_in_16_bit_with_the_same_output() -> None:
    pytest.importorskip("peft")
    seen: list[torch.dtype] = []
    side = dataclasses.replace(SIDE, adapter=AdapterConfig(rank=3, targets=["query", "dense"]))
    model, embeddings = load_model(tiny_base(), "sdpa", side), []
    adapted = [module for module in model.modules() if hasattr(module, "cast_input_dtype_enabled")]
    for module in adapted:
        cast(Any, module).lora_A["default"].register_forward_hook(lambda _, given, out: seen.append(given[0].dtype))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in filter(lambda each: each.requires_grad, model.parameters()):
            parameter += 0.05 * torch.randn_like(parameter)
    for by_peft in (False, True):
        for module in adapted if by_peft else ():
            cast(Any, module).cast_input_dtype_enabled = True  # as it is by default
        with torch.autocast("cpu", torch.bfloat16):
            features = model.tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
            embeddings.append(model(dict(features))["sentence_embedding"])
    assert torch.equal(*embeddings)
    ours, theirs = seen[: len(adapted)], seen[len(adapted) :]
    assert set(theirs) == {torch.float32} and torch.bfloat16 in ours


OTHERS = ["BERT with word pieces", "ModernBERT", "DistilBERT", "ALBERT", "T5", "Qwen3"]


@pytest.mark.parametrize("name", ["masked language model", *OTHERS])
def test_a_model_of_any_family_goes_from_base_to_merge(name: str, tmp_path: Path) -> None:
    base, init, side, merged = (tmp_path / name for name in ("base", "init", "side", "merged"))
    config = BaseConfig(kind="hub", hub=str(animal(name)), max_length=64, **(OF_QWEN if name == "Qwen3" else {}))
    for folder in (base, init):
        folder.mkdir()
    make_from_hub(config, base, None)
    if name == "masked language model":
        tokenizer = TokenizerFile.read(base / "tokenizer.json")
        shrink(base, init, tokenizer, kept=np.array([*range(600), tokenizer.size - 1]))
    else:
        copy_base(base, init)
    trained(init, side)
    names = load_file(init / "model.safetensors").keys()
    assert load_file(side / "model.safetensors").keys() == names
    assert any("pooler" in tensor for tensor in names) == (name in ("BERT with word pieces", "ALBERT"))
    models = {"init": init, "symmetric": side}
    require_compatible(models)
    write_model(models, {"init": 0.5, "symmetric": 0.5}, merged, "float32")
    assert np.isfinite(load_folder(merged, "cpu").encode(TEXTS)).all()


def test_hidden_states_are_converted_once_per_layer_and_embeddings_stay_equal() -> None:
    embeddings, kept, gradients = [], [], []
    plain, trains = load_folder(tiny_base(), "cpu"), load_model(tiny_base(), "sdpa", SIDE)
    cast(Any, encoder_of(plain)).pooler.requires_grad_(False)  # as in load_model
    for model in (plain, trains):
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, torch.UntypedStorage] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        features = model.tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saved, torch.autocast("cpu", torch.bfloat16):
            embeddings.append(model(dict(features))["sentence_embedding"])
        kept.append(sum(storage.nbytes() for storage in storages.values()))
        embeddings[-1].float().square().sum().backward()
        weights = [weight for name, weight in encoder_of(model).named_parameters() if "pooler" not in name]
        gradients.append(torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None]))
    config = encoder_of(plain).config
    assert torch.equal(*embeddings)
    copy = 2 * features["input_ids"].numel() * config.hidden_size * config.num_hidden_layers
    assert kept[0] - kept[1] == 2 * copy
    assert 0 < (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()


def test_packed_attention_in_32_bit_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(tiny_base(), "auto", SIDE)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    with pytest.raises(UserError) as error:
        choose_attention(model, BaseConfig(attention="torch_varlen"), half=False, dropout=0.0)
    assert error.value.line == (
        "error: torch_varlen needs precision bf16 or fp16 (config key base.attention); use base.attention=auto"
    )


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed")
def test_compilation_without_its_backend_is_refused_in_one_line() -> None:
    model = load_model(tiny_base(), "auto", SIDE)
    use_packed(model)
    with pytest.raises(UserError) as error:
        choose_attention(model, BaseConfig(attention="sdpa", compile=True), half=True, dropout=0.0)
    assert error.value.line == (
        "error: compilation needs the package triton (config key base.compile); use base.compile=false"
    )


@pytest.mark.parametrize("name", ["ModernBERT", "ALBERT", "T5"])  # the latter's base has dropout
def test_a_sides_dropout_is_that_of_attention_too(name: str) -> None:
    loaded: Any = load_model(animal(name), "auto", dataclasses.replace(SIDE, dropout=0.2))
    values = [each for module in loaded.modules() for each in vars(module).items()]
    found = [value for key, value in values if key == "p" or ("dropout" in key and isinstance(value, float))]
    assert found and set(found) == {0.2}
    model = load_model(animal(name), "auto", SIDE).train()
    once, again = (model(dict(model.preprocess(TEXTS[1:2])))["sentence_embedding"] for _ in range(2))
    assert torch.equal(once, again)

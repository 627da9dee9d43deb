"""The in-memory blend against the written merge."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.blend import Blend, floating
from merging.compatibility import write_model
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder as load
from tests.reliability.faults import number_at
from tests.support.runs import put

WEIGHTS = {"init": -0.1, "symmetric": 0.6, "asymmetric": 0.5}


def test_a_blend_is_the_model_that_would_be_written(models: dict[str, Path], tmp_path: Path) -> None:
    blend = Blend(models)
    blend.set(WEIGHTS)
    write_model(models, WEIGHTS, tmp_path / "merged", "float32")
    written = floating(load(tmp_path / "merged"))
    assert blend.working.keys() == written.keys()
    assert all(torch.allclose(blend.working[name], written[name], atol=2e-7, rtol=0) for name in written)


def test_a_single_weight_of_1_returns_the_model_itself(models: dict[str, Path]) -> None:
    blend = Blend(models)
    for name, folder in models.items():
        blend.set({other: float(other == name) for other in models})
        theirs = floating(load(folder))
        assert all(blend.working[key].equal(theirs[key]) for key in theirs)


def test_blends_do_not_depend_on_those_before(models: dict[str, Path]) -> None:
    blend, base = Blend(models), floating(load(models["init"]))
    blend.set(WEIGHTS)
    blend.set_state({name: torch.zeros_like(tensor) for name, tensor in base.items()})
    blend.set({"init": 1.0, "symmetric": 0.0, "asymmetric": 0.0})
    assert all(blend.working[name].equal(base[name]) for name in base)


def test_tensors_that_training_left_unchanged_take_no_memory(copies: dict[str, Path]) -> None:
    path, name = copies["symmetric"] / "model.safetensors", "pooler.dense.weight"
    tensors = load_file(path) | {name: load_file(copies["init"] / "model.safetensors")[name]}
    save_file(tensors, path, metadata={"format": "pt"})
    vectors = Blend(copies).changed
    assert not any(key.endswith(name) for key in vectors["symmetric"])
    assert any(key.endswith(name) for key in vectors["asymmetric"])


def test_half_precision_models_are_blended_in_float32(models: dict[str, Path], tmp_path: Path) -> None:
    half = Path(shutil.copytree(models["symmetric"], tmp_path / "half"))
    tensors = load_file(half / "model.safetensors")
    save_file({key: value.bfloat16() for key, value in tensors.items()}, half / "model.safetensors", {"format": "pt"})
    blend = Blend({"init": models["init"], "half": half})
    blend.set({"init": 0.5, "half": 0.5})
    assert all(tensor.dtype == torch.float32 for tensor in blend.working.values())
    name = next(key for key in blend.working if key.endswith("word_embeddings.weight"))
    base = load_file(models["init"] / "model.safetensors")["embeddings.word_embeddings.weight"]
    rounded = tensors["embeddings.word_embeddings.weight"].bfloat16().float()
    torch.testing.assert_close(blend.working[name], (base + rounded) / 2)


def test_a_model_with_nan_is_named(copies: dict[str, Path]) -> None:
    path = copies["asymmetric"] / "model.safetensors"
    put(path, number_at("pooler.dense.bias", float("nan"))(path.read_bytes()))
    with pytest.raises(UserError, match=r"dense.bias holds NaN or infinity .*; make asymmetric again"):
        Blend(copies)


def test_weights_that_do_not_sum_to_one_are_refused(models: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="instead of 1"):
        Blend(models).set({"init": 0.5, "symmetric": 0.5, "asymmetric": 0.5})

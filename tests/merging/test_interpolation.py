"""The streamed sum against the packages it replaces, against float64, and on invalid inputs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from merging import interpolation
from merging.interpolation import interpolate
from pipeline.core.errors import UserError
from pipeline.core.safetensors_io import SafetensorsReader
from tests.merging.conftest import perturb

WEIGHTS = {"init": 0.25, "symmetric": 0.35, "asymmetric": 0.4}
BASE = {"init": 1.0, "symmetric": 0.0, "asymmetric": 0.0}


def merged(models: dict[str, Path], weights: dict[str, float], folder: Path, dtype: str = "float32") -> dict:
    """The tensors of the streamed merge."""
    folder.mkdir(exist_ok=True)
    interpolate(models, weights, folder, dtype)
    return load_file(folder / "model.safetensors")


def stored(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A folder with these tensors as its checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


def test_equals_lm_cocktail(models: dict[str, Path], tmp_path: Path) -> None:
    from LM_Cocktail import mix_models

    peer = mix_models([str(path) for path in models.values()], "encoder", list(WEIGHTS.values()))
    assert largest_difference(merged(models, WEIGHTS, tmp_path), peer.state_dict()) <= 1e-6


def test_equals_sentence_transformers(models: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("mergekit", reason="the extra 'merge' is not installed")
    from sentence_transformers import SentenceTransformer

    folders, weights = [str(path) for path in models.values()], list(WEIGHTS.values())
    peer = SentenceTransformer.merge(folders, "linear", parameters={"weight": weights}, device="cpu")
    assert largest_difference(merged(models, WEIGHTS, tmp_path), peer[0].model.state_dict()) <= 1e-6


def test_slices_do_not_show(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = merged(models, WEIGHTS, tmp_path / "whole")
    monkeypatch.setattr(interpolation, "SLICE_ITEMS", 37)
    assert largest_difference(merged(models, WEIGHTS, tmp_path / "pieces"), whole) <= 1e-7


@pytest.mark.parametrize("only", list(BASE))
def test_one_model_with_weight_one_is_returned_bit_by_bit(tmp_path: Path, only: str) -> None:
    """The models are so far apart that adding a difference to another one would round."""
    random = torch.Generator().manual_seed(1)
    tensors = {name: torch.randn(99, generator=random) for name in BASE}
    models = {name: stored(tmp_path / name, {"weight": tensor}) for name, tensor in tensors.items()}
    weights = {name: float(name == only) for name in models}
    assert merged(models, weights, tmp_path / "merged")["weight"].equal(tensors[only])


def test_any_mixture_of_equal_models_is_that_model_bit_by_bit(models: dict[str, Path], tmp_path: Path) -> None:
    same = {name: models["init"] for name in ("one", "two", "three")}
    ours = merged(same, {"one": 0.349, "two": 0.335, "three": 0.316}, tmp_path)
    theirs = load_file(models["init"] / "model.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_models_are_summed_in_float32(models: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    """Small task vectors, as from fine-tuning: a sum in bfloat16 would lose a quarter of them."""
    halves = {name: perturb(models["init"], tmp_path / name, seed, 1e-3, dtype) for seed, name in enumerate(WEIGHTS)}
    tensors = {name: load_file(folder / "model.safetensors") for name, folder in halves.items()}
    ours = merged(halves, WEIGHTS, tmp_path / "merged")
    exact = {key: sum(WEIGHTS[name] * tensors[name][key].double() for name in WEIGHTS) for key in tensors["init"]}
    task_vector = {key: exact[key] - tensors["init"][key].double() for key in exact}
    size = torch.cat([vector.flatten() for vector in task_vector.values()]).norm()

    def error(values: dict) -> float:
        return float(torch.cat([(values[key].double() - exact[key]).flatten() for key in exact]).norm() / size)

    in_their_own_dtype = {
        key: sum(torch.tensor(WEIGHTS[name]).to(tensors[name][key].dtype) * tensors[name][key] for name in WEIGHTS)
        for key in exact
    }
    assert error(ours) < 1e-4
    assert error(in_their_own_dtype) > 100 * error(ours)


def test_the_merged_dtype_is_the_nearest_of_the_float32_sum(models: dict[str, Path], tmp_path: Path) -> None:
    wide = merged(models, WEIGHTS, tmp_path / "wide")
    narrow = merged(models, WEIGHTS, tmp_path / "narrow", "bfloat16")
    assert all(narrow[name].equal(wide[name].bfloat16()) for name in wide)


def test_models_of_different_dtypes_are_merged(models: dict[str, Path], tmp_path: Path) -> None:
    mixed = models | {"symmetric": perturb(models["init"], tmp_path / "half", 3, dtype="bfloat16")}
    tensors = {name: load_file(folder / "model.safetensors") for name, folder in mixed.items()}
    ours = merged(mixed, WEIGHTS, tmp_path / "merged")
    for key, tensor in ours.items():
        expected = sum(WEIGHTS[name] * tensors[name][key].double() for name in WEIGHTS)
        assert (tensor - expected).abs().max() < 1e-6


def test_extrapolation_subtracts_the_base(models: dict[str, Path], tmp_path: Path) -> None:
    ours = merged(models, {"init": -0.5, "symmetric": 0.8, "asymmetric": 0.7}, tmp_path)
    base, first, second = (load_file(folder / "model.safetensors") for folder in models.values())
    for key, tensor in ours.items():
        expected = base[key] + 0.8 * (first[key] - base[key]) + 0.7 * (second[key] - base[key])
        assert (tensor - expected).abs().max() < 1e-6


def test_shards_are_read_as_one_model(models: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(models["symmetric"] / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    folder = tmp_path / "sharded"
    folder.mkdir()
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    ours = merged(models | {"symmetric": folder}, WEIGHTS, tmp_path / "merged")
    assert largest_difference(ours, merged(models, WEIGHTS, tmp_path / "whole")) == 0


@pytest.mark.parametrize("shards_too", [True, False])
def test_what_an_earlier_save_in_shards_left_does_not_count(
    shards_too: bool, models: dict[str, Path], copies: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoModel

    folder, tensors = copies["symmetric"], load_file(models["symmetric"] / "model.safetensors")
    if shards_too:
        old = {name: tensor + 1 for name, tensor in tensors.items()}
        save_file(old, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert largest_difference(AutoModel.from_pretrained(folder).state_dict(), tensors) == 0
    ours = merged(copies, WEIGHTS, tmp_path / "merged")
    assert largest_difference(ours, merged(models, WEIGHTS, tmp_path / "whole")) == 0


def test_whole_numbers_are_carried_over_where_they_agree(tmp_path: Path) -> None:
    tensors = {"steps": torch.arange(5), "weight": torch.ones(3)}
    models = {name: stored(tmp_path / name, tensors) for name in WEIGHTS}
    stored(models["symmetric"], tensors | {"steps": torch.arange(5, dtype=torch.int32)})
    assert merged(models, WEIGHTS, tmp_path / "merged")["steps"].equal(torch.arange(5))


@pytest.mark.parametrize("weights", [WEIGHTS, BASE])
def test_whole_numbers_that_differ_have_no_average(tmp_path: Path, weights: dict[str, float]) -> None:
    models = {name: stored(tmp_path / name, {"steps": torch.arange(5) + (name == "init")}) for name in WEIGHTS}
    with pytest.raises(UserError, match="whole-number tensor steps differs between init and symmetric"):
        merged(models, weights, tmp_path / "merged")


def test_a_tensor_under_two_names_is_merged_once_and_keeps_both(tmp_path: Path) -> None:
    """safetensors' save_model stores shared memory once and notes the other name in the metadata."""
    from safetensors.torch import load_model, save_model

    class Tied(torch.nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
            self.two.weight = self.one.weight
            torch.nn.init.constant_(self.one.weight, value)

    values = {"init": 0.0, "symmetric": 1.0, "asymmetric": 3.0}
    models = {}
    for name, value in values.items():
        models[name] = tmp_path / name
        models[name].mkdir()
        save_model(Tied(value), str(models[name] / "model.safetensors"), metadata={"format": "pt"})
    merged(models, WEIGHTS, tmp_path / "merged")
    fresh = Tied(9.0)
    load_model(fresh, tmp_path / "merged/model.safetensors")
    torch.testing.assert_close(fresh.two.weight, torch.full((2, 2), 0.35 + 3 * 0.4))
    with SafetensorsReader(tmp_path / "merged") as file:
        assert file.find("one.weight") == file.find("two.weight") is not None


def test_the_file_is_read_by_the_library_with_metadata_and_alignment(models: dict[str, Path], tmp_path: Path) -> None:
    merged(models, WEIGHTS, tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    header = int.from_bytes((tmp_path / "model.safetensors").read_bytes()[:8], "little")
    assert header % 8 == 0


def test_empty_and_scalar_tensors_survive(tmp_path: Path) -> None:
    tensors = {"empty": torch.empty(0, 4), "scalar": torch.tensor(2.0), "vector": torch.ones(3)}
    models = {name: stored(tmp_path / name, tensors) for name in WEIGHTS}
    ours = merged(models, WEIGHTS, tmp_path / "merged")
    assert ours["empty"].shape == (0, 4)
    assert ours["scalar"].item() == 2.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named_with_model_and_tensor(tmp_path: Path, value: float) -> None:
    models = {name: stored(tmp_path / name, {"fine": torch.ones(4), "bad": torch.ones(4)}) for name in WEIGHTS}
    stored(models["asymmetric"], {"fine": torch.ones(4), "bad": torch.tensor([1, value, 1, 1])})
    with pytest.raises(UserError, match="tensor bad of model asymmetric holds NaN or infinity"):
        merged(models, WEIGHTS, tmp_path / "merged")


def test_large_finite_numbers_are_not_infinity(tmp_path: Path) -> None:
    models = {name: stored(tmp_path / name, {"large": torch.full((4,), 3e38)}) for name in WEIGHTS}
    assert merged(models, WEIGHTS, tmp_path / "merged")["large"].tolist() == pytest.approx([3e38] * 4)


def test_a_sum_beyond_float16_is_refused(tmp_path: Path) -> None:
    models = {name: stored(tmp_path / name, {"large": torch.full((4,), 1e5)}) for name in WEIGHTS}
    with pytest.raises(UserError, match="large exceeds the range"):
        merged(models, WEIGHTS, tmp_path / "merged", "float16")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"one": torch.ones(2, 3)}, "symmetric lacks tensor two, which init has"),
        ({"one": torch.ones(2, 3), "two": torch.ones(4), "six": torch.ones(1)}, "symmetric has tensor six, which init"),
        (
            {name: torch.ones(1) for name in ("one", "two", "a", "b", "c", "d", "e")},
            "symmetric has tensor a, b, c and 2 more, which",
        ),
        ({"one": torch.ones(3, 2), "two": torch.ones(4)}, r"tensor one has shape \[2, 3\] in init but \[3, 2\]"),
        ({"one": torch.ones(2, 3).long(), "two": torch.ones(4)}, "tensor one is F32 in init but I64 in symmetric"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    models = {name: stored(tmp_path / name, {"one": torch.ones(2, 3), "two": torch.ones(4)}) for name in WEIGHTS}
    stored(models["symmetric"], tensors)
    with pytest.raises(UserError, match=message):
        merged(models, WEIGHTS, tmp_path / "merged")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"init": 0.2, "symmetric": 0.2, "asymmetric": 0.1}, "sum to 0.5 instead of 1"),
        ({"init": float("nan"), "symmetric": 0.5, "asymmetric": 0.5}, "sum to nan"),
        ({"init": 0.5, "symmetric": 0.5}, "but models init, symmetric, asymmetric"),
    ],
)
def test_other_weights_are_refused(models: dict[str, Path], tmp_path: Path, weights: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        merged(models, weights, tmp_path)


def test_a_cut_file_is_refused(copies: dict[str, Path], tmp_path: Path) -> None:
    path = copies["symmetric"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        merged(copies, WEIGHTS, tmp_path)


def test_a_pickled_checkpoint_is_refused(copies: dict[str, Path], tmp_path: Path) -> None:
    path = copies["symmetric"] / "model.safetensors"
    torch.save(load_file(path), copies["symmetric"] / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(UserError, match="no weights in safetensors"):
        merged(copies, WEIGHTS, tmp_path)


def test_a_missing_shard_is_refused(copies: dict[str, Path], tmp_path: Path) -> None:
    folder = copies["symmetric"]
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"embeddings.word_embeddings.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError, match="model-00001-of-00002"):
        merged(copies, WEIGHTS, tmp_path)


def test_a_dtype_that_is_not_a_plain_number_is_refused(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(4).to(torch.float8_e4m3fn)}
    models = {name: stored(tmp_path / name, tensors) for name in WEIGHTS}
    with pytest.raises(UserError, match="tensor weight has dtype F8_E4M3"):
        merged(models, WEIGHTS, tmp_path / "merged")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(copies: dict[str, Path]) -> None:
    with SafetensorsReader(copies["init"]) as checkpoint:
        entry = max(checkpoint.tensors.values(), key=lambda tensor: tensor.start)
        shutil.copy(copies["init"] / "modules.json", copies["init"] / "model.safetensors")
        with pytest.raises(UserError, match="it ends too early"):
            checkpoint.read(entry, 0, entry.items, bytearray(entry.items * 4))

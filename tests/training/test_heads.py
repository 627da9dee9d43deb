"""The stage `heads`: its outputs, that it resumes where it was stopped, and what it refuses."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from configs.schema.config import SIDES, Config
from configs.schema.training import HeadsConfig
from pipeline.chain import CHAIN
from pipeline.core.artefact import Manifest
from pipeline.core.errors import UserError
from pipeline.core.heads import FIRST_WEIGHT, HEADS_RECORD, first_heads, read_heads
from pipeline.core.model_folder import HEADS
from pipeline.run import in_order
from pipeline.stage import run_stage
from tests.support.planned_sets import prepared_run, rows
from tests.support.runs import file_names, read_metrics
from tests.support.small_bases import tiny_base, tiny_model
from training.heads.loss import HeadsLoss, JointLoss

SETS = {"asymmetric/questions": rows(80, seed=3, negatives=2), "asymmetric/pairs": rows(64, seed=4)}


def ready(folder: Path, sets: dict[str, Any] = SETS, **heads: Any) -> Config:
    """A run that lacks only its heads."""
    config = prepared_run(folder, sets)
    shutil.copytree(tiny_base(), config.model_folder("merge"), dirs_exist_ok=True)
    Manifest("merge", "complete", "merge of a test", {}, {}).write(config.folder("merge"))
    values = {"batch_size": 16, "anchor_length": 32, "positive_length": 32, "learning_rate": 1e-2, "max_steps": 12}
    config.training.heads = HeadsConfig(**{"temperature": 0.05, **values, **heads})
    return config


def head_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (*HEADS, HEADS_RECORD)}


def lines(config: Config) -> list[dict[str, Any]]:
    found = read_metrics(config.folder("heads"))
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in found]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = ready(tmp_path_factory.mktemp("heads"))
    run_stage(CHAIN["heads"], config)
    return config


def test_the_model_is_the_merge_with_heads_that_were_fitted_to_it(fitted: Config) -> None:
    merge, model = fitted.model_folder("merge"), fitted.model_folder("heads")
    names = file_names(merge)
    assert file_names(model) == {*names, *HEADS, HEADS_RECORD}
    assert all((merge / name).read_bytes() == (model / name).read_bytes() for name in names)
    for name, shape in zip(HEADS, ((1, 32), (32, 32)), strict=True):
        state = torch.load(model / name, weights_only=True)
        assert {key: tuple(value.shape) for key, value in state.items()} == {"weight": shape, "bias": shape[:1]}
    first, found = first_heads(merge, 32, fitted.seed), read_heads(model)
    for one, other in zip(first.parameters(), found.parameters(), strict=True):
        assert 1e-3 < (one - other).abs().max() < 0.2  # some of another rotation's numbers differ by more
    assert not (fitted.folder("heads") / "checkpoints").exists()


def test_losses_of_all_modes_fall_on_the_same_rows_and_no_sparse_vector_is_zero(tmp_path: Path) -> None:
    pairs = [row | {"positive": f"{row['anchor']} и снова"} for row in rows(16)]
    config = ready(tmp_path, {"asymmetric/pairs": pairs}, max_steps=20, learning_rate=1e-3)
    run_stage(CHAIN["heads"], config)
    found = lines(config)
    assert [line["step"] for line in found] == list(range(1, 21))
    fallen = {name: found[-1][name] < found[0][name] for name in ("loss", "ensemble", "sparse", "multi_vector")}
    assert all(fallen.values()), (fallen, found[0], found[-1])
    assert all(line["all_zero"] == 0 < line["distillation"] for line in found)


def test_a_stopped_run_resumes_to_the_same_bytes(
    fitted: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, forward, steps = ready(tmp_path, checkpoint_steps=3), HeadsLoss.forward, list[int]()

    def stopped(self: HeadsLoss, *args: Any) -> torch.Tensor:
        assert self.temperature == 0.05
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(HeadsLoss, "forward", stopped)
        run_stage(CHAIN["heads"], config)
    checkpoints = config.folder("heads") / "checkpoints"
    last = checkpoints / "checkpoint-6"
    assert sum(file.stat().st_size for file in last.rglob("*")) < 100_000  # without the encoder
    with monkeypatch.context() as patched:
        patched.setattr(HeadsLoss, "forward", lambda *args: steps.append(1) or forward(*args))
        run_stage(CHAIN["heads"], config)
    assert len(steps) == 8 + 6
    assert head_files(config.model_folder("heads")) == head_files(fitted.model_folder("heads"))
    assert lines(config) == lines(fitted)


def test_fitting_starts_from_carried_heads_and_leaves_the_merge_s_unchanged(tmp_path: Path) -> None:
    config = ready(tmp_path, learning_rate=1e-12, max_steps=1)
    merge = config.model_folder("merge")
    for name, layer in zip(HEADS, (torch.nn.Linear(32, 1), torch.nn.Linear(32, 24)), strict=True):
        torch.save({key: value.half() for key, value in layer.state_dict().items()}, merge / name)
    before = {name: (merge / name).read_bytes() for name in HEADS}
    run_stage(CHAIN["heads"], config)
    ours, carried = read_heads(config.model_folder("heads")), read_heads(merge)
    for one, other in ((ours.sparse, carried.sparse), (ours.multi_vector, carried.multi_vector)):
        assert torch.allclose(one.weight, other.weight, atol=1e-6)
    assert before == {name: (merge / name).read_bytes() for name in HEADS}


def test_new_heads_come_from_the_seed_keep_angles_and_weight_all_tokens_equally(tmp_path: Path) -> None:
    one, same, other = (first_heads(tmp_path, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(one.multi_vector.weight, same.multi_vector.weight)
    assert not torch.equal(one.multi_vector.weight, other.multi_vector.weight)
    hidden = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    made = one.multi_vector(hidden)
    assert torch.allclose(made @ made.T, hidden @ hidden.T, atol=1e-5)
    assert torch.equal(one.weights(hidden), torch.full((6,), FIRST_WEIGHT))


def refused(config: Config, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        run_stage(CHAIN["heads"], config)
    assert "\n" not in error.value.line
    assert not config.model_folder("heads").exists()


def test_a_run_without_asymmetric_sets_is_refused(tmp_path: Path) -> None:
    refused(ready(tmp_path, {"symmetric/pairs": rows(32)}), "there are no pairs to train on .*data/asymmetric")


def test_carried_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = ready(tmp_path)
    merge = config.model_folder("merge")
    torch.save(torch.nn.Linear(32, 1).state_dict(), merge / HEADS[0])
    refused(config, f"{HEADS[0]} without {HEADS[1]}")
    torch.save(torch.nn.Linear(24, 24).state_dict(), merge / HEADS[1])
    refused(config, "heads for width 24 and 32, but the encoder has 32")


def test_heads_of_another_encoder_are_refused(fitted: Config, tmp_path: Path) -> None:
    model, other = fitted.model_folder("heads"), tiny_model(tmp_path / "other", hidden=32)
    assert read_heads(model).sparse.in_features == read_heads(fitted.model_folder("merge"), model).sparse.in_features
    with pytest.raises(UserError, match="fitted to another encoder"):
        read_heads(other, model)
    for name in (*HEADS, HEADS_RECORD):
        shutil.copyfile(model / name, other / name)
    with pytest.raises(UserError, match="fitted to another encoder"):
        read_heads(other)


@pytest.mark.parametrize("kind", ["none", "joint"])
def test_a_run_without_the_stage_leaves_it_out(tmp_path: Path, kind: str) -> None:
    config = ready(tmp_path, kind=kind)
    assert "heads" in config.stages and in_order(config) == [name for name in config.stages if name != "heads"]


def ready_side(folder: Path, kind: str = "joint") -> Config:
    """A run whose symmetric side trains with dev scores, keeping the best weights."""
    sets = {"symmetric/pairs": rows(48, seed=5), "symmetric/triplets": rows(48, seed=6, negatives=1)}
    side = {"max_steps": 4, "dev_steps": 2, "checkpoint_steps": 2, "angle_weight": 0.3, "mini_batch_tokens": 256}
    config = prepared_run(folder, sets | {"dev/pairs": rows(12, seed=7)}, **side)
    config.training.heads = HeadsConfig(kind=kind, learning_rate=1e-2)
    return config


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = ready_side(tmp_path_factory.mktemp("joint"))
    run_stage(CHAIN["symmetric"], config)
    return config


def test_a_side_saves_the_heads_that_it_trained_with_its_encoder(joint: Config) -> None:
    init, model = joint.folder("init"), joint.model_folder("symmetric")
    names = file_names(init) - {"manifest.json"}
    assert file_names(model) >= {*HEADS, HEADS_RECORD}
    assert file_names(model) <= {*names, *HEADS, HEADS_RECORD}
    first, found = first_heads(init, 32, joint.seed), read_heads(model)  # reading them compares the encoder
    for one, other in ((first.sparse, found.sparse), (first.multi_vector, found.multi_vector)):
        moved = (one.weight - other.weight).abs().max()
        assert 1e-3 < moved < 0.1  # at the heads' own rate: with the side's, 1e-3, at most 4e-3
    assert (found.sparse.weight - first.sparse.weight).abs().max() > 4e-3
    assert (model / "model.safetensors").read_bytes() != (init / "model.safetensors").read_bytes()
    SentenceTransformer(str(model), device="cpu").encode("Лёд встаёт в ноябре.")
    logged = next(line for line in read_metrics(joint.folder("symmetric")) if "loss" in line)
    assert {"contrastive", "angle", "ensemble", "multi_vector", "self_distillation", "all_zero"} <= logged.keys()


def test_a_stopped_side_with_heads_resumes_to_the_same_bytes(
    joint: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, forward, steps = ready_side(tmp_path), JointLoss.forward, list[int]()

    def stopped(self: JointLoss, *args: Any) -> torch.Tensor:
        if torch.is_grad_enabled():  # otherwise it is a dev loss
            steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return forward(self, *args)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(JointLoss, "forward", stopped)
        run_stage(CHAIN["symmetric"], config)
    assert (config.folder("symmetric") / "checkpoints/checkpoint-2").is_dir()
    run_stage(CHAIN["symmetric"], config)
    for name in ("model.safetensors", *HEADS, HEADS_RECORD):
        ours, theirs = (of.model_folder("symmetric") / name for of in (config, joint))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_heads_that_a_side_trains_are_only_in_the_fingerprints_of_sides_and_merge(joint: Config) -> None:
    without = ready_side(Path(joint.runs), "none")
    stages = [stage for name, stage in CHAIN.items() if name != "calibrate"]  # which takes another config
    changed = {stage.name for stage in stages if stage.settings(joint) != stage.settings(without)}
    assert changed == {*SIDES, "merge", "heads"}

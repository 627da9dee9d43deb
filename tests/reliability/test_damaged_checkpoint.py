"""A stopped stage continues from its checkpoint, or names in one line the file of it that can't be read."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from configs.schema.config import Config
from pipeline.chain import CHAIN
from pipeline.core.errors import UserError
from pipeline.stage import run_stage
from tests.reliability.faults import Change, json_with, malicious_pickle
from tests.support.planned_sets import prepared_run, rows
from training.trainer import TRAINED_WEIGHTS


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that stopped at its second step, with a checkpoint of the first: its learning rate is far too high."""
    wild = {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup": 0.0}
    sets = {"symmetric/pairs": rows(64)}
    config = prepared_run(tmp_path_factory.mktemp("stopped"), sets, max_steps=3, checkpoint_steps=1, **wild)
    with pytest.raises(UserError, match="at step 2"):
        run_stage(CHAIN["symmetric"], config)
    return config


@pytest.fixture
def copied(stopped: Config, tmp_path: Path) -> Config:
    """A copy of that run."""
    shutil.copytree(stopped.runs, tmp_path / "runs")
    return replace(stopped, runs=str(tmp_path / "runs"))


def first_half(content: bytes) -> bytes:
    return content[: len(content) // 2]


DAMAGED: dict[str, tuple[str, Change]] = {
    "half of the weights": (TRAINED_WEIGHTS, first_half),
    "half of the optimizer": ("optimizer.pt", first_half),
    "an optimizer that is a pickle with code": ("optimizer.pt", lambda _: malicious_pickle()),
    "half of the random state": ("rng_state.pth", first_half),
    "half of the trainer's state": ("trainer_state.json", first_half),
    "a trainer's state with an unknown field": ("trainer_state.json", json_with(nonsense=1)),
    "a mark without the run": ("complete.json", lambda _: "{}"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_checkpoint_is_named_with_its_remedy(case: str, copied: Config) -> None:
    name, change = DAMAGED[case]
    checkpoint = copied.folder("symmetric") / "checkpoints/checkpoint-1"
    changed = change((checkpoint / name).read_bytes())
    (checkpoint / name).write_bytes(changed.encode() if isinstance(changed, str) else changed)
    with pytest.raises(UserError, match=r"the checkpoint can't be read: .*checkpoint-1\); remove it: ") as caught:
        run_stage(CHAIN["symmetric"], copied)
    assert "\n" not in caught.value.line


def test_without_the_damaged_checkpoint_training_continues_as_the_line_says(copied: Config) -> None:
    shutil.rmtree(copied.folder("symmetric") / "checkpoints/checkpoint-1")
    with pytest.raises(UserError, match="at step 2"):
        run_stage(CHAIN["symmetric"], copied)

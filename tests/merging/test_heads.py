"""Heads trained with the sides' encoders are merged with the encoders' weights, and follow the model everywhere."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema.config import Config
from configs.schema.training import HeadsConfig
from evaluation.encoder import Encoder
from evaluation.models import final_stage
from evaluation.suites.heads import mode_scores
from pipeline.application import composed
from pipeline.chain import CHAIN
from pipeline.core.errors import UserError
from pipeline.core.heads import Heads, first_heads, read_heads, write_heads
from pipeline.core.model_folder import HEADS
from pipeline.stage import run_stage
from tests.merging.test_merge import TEXTS, config

WEIGHTS = {"init": 0.2, "symmetric": 0.3, "asymmetric": 0.5}


def joint_config(run: Path, **merging: object) -> Config:
    made = config(run, **{"method": "fixed", "weights": WEIGHTS, "score": False, "compare": [], **merging})
    made.training.heads = HeadsConfig(kind="joint")
    return made


def give_heads(run: Path, side: str, width: int = 32) -> None:
    torch.manual_seed(len(side))
    write_heads(run / side / "model", Heads(torch.nn.Linear(32, 1), torch.nn.Linear(32, width)))


@pytest.fixture
def run(run_folder: Path) -> Path:
    """A run whose sides have their own heads, and whose init has none."""
    for side in ("symmetric", "asymmetric"):
        give_heads(run_folder, side)
    return run_folder


def test_the_merge_weighs_heads_as_it_weighs_encoders(run: Path) -> None:
    made = joint_config(run)
    run_stage(CHAIN["merge"], made)
    folder = run / "merge" / "model"
    found = read_heads(folder)  # which compares the encoder with the one in heads.json
    parents = {name: read_heads(run / name / "model") for name in ("symmetric", "asymmetric")}
    first = first_heads(run / "init", 32, made.seed)
    for layer in ("sparse", "multi_vector"):
        for part in ("weight", "bias"):
            expected = WEIGHTS["init"] * getattr(getattr(first, layer), part).double()
            expected += sum(WEIGHTS[name] * getattr(getattr(parents[name], layer), part).double() for name in parents)
            assert (getattr(getattr(found, layer), part) - expected).abs().max() < 1e-6
    assert final_stage(made) == "merge"
    scores, _ = mode_scores(Encoder(folder, device="cpu"), found, TEXTS, TEXTS)
    assert all(np.isfinite(of(slice(None))).all() for of in scores.values())


def test_a_single_weight_of_1_keeps_a_side_s_heads_exactly(run: Path) -> None:
    run_stage(CHAIN["merge"], joint_config(run, weights={"asymmetric": 1.0}))
    for name in HEADS:
        ours, theirs = (
            torch.load(run / stage / "model" / name, weights_only=True) for stage in ("merge", "asymmetric")
        )
        assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_a_search_by_dense_scores_takes_the_heads_along(run: Path) -> None:
    run_stage(CHAIN["merge"], joint_config(run, method="search", score=True, weights={}))
    read_heads(run / "merge" / "model")


def test_heads_that_are_not_to_be_merged_are_refused(run: Path) -> None:
    made = joint_config(run)
    made.training.heads.kind = "frozen"
    with pytest.raises(UserError, match=r"sparse_linear.pt of symmetric is not that of init.*heads=joint"):
        run_stage(CHAIN["merge"], made)


def without(run: Path) -> None:
    for name in HEADS:
        (run / "symmetric" / "model" / name).unlink()


def half(run: Path) -> None:
    (run / "symmetric" / "model" / HEADS[0]).unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (without, "symmetric has no heads to merge .*heads=joint"),
        (half, "symmetric has no heads to merge"),
        (
            lambda run: give_heads(run, "asymmetric", 24),
            "multi-vector head of asymmetric is 24 wide, that of init 32",
        ),
    ],
)
def test_heads_that_do_not_fit_are_one_line(run: Path, harm: object, message: str) -> None:
    assert callable(harm)
    harm(run)
    with pytest.raises(UserError, match=message) as error:
        run_stage(CHAIN["merge"], joint_config(run))
    assert "\n" not in error.value.line and not (run / "merge" / "model").exists()


def test_a_merge_that_is_not_a_weighted_sum_is_refused_before_anything_is_made() -> None:
    with pytest.raises(UserError, match=r"can't be ties with heads=joint: .*key merging\.method"):
        composed("profile=tiny", "heads=joint", "merging=ties")

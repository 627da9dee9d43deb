"""A study through the command: arms and seeds as jobs of a sweep, then its table and page."""

from contextlib import nullcontext
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from evaluation.study.comparison import ArmScore
from evaluation.study.table import Study
from pipeline.core.errors import UserError
from tests.support.runs import finish, start

ARMS = "base,joint,sequential,merge_search,soup"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["arm=base,init", "training.seed=1", "runs=elsewhere", "evaluation.suites=[a,b]"], None),
        (['run="x-${swept:}"'], "a study names its runs itself"),
        (["seed=1,2"], "over training seeds alone .config key seed"),
    ],
)
def test_a_study_is_over_arms_and_training_seeds_in_runs_that_arms_can_find(
    overrides: list[str], problem: str | None
) -> None:
    config = OmegaConf.create({"hydra": {"overrides": {"task": overrides}}})
    with pytest.raises(UserError, match=problem) if problem else nullcontext():
        Study().on_multirun_start(config)


@pytest.mark.slow
def test_a_study_of_the_tiny_chain_ends_in_one_row_per_arm(tmp_path: Path) -> None:
    command = ["--multirun", "sweep=study", "profile=tiny", f"runs={tmp_path}", "training.seed=1,2", f"arm={ARMS}"]
    ended = finish(start(*command, "evaluation.suites=[held_out]"))
    assert ended.status == 0, ended.err
    folder = tmp_path / "sweep" / "study"
    rows = ArmScore.read(folder / "study.csv")
    scored = {row.arm for row in rows if row.suite == "held_out" and not row.against}
    assert scored == set(ARMS.split(","))
    differences = {(row.arm, row.task): row.score for row in rows if row.against == "base"}
    scores = {(row.arm, row.task): row.score for row in rows if not row.against}
    assert differences["joint", "panorama"] == pytest.approx(scores["joint", "panorama"] - scores["base", "panorama"])
    table = (folder / "study.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {arm}" for arm in ARMS.split(",")]
    assert "<svg" in (folder / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_both_ways_to_train_heads_are_compared_in_every_way_to_search(tmp_path: Path) -> None:
    command = ["--multirun", "sweep=heads", "profile=tiny", f"runs={tmp_path}", "training.seed=1,2"]
    ended = finish(start(*command, "evaluation.suites=[held_out]"))
    assert ended.status == 0, ended.err
    rows = ArmScore.read(tmp_path / "sweep" / "heads" / "study.csv")
    modes = {"", ".sparse", ".multi_vector", ".hybrid", ".hybrid_fitted"}
    for arm, against in (("heads_frozen", ""), ("heads_joint", ""), ("heads_joint", "heads_frozen")):
        found = {row.task for row in rows if (row.arm, row.against, row.suite) == (arm, against, "held_out")}
        assert found >= {f"panorama{mode}" for mode in modes}
    merges = [tmp_path / f"tiny-heads_{kind}-1" / "merge" / "model" / "heads.json" for kind in ("frozen", "joint")]
    assert [path.is_file() for path in merges] == [False, True]
    assert not (tmp_path / "tiny-heads_joint-1" / "heads").exists()

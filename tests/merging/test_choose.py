"""One dev score: what a side's training logs is what the merge gives it as a candidate."""

from pathlib import Path

import polars
import pytest

from configs.schema import merging
from configs.schema.config import Config
from configs.schema.merging import MERGEKIT_METHODS, MergingConfig
from merging.choose import METHODS
from pipeline.chain import CHAIN
from pipeline.core.artefact import read_manifest
from pipeline.stage import run_stage
from tests.merging.test_merge import config
from tests.support.planned_sets import prepared_run, rows
from tests.support.runs import read_csv, read_metrics

SETS = {
    "symmetric/pairs": rows(64, seed=1),
    "symmetric/scored": rows(64, seed=2, scored=True),
    "symmetric/small": rows(64, seed=3),
    "asymmetric/questions": rows(80, seed=4, negatives=2),
    "dev/pairs": rows(60, seed=11),
    "dev/scored": rows(60, seed=12, scored=True),
    "dev/small": rows(3, seed=13),  # too few for a batch, and thus for a dev loss
    "dev/questions": rows(60, seed=14, negatives=2),
}
for number, content in enumerate(SETS.values()):  # no text in two of them
    for row in content:
        row |= {name: f"{row[name]} {number}" for name in ("anchor", "positive")}
SIDES = ("symmetric", "asymmetric", "joint")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with its sides trained, and merged."""
    config = prepared_run(tmp_path_factory.mktemp("trained"), SETS, max_steps=6, dev_steps=2, keep_best=False)
    config.training.dev_rows, config.training.dev_length = 40, 16
    config.merging = MergingConfig(models=["init", *SIDES], method="fixed", weights={"joint": 1.0}, compare=[])
    for stage in (*SIDES, "merge"):
        run_stage(CHAIN[stage], config)
    return config


def candidates(config: Config) -> dict[str, dict[str, str]]:
    return {row["origin"]: row for row in read_csv(config.folder("merge") / "search.csv")}


@pytest.mark.parametrize("side", SIDES)
def test_a_sides_last_dev_score_is_its_score_as_a_candidate(trained: Config, side: str) -> None:
    logged = [line for line in read_metrics(trained.folder(side)) if "dev_score" in line][-1]
    row = candidates(trained)[side]
    assert logged["step"] == 6
    assert float(row["dev" if side == "joint" else side]) == logged["dev_score"]
    sets = [name.removeprefix("dev/") for name in SETS if name.startswith("dev/") and f"dev_{name[4:]}_score" in logged]
    assert len(sets) == {"symmetric": 3, "asymmetric": 1, "joint": 4}[side]
    for name in sets:
        assert float(row[f"dev/{name}"]) == logged[f"dev_{name}_score"]
    manifest = read_manifest(trained.folder(side))
    assert manifest is not None and manifest.metrics["dev_score"] == logged["dev_score"]


def test_training_changes_the_score(trained: Config) -> None:
    found = candidates(trained)
    assert len({found[name]["dev"] for name in ("init", *SIDES)}) == 4


def test_sets_that_tell_no_models_apart_are_named(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = run_folder / "data/dev/answers.parquet"
    found = polars.read_parquet(path)  # every model finds a text by itself
    found.with_columns(found["anchor"].alias("positive")).write_parquet(path)
    run_stage(CHAIN["merge"], config(run_folder, method="fixed", weights={"init": 1.0}, compare=[]))
    lines = [record.getMessage() for record in caplog.records if "tell no models apart" in record.getMessage()]
    assert lines == ["merge: dev sets that tell no models apart, since all score at least 0.999: answers"]


def test_every_name_of_a_method_has_its_function() -> None:
    assert METHODS.keys() | set(MERGEKIT_METHODS) == {*merging.METHOD_NAMES}

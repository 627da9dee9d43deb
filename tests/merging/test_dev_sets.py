"""Reading dev rows from the data artefact."""

import json
import shutil
from pathlib import Path

import polars
import pytest

from merging.dev_sets import read_dev_sets, read_pair_set, require_unseen
from pipeline.core.errors import UserError


def test_sides_come_from_the_ledger(data: Path) -> None:
    assert {pairs.name: pairs.side for pairs in read_dev_sets(data)} == {"pairs": "symmetric", "answers": "asymmetric"}


def test_a_score_below_one_is_no_positive(tmp_path: Path) -> None:
    columns = {"anchor": ["а", "б", "в"], "positive": ["г", "д", "е"], "negatives": [[], None, ["ж"]]}
    schema = {"negatives": polars.List(polars.String)}
    frame = polars.DataFrame(columns | {"score": [1.0, 0.5, None]}, schema_overrides=schema)
    frame.write_parquet(tmp_path / "scored.parquet")
    pairs = read_pair_set(tmp_path / "scored.parquet", "symmetric")
    assert pairs.labels == [True, False, True]
    assert pairs.negatives == [[], [], ["ж"]]
    assert pairs.positive_rows().anchors == ["а", "в"]


def test_a_sample_depends_on_seed_and_purpose_alone(data: Path) -> None:
    pairs = read_dev_sets(data)[0]
    assert pairs.sample(5, 1, "dev") == pairs.sample(5, 1, "dev")
    assert pairs.sample(5, 1, "dev") != pairs.sample(5, 2, "dev")
    assert pairs.sample(5, 1, "dev") != pairs.sample(5, 1, "examples")
    assert pairs.sample(500, 1, "dev") is pairs


def test_rows_held_out_properly_pass(data: Path) -> None:
    require_unseen(read_dev_sets(data), data)


@pytest.mark.parametrize("column", ["anchor", "positive"])
def test_a_dev_text_in_any_training_column_is_refused(data: Path, tmp_path: Path, column: str) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    path = copy / "asymmetric/answers.parquet"
    table, leak = polars.read_parquet(path), polars.read_parquet(copy / "dev/pairs.parquet")["positive"][3]
    leaked = table.with_columns(
        polars.when(polars.arange(0, len(table)) == 7).then(polars.lit(leak)).otherwise(column).alias(column)
    )
    leaked.write_parquet(path)
    with pytest.raises(UserError, match=f"dev set pairs shares a text with training set answers: '{leak}'"):
        require_unseen(read_dev_sets(copy), copy)


def test_a_set_that_the_ledger_does_not_know_is_refused(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    (copy / "ledger.json").write_text(json.dumps({"sets": []}), encoding="utf-8")
    with pytest.raises(UserError, match="dev set answers is not in the ledger"):
        read_dev_sets(copy)


@pytest.mark.parametrize("content", ["", "{}", '{"sets": [{"name": "pairs"}]}'])
def test_a_ledger_that_cannot_be_read_is_refused(data: Path, tmp_path: Path, content: str) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    (copy / "ledger.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="can't read which side"):
        read_dev_sets(copy)

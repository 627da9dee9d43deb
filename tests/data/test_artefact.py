"""Reading the data stage's output: sides, dev rows, held-out sets, shares of the batches."""

from pathlib import Path

import polars as pl
import pytest

from data.artefact import (
    PairSet,
    read_dev_sets,
    read_held_out_set,
    read_pair_set,
    read_shares,
    require_unseen,
    set_files,
)
from pipeline.core.errors import UserError

SCHEMA = {"anchor": pl.String, "positive": pl.String, "negatives": pl.List(pl.String), "score": pl.Float32}


def pairs(path: Path, *texts: str, scores: tuple[float | None, ...] = ()) -> None:
    """Write rows (text, text's answer, no negatives)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        (text, f"ответ: {text}", [], score) for text, score in zip(texts, scores or [None] * len(texts), strict=True)
    ]
    pl.DataFrame(rows, schema=SCHEMA, orient="row").write_parquet(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in (
        "symmetric/pairs",
        "asymmetric/answers",
        "asymmetric/more",
        "dev/pairs",
        "dev/answers",
        "heldout/guard",
    ):
        pairs(tmp_path / f"{name}.parquet", f"{name} 1", f"{name} 2")
    return tmp_path


def test_a_side_reads_its_own_sets_and_joint_training_all(data: Path) -> None:
    assert [path.stem for _, path in set_files(data, "symmetric")] == ["pairs"]
    assert [(of, path.stem) for of, path in set_files(data)] == [
        ("symmetric", "pairs"),
        ("asymmetric", "answers"),
        ("asymmetric", "more"),
    ]


def test_dev_sets_have_the_side_of_their_training_sets(data: Path) -> None:
    assert [(dev.name, dev.side) for dev in read_dev_sets(data)] == [("pairs", "symmetric"), ("answers", "asymmetric")]
    assert [dev.name for dev in read_dev_sets(data, "asymmetric")] == ["answers"]


def test_a_row_without_a_score_is_a_positive_and_one_below_1_is_not(tmp_path: Path) -> None:
    pairs(tmp_path / "scored.parquet", "а", "б", "в", scores=(1.0, 0.5, None))
    found = read_pair_set(tmp_path / "scored.parquet", "symmetric")
    assert found.scores == [1.0, 0.5, 1.0]
    assert found.positive_rows().anchors == ["а", "в"]


def test_rows_are_taken_evenly_from_the_whole_set() -> None:
    texts = [str(number) for number in range(24)]
    whole = PairSet("set", "symmetric", texts, texts, [[]] * 24, [1.0] * 24)
    assert whole.spread(8).anchors == texts[::3]
    assert whole.spread(100) == whole


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "set absent is not held out"), ("low", "set low has no positive")],
)
def test_a_set_that_cannot_guard_is_refused(data: Path, name: str, message: str) -> None:
    pairs(data / "heldout/low.parquet", "а", scores=(0.5,))
    with pytest.raises(UserError, match=message):
        read_held_out_set(data, name, "asymmetric")
    assert read_held_out_set(data, "guard", "asymmetric").side == "asymmetric"


@pytest.mark.parametrize("text", ["dev/pairs 2", "ответ: dev/pairs 2"])
@pytest.mark.parametrize("column", ["anchor", "positive"])
def test_a_dev_text_in_any_training_column_is_refused(data: Path, text: str, column: str) -> None:
    require_unseen(read_dev_sets(data), data)
    path = data / "asymmetric/answers.parquet"
    pl.read_parquet(path).with_columns(pl.lit(text).alias(column)).write_parquet(path)
    with pytest.raises(UserError, match=f"set pairs shares a text with training set answers: '{text}'"):
        require_unseen(read_dev_sets(data), data)


def test_shares_come_from_the_ledger(data: Path) -> None:
    assert read_shares(data) == {}
    (data / "ledger.json").write_text('{"sets": [{"name": "pairs", "weight": 0.5, "repeat": 2}]}')
    assert read_shares(data) == {"pairs": (0.5, 2)}


@pytest.mark.parametrize("content", ["", "{}", '{"sets": [{"name": "pairs"}]}'])
def test_a_damaged_ledger_is_refused(data: Path, content: str) -> None:
    (data / "ledger.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"not a ledger of sets \(.*ledger.json\); run make data again"):
        read_shares(data)

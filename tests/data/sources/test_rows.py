"""Rows as roles: missing values and scores, for every format and column type."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema.data import SourceConfig
from data.sources.batch import RowErrors
from data.sources.files import locate
from data.sources.rows import role_frames
from pipeline.core.errors import UserError

QUESTIONS = ["Где живут пингвины?", "Что измеряют барометром?", "Кто построил мост?"]
ANSWERS = ["В Антарктиде.", "Давление воздуха.", "Инженеры."]
NEGATIVE = "На вершине горы."
NONE = {  # a column in which no row has a negative
    "nulls without a type": pa.nulls(3),
    "null texts": pa.nulls(3, pa.string()),
    "null large texts": pa.nulls(3, pa.large_string()),
    "null lists": pa.nulls(3, pa.list_(pa.string())),
    "empty lists": pa.array([[], [], []], pa.list_(pa.string())),
    "empty lists without a type": pa.array([[], [], []], pa.list_(pa.null())),
    "lists of nulls": pa.array([[None], [], None], pa.large_list(pa.string())),
}
SOME = {  # a column in which only the second row has one
    "texts": pa.array([None, NEGATIVE, None]),
    "large texts": pa.array([None, NEGATIVE, None], pa.large_string()),
    "lists": pa.array([[], [NEGATIVE], None], pa.list_(pa.string())),
    "lists with nulls": pa.array([None, [None, NEGATIVE], []], pa.large_list(pa.large_string())),
    "lists of one length": pa.array([[None], [NEGATIVE], [None]], pa.list_(pa.string(), 1)),
}
KINDS = {
    "triplets": {"anchor": "q", "positive": "p", "negative": "n"},
    "query_pos_neg": {"query": "q", "pos": "p", "neg": "n"},
}


def read(path: Path, kind: str, columns: dict[str, str], skip: bool = False, **source: Any) -> tuple[list[dict], dict]:
    """The rows of a file as roles, and the bad ones by their reason."""
    source = {"title": "x", "side": "symmetric", "path": str(path), "format": kind, "columns": columns, **source}
    made, errors = SourceConfig(**source), RowErrors("data.sources.mine", skip)
    frames = role_frames(made, locate("data.sources.mine", made, None), errors)
    return [row for frame in frames for row in frame.drop("row").to_dicts()], errors.counts


@pytest.mark.parametrize("construction", KINDS)
@pytest.mark.parametrize("column", [*NONE, *SOME])
def test_a_row_may_have_no_negatives_in_a_parquet_column_of_any_type(
    column: str, construction: str, tmp_path: Path
) -> None:
    table = pa.table({"q": QUESTIONS, "p": ANSWERS, "n": (NONE | SOME)[column]})
    pq.write_table(table, tmp_path / "a.parquet")
    found, _ = read(tmp_path / "a.parquet", "parquet", KINDS[construction], construction=construction)
    negatives = [row[list(KINDS[construction])[2]] for row in found]
    assert negatives == ([[], [], []] if column in NONE else [[], [NEGATIVE], []])


@pytest.mark.parametrize("construction", KINDS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("configured", [True, False])
def test_a_file_may_lack_the_column_of_negatives(
    configured: bool, kind: str, construction: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"q": question, "p": answer} for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["q", "p"], *(row.values() for row in rows)])
    else:
        path.write_text("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows), encoding="utf-8")
    columns = dict(list(KINDS[construction].items())[: 3 if configured else 2])
    with caplog.at_level("WARNING"):
        found, _ = read(path, kind, columns, construction=construction)
    role = list(KINDS[construction])[2]
    assert [row[role] for row in found] == [[], [], []]
    assert ("mine: no row has a negative in n" in caplog.text) == configured


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_row_of_json_may_have_what_the_first_one_lacks(kind: str, tmp_path: Path) -> None:
    rows = [{"q": "а", "p": "б"}, {"q": "в", "p": "г", "n1": "д"}, {"q": "е", "p": "ж", "n1": "з", "n2": "и"}]
    path = tmp_path / "a.json"
    path.write_text("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows), encoding="utf-8")
    columns = {"anchor": "q", "positive": "p", "negative": "n*"}
    found, _ = read(path, kind, columns, construction="triplets")
    assert [row["negative"] for row in found] == [[], ["д"], ["з", "и"]]
    lists = [{"q": "а", "p": "б", "n": None}, {"q": "в", "p": ["г", "д"], "n": [None, "е"]}]
    lists[0]["p"] = ["б"]
    path.write_text("\n".join(map(json.dumps, lists)) if kind == "jsonl" else json.dumps(lists), encoding="utf-8")
    found, _ = read(path, kind, KINDS["query_pos_neg"], construction="query_pos_neg")
    assert [(row["pos"], row["neg"]) for row in found] == [(["б"], []), (["г", "д"], ["е"])]


def test_a_pattern_may_match_several_columns_of_lists(tmp_path: Path) -> None:
    rows = [{"q": "а", "p": "б", "n1": ["в"], "n2": ["г", "д"]}, {"q": "е", "p": "ж", "n1": None, "n2": ["з"]}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found, _ = read(path, "jsonl", {"anchor": "q", "positive": "p", "negative": "n*"}, construction="triplets")
    assert [row["negative"] for row in found] == [["в", "г", "д"], ["з"]]


def test_a_row_without_positives_is_a_bad_row_and_one_text_is_a_list_of_one(tmp_path: Path) -> None:
    lists = pa.array([["один", "два"], [], None], pa.list_(pa.string()))
    pq.write_table(pa.table({"q": QUESTIONS, "p": lists}), tmp_path / "a.parquet")
    kind = {"construction": "query_pos_neg"}
    found, bad = read(tmp_path / "a.parquet", "parquet", KINDS["query_pos_neg"], skip=True, **kind)
    assert [row["pos"] for row in found] == [["один", "два"]] and bad == {"no text in column p": 2}
    pq.write_table(pa.table({"q": QUESTIONS, "p": ANSWERS}), tmp_path / "a.parquet")
    found, _ = read(tmp_path / "a.parquet", "parquet", KINDS["query_pos_neg"], **kind)
    assert [row["pos"] for row in found] == [[answer] for answer in ANSWERS]


def test_parallel_lists_keep_their_places_and_negatives_may_be_missing_altogether(tmp_path: Path) -> None:
    rows = [
        {"q": "а", "p": ["б", "в"], "n": [None, "г"]},
        {"q": "д", "p": ["е", "ж"], "n": []},
        {"q": "з", "p": ["и", "к"], "n": ["л"]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    given = {"construction": "query_pos_neg", "list_length": 2}
    found, bad = read(path, "jsonl", KINDS["query_pos_neg"], skip=True, **given)
    assert [row["neg"] for row in found] == [[None, "г"], []]
    assert bad == {"the lists of pos and neg must have 2 texts each, or neg none": 1}


SCORED = {"anchor": "q", "positive": "p", "score": "s"}
RIGHT = {
    "whole numbers": pa.array([1, 3, 5]),
    "small whole numbers": pa.array([1, 3, 5], pa.int8()),
    "floats": pa.array([1.0, 3.0, 5.0], pa.float32()),
    "texts": pa.array(["1", " 3.0", "5e0"]),
    "decimals": pa.array([1, 3, 5]).cast(pa.decimal128(20, 1)),
}


@pytest.mark.parametrize("column", RIGHT)
def test_scores_may_be_numbers_of_any_type(column: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": QUESTIONS, "p": ANSWERS, "s": RIGHT[column]}), tmp_path / "a.parquet")
    given = {"construction": "scored_pairs", "score_range": [1.0, 5.0]}
    found, _ = read(tmp_path / "a.parquet", "parquet", SCORED, **given)
    assert [row["score"] for row in found] == [1.0, 3.0, 5.0]


@pytest.mark.parametrize("score", [5.01, 0, -1, float("nan"), "много", "", "4,5", "inf"])
def test_a_score_outside_the_range_is_a_bad_row(score: Any, tmp_path: Path) -> None:
    scores = pa.array([str(score), "4.5"]) if isinstance(score, str) else pa.array([float(score), 4.5])
    pq.write_table(pa.table({"q": QUESTIONS[:2], "p": ANSWERS[:2], "s": scores}), tmp_path / "a.parquet")
    given = {"construction": "scored_pairs", "score_range": [1.0, 5.0]}
    with pytest.raises(UserError, match=r"mine: score is not a number from 1 to 5 \(a.parquet, row 1\)"):
        read(tmp_path / "a.parquet", "parquet", SCORED, **given)
    found, bad = read(tmp_path / "a.parquet", "parquet", SCORED, skip=True, **given)
    assert len(found) == 1 and bad == {"score is not a number from 1 to 5": 1}


def test_a_missing_score_and_a_truth_value_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    given = {"construction": "scored_pairs", "score_range": [0.0, 1.0], "nulls": "drop"}
    pq.write_table(pa.table({"q": QUESTIONS, "p": ANSWERS, "s": pa.array([1, None, 0])}), path)
    with pytest.raises(UserError, match=r"mine: null in column s \(a.parquet, row 2\)"):
        read(path, "parquet", SCORED, **given)
    pq.write_table(pa.table({"q": QUESTIONS, "p": ANSWERS, "s": pa.array([True, False, True])}), path)
    with pytest.raises(UserError, match=r"mine: wrong type bool in column s .* score needs a number"):
        read(path, "parquet", SCORED, **given)

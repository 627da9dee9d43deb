"""Faults in users' files: each is one line with set, file and row, or is counted if configured."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.schema.data import SourceConfig
from pipeline.core.errors import UserError
from tests.data.conftest import OneSet
from tests.support.prepared_data import run

ROWS = [{"question": f"Вопрос номер {n}?", "answer": f"Подробный ответ номер {n}."} for n in range(1, 6)]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
COLUMNS = {"anchor": "question", "positive": "answer"}
NLI = {"construction": "nli", "columns": {"premise": "question", "hypothesis": "answer", "label": "label"}}


def with_row_three(line: bytes) -> bytes:
    return b"\n".join([*LINES[:2], line, *LINES[3:]]) + b"\n"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "a", ', r"mine: broken json.*rows.jsonl, row 3"),
        (b'["a", "b"]', r"mine: broken json: not an object.*row 3"),
        (b'{"question": "\xff\xfe", "answer": "b"}', r"mine: invalid UTF-8.*row 3"),
        (
            '{"question": null, "answer": "Ответ"}'.encode(),
            r"null in column question.*row 3.*set data.sources.mine.nulls to drop, or",
        ),
        ('{"question": {"text": "a"}, "answer": "Ответ"}'.encode(), r"mine: wrong type dict in column question.*row 3"),
        ('{"question": "Вопрос без ответа?"}'.encode(), r"mine: null in column answer.*row 3"),
    ],
)
def test_a_bad_line_of_json_is_named_or_counted(line: bytes, message: str, tmp_path: Path, one_set: OneSet) -> None:
    path = write(tmp_path / "rows.jsonl", with_row_three(line))
    with pytest.raises(UserError, match=message):
        one_set(path, columns=COLUMNS)
    ledger = one_set(path, "data.on_bad_row=skip", columns=COLUMNS).ledger["mine"]
    assert sum(ledger["bad_rows"].values()) == 1 and ledger["train"] == 4


def test_bad_rows_of_dev_files_are_counted_as_such(tmp_path: Path, one_set: OneSet) -> None:
    path = write(tmp_path / "rows.jsonl", with_row_three(b"{}"))
    dev = write(tmp_path / "dev.jsonl", b'{"question": "a", "answer": null}\n[]\n')
    ledger = one_set(path, "data.on_bad_row=skip", columns=COLUMNS, dev_files=[str(dev)]).ledger["mine"]
    assert ledger["bad_rows"] == {
        "null in column question": 1,
        "dev files: null in column answer": 1,
        "dev files: broken json: not an object": 1,
    }


def test_a_bad_row_of_csv_is_counted_when_asked(tmp_path: Path, one_set: OneSet) -> None:
    rows = ["question,answer", "Первый вопрос,Первый ответ", "лишнее,поле,тут", '"Второй\nвопрос","Второй, ответ"']
    path = write(tmp_path / "rows.csv", "\n".join(rows).encode() + b"\n\xff\xfe,d\n\xff,d,e\n")
    prepared = one_set(path, "data.on_bad_row=skip", columns=COLUMNS, format="csv")
    assert prepared.ledger["mine"]["bad_rows"] == {"invalid UTF-8": 2, "wrong number of fields": 1}
    assert prepared.pairs("asymmetric", "mine").rows() == [
        ("Первый вопрос", "Первый ответ", []),
        ("Второй\nвопрос", "Второй, ответ", []),
    ]


def test_an_unknown_label_is_named_or_counted(tmp_path: Path, one_set: OneSet) -> None:
    labels = ["entailment", "entailment", "maybe", "entailment", "perhaps"]
    rows = [{**row, "label": label} for row, label in zip(ROWS, labels, strict=True)]
    path = write(tmp_path / "rows.jsonl", b"\n".join(json.dumps(row).encode() for row in rows))
    source = {**NLI, "labels": {"entailment": "entailment"}}
    with pytest.raises(UserError, match=r"mine: unknown label \(known: entailment\).*row 3: maybe"):
        one_set(path, **source)
    ledger = one_set(path, "data.on_bad_row=skip", **source).ledger["mine"]
    assert ledger["train"] == 3 and ledger["bad_rows"] == {"unknown label (known: entailment)": 2}


@pytest.mark.parametrize(
    ("name", "content", "source", "message"),
    [
        ("rows.jsonl", b"", {}, r"mine: the set is empty"),
        ("rows.jsonl", b'{"question": "", "answer": ""}\n', {}, r"mine: no usable pair.*empty text 1"),
        (
            "rows.jsonl",
            LINES[0],
            {"columns": {"anchor": "question"}},
            r"columns not configured \(rows.jsonl; columns found: question: string, 15 characters.*columns.positive",
        ),
        (
            "rows.jsonl",
            b'{"question": {"text": "a"}, "answer": [["b"]], "other": "c"}\n{"question": "a", "answer": ["b"]}\n',
            {"columns": {"anchor": "question"}},
            r"columns found: question: string, 13.*; answer: list<item: string>.*; other: string, 1 char",
        ),
        (
            "rows.jsonl.gz",
            gzip.compress(b"\n".join(LINES * 2000))[:-200],
            {},
            r"compressed file is cut off \(rows.jsonl.gz",
        ),
        ("rows.jsonl.gz", b"no gzip at all", {}, r"mine: can't be read: Not a gzipped file"),
        ("rows.parquet", b"PAR1 cut off", {"format": "parquet"}, r"mine: can't be read.*rows.parquet"),
    ],
)
def test_a_bad_file_ends_in_one_line(
    name: str, content: bytes, source: dict[str, Any], message: str, tmp_path: Path, one_set: OneSet
) -> None:
    with pytest.raises(UserError, match=message) as error:
        one_set(write(tmp_path / name, content), **{"columns": COLUMNS, **source})
    assert "\n" not in error.value.line
    assert not list((tmp_path / "runs").rglob("mine.parquet"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": [1, 2], "answer": ["a", "b"]}, r"wrong type int64 in column question"),
        ({"question": ["Вопрос?", None], "answer": ["Ответ да.", "Ответ нет."]}, r"null in column question.*row 2"),
    ],
)
def test_wrong_columns_of_parquet(columns: dict[str, list], message: str, tmp_path: Path, one_set: OneSet) -> None:
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=message):
        one_set(tmp_path / "rows.parquet", format="parquet", columns=COLUMNS)


def test_lists_of_the_wrong_length_are_named(tmp_path: Path, one_set: OneSet) -> None:
    row = {"query": "Вопрос", "pos": ["Один ответ", "Другой ответ"], "neg": ["Не ответ"]}
    path = write(tmp_path / "rows.jsonl", json.dumps(row).encode())
    source = {
        "construction": "query_pos_neg",
        "columns": {"query": "query", "pos": "pos", "neg": "neg"},
        "list_length": 2,
    }
    with pytest.raises(UserError, match=r"lists of pos and neg must have 2 texts.*row 1"):
        one_set(path, **source)


def test_missing_places_are_named(tmp_path: Path, one_set: OneSet) -> None:
    with pytest.raises(UserError, match=r"mine: no such file \(.*nowhere.jsonl\); fix data.sources.mine.path"):
        one_set(tmp_path / "nowhere.jsonl", columns=COLUMNS)
    (tmp_path / "mirror" / "its5Q" / "panorama").mkdir(parents=True)
    with pytest.raises(UserError, match=r"panorama: no file \*.jsonl .*files there: none"):
        run(tmp_path, f"mirror={tmp_path}/mirror")


def test_a_value_of_where_that_no_row_has_is_an_error(tmp_path: Path, one_set: OneSet) -> None:
    path = write(tmp_path / "rows.jsonl", b"\n".join(LINES))
    with pytest.raises(UserError, match=r"no row has snli \(column question\); values there: Вопрос номер 1"):
        one_set(path, columns=COLUMNS, where={"question": ["snli"]})


@pytest.mark.parametrize(
    "column",
    [
        pa.array([["snli"]]),
        pa.array([b"\xff"]),
        pa.array([1], pa.duration("s")),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    ],
)
def test_a_column_that_where_cannot_choose_by_is_named(column: pa.Array, tmp_path: Path, one_set: OneSet) -> None:
    pq.write_table(pa.table({"question": ["Вопрос"], "answer": ["Ответ"], "kind": column}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"mine: can't select by column kind of type .*rows.parquet.*fix .*mine.where"):
        one_set(tmp_path / "rows.parquet", format="parquet", columns=COLUMNS, where={"kind": ["snli"]})


def test_unknown_options_of_a_reader_are_named() -> None:
    from data.sources.files import open_reader

    cases: list[tuple[dict[str, Any], str]] = [
        ({"reader": "data.sources.wiktionary.TermUsages", "reader_options": {"colour": "red"}}, "colour"),
        ({"reader": "data.sources.wiktionary.TermUsages", "reader_options": {"split": "test"}}, "unknown split test"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message):
            open_reader("data.sources.mine", SourceConfig(title="Mine", side="symmetric", **fields))


def test_the_remedy_for_a_held_out_set_names_its_own_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column headline .*; set data\.held_out\.panorama\.columns$"):
        run(tmp_path, "data.held_out.panorama.columns.anchor=headline")

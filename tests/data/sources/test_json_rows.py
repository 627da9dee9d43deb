"""Json lines and json documents: one set of rules, whatever else is in the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.data import SourceConfig
from data.sources.batch import RowErrors
from data.sources.files import SourceFile
from data.sources.formats import batches
from pipeline.core.errors import UserError

GOOD = {"q": "Где живут пингвины?", "a": ["В Антарктиде.", "На южных островах."]}
ODD_LINES = [
    "",
    " \t",
    "[1, 2]",
    "null",
    '{"q": "обрыв", "a": ["да"',
    '{"q": "дважды", "a": [], "q": "раз"}',
    '{"q": "половина \\ud83d", "a": []}',
    '{"q": "целый \\ud83d\\ude00", "a": []}',
    '{"q": NaN, "a": []}',
    '{"q": -Infinity, "a": []}',
    '{"q": "чужое", "a": [], "z": NaN}',
    '{"q": "лишнее", "a": []} x',
    '{"q": "два", "a": []}{"q": "в строке", "a": []}',
    '{"q": {"глубже": 1}, "a": []}',
    '{"q": "числа", "a": [1]}',
    '{"q": "не список", "a": "да"}',
    '{"q": null, "a": null}',
    '{"q": "без ответа"}',
    '{"a": ["без вопроса"]}',
    '{"q": "сырой\ttab", "a": []}',
    '{"q": "большое", "a": [], "z": 1' + "0" * 400 + "}",
    '\ufeff{"q": "с меткой", "a": []}',
    '{"q": "возврат", "a": []}\r',
]
rows_of_json = st.one_of(
    st.sampled_from(ODD_LINES),
    st.fixed_dictionaries({"q": st.none() | st.text(max_size=9), "a": st.lists(st.text(max_size=5), max_size=2)}).map(
        lambda row: json.dumps(row, ensure_ascii=False)
    ),
)


def read(path: Path, format: str = "jsonl", skip: bool = True, columns: tuple[str, ...] = ("q", "a")) -> Any:
    """(number, row) of each good row, and the bad ones by their reason."""
    errors, found = RowErrors("data.sources.mine", skip), list[Any]()
    for batch in batches(SourceFile(path, path.name), list(columns), errors, SourceConfig(format=format)):
        found += zip(batch.numbers, batch.table.to_pylist(), strict=True)
    return found, errors.counts


def error_of(path: Path, format: str = "jsonl") -> str | None:
    """The line that reading the file ends in."""
    try:
        read(path, format, skip=False)
    except UserError as error:
        return error.line
    return None


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(rows_of_json, max_size=8), block=st.sampled_from([40, 2**20]), bom=st.booleans())
def test_a_number_in_a_column_of_texts_changes_nothing_for_the_other_rows(
    lines: list[str], block: int, bom: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.jsonl"
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.sources.formats.BATCH_BYTES", block)
        for last in ({**GOOD, "q": "12"}, {**GOOD, "q": 12}):
            first = json.dumps(GOOD)
            text = "\ufeff" * bom + "\n".join([first, *lines, json.dumps(last)])
            path.write_text(text, encoding="utf-8", newline="")
            results.append((read(path), error_of(path)))
    assert results[0] == results[1]
    (found, bad), error = results[0]
    assert found[0] == (1, GOOD) and found[-1] == (len(lines) + 2, {**GOOD, "q": "12"})
    assert len(found) + sum(bad.values()) + sum(not line.strip(" \t") for line in lines) == len(lines) + 2
    assert (error is None) == (not bad)


@pytest.mark.parametrize("format", ["jsonl", "json"])
def test_a_huge_number_is_a_text(format: str, tmp_path: Path) -> None:
    path, number = tmp_path / "rows", 10**400
    row = json.dumps({"q": number, "a": ["гугол"]})
    path.write_text(row if format == "jsonl" else f"[{row}]", encoding="utf-8")
    assert read(path, format) == ([(1, {"q": str(number), "a": ["гугол"]})], {})


def test_each_odd_line_is_right_or_has_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), *ODD_LINES]), encoding="utf-8", newline="")
    found, bad = read(path)
    assert [row["q"] for _, row in found] == [
        GOOD["q"], "целый 😀", "чужое", None, "без ответа", None, "большое", "с меткой", "возврат",
    ]  # fmt: skip
    assert bad == {
        "broken json: not an object": 2,
        "broken json: cut off": 1,
        "duplicate key": 1,
        "half of a surrogate pair in column q": 1,
        "nan instead of a text in column q": 1,
        "-inf instead of a text in column q": 1,
        "broken json: Extra data": 2,
        "wrong type dict in column q": 1,
        "wrong type int in a list in column a": 1,
        "wrong type str in column a": 1,
        "broken json: Invalid control character at": 1,
    }


@pytest.mark.parametrize("format", ["jsonl", "json"])
def test_lines_and_arrays_of_the_same_rows_have_the_same_bad_ones(format: str, tmp_path: Path) -> None:
    lines = [json.dumps(GOOD), *(line for line in ODD_LINES if line.strip("\ufeff\r \t")[-1:] in ("}", "]", "l"))]
    lines = [
        line.strip("\ufeff\r") for line in lines if "}{" not in line and "сырой" not in line and line[-2:] != '"да"'
    ]
    lines = [line for line in lines if not line.endswith('["да"')]
    path = tmp_path / "rows"
    path.write_text("\n".join(lines) if format == "jsonl" else f"[{', '.join(lines)}]", encoding="utf-8")
    found, bad = read(path, format)
    assert len(found) == 9 and sum(bad.values()) == len(lines) - 9 == 9


def test_the_row_after_others_that_are_left_out_keeps_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(GOOD), "", "[]", json.dumps(GOOD), ""]), encoding="utf-8")
    errors, source = RowErrors("data.sources.mine", skip=True), SourceConfig(format="jsonl")
    [batch] = batches(SourceFile(path, "rows.jsonl"), ["q", "a"], errors, source)
    assert batch.row(1) == "rows.jsonl, row 4"


ROWS = [{"q": f"Вопрос {n}?", "a": f"Ответ {n}."} for n in range(3)]
DOCUMENTS = {
    "an array": ROWS,
    "data": {"version": 2, "data": ROWS, "errors": []},
    "data after its description": {"meta": {"rows": 3}, "train": ROWS},
    "rows by key": {str(n): row for n, row in enumerate(ROWS)},
    "rows by key after its version": {"version": 2, **{str(n): row for n, row in enumerate(ROWS)}},
}


def test_a_document_too_large_to_be_parsed_as_a_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.sources.json_rows.LARGEST_DOCUMENT", 2**20)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD]) + " " * 2**20, encoding="utf-8")
    assert "more than 1 MB (rows.json); save it as json lines, and set" in str(error_of(path, "json"))


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("rows", [2, 1024])
def test_rows_of_a_document_are_found(name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.sources.json_rows.DOCUMENT_ROWS", rows)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(DOCUMENTS[name], ensure_ascii=False, indent=1), encoding="utf-8")
    assert read(path, "json") == (list(enumerate(ROWS, start=1)), {})


BY_COLUMNS = "the table is stored by columns (rows); write it as an array of objects"


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("json", {"q": ["а", "б"], "a": ["в", "г"]}, BY_COLUMNS),
        ("json", {"q": {"0": "а"}, "a": {"0": "б"}}, BY_COLUMNS),
        ("json", {"columns": ["q", "a"], "data": [["а", "б"]]}, "it has no rows, only columns, data (rows); write it"),
        ("json", {"data": ROWS, "test": ROWS}, "rows in 'test' and elsewhere"),
        ("json", {"0": {"q": "а", "a": "б"}, "1": "в"}, "broken json: not an object (rows, row 2)"),
        ("json", {"data": [{"question": "а"}]}, "no column q (rows); columns found: question: str"),
        ("json", ROWS[0], "json lines instead of one document (rows); set data.sources.mine.format to jsonl"),
        ("json", '[{"q": "а", "a": "б"} {"q": "в"}]', "Expecting ',' delimiter (rows, line 1, character 2"),
        ("json", '[{"q": "а", "a": "б"}] []', "broken json: Extra data (rows, line 1, character 2"),
        ("json", '[{"q": "а", "a": "б"}, {"q": "в', "broken json: cut off (rows, line 1, character "),
        ("json", '{"0": {"q": "а", "a": "б"}, "1": {"q": "в', "broken json: cut off"),
        ("json", '{"q": "а", "a": "б"}\n{"q": "в"}', "json lines instead of one document"),
        ("json", {"meta": {"q": 1}, "data": ROWS}, "rows in 'data' and elsewhere"),
        ("json", '{"0": {"q": "а", "a": "б"}, "0": {"q": "в", "a": "г"}}', "duplicate key (rows)"),
        ("json", "null", "not json (rows)"),
        ("json", "q,a", "not json (rows)"),
        ("jsonl", ROWS, "one json document instead of json lines (rows); set data.sources.mine.format to json"),
        ("jsonl", {"data": ROWS}, "one json document instead of json lines"),
        ("jsonl", {"0": ROWS[0]}, "one json document instead of json lines"),
        ("jsonl", '{\n "data": [\n', "one json document instead of json lines"),
        ("jsonl", '[\n {"q": 1},\n', "one json document instead of json lines"),
        ("jsonl", '["а", "б"]\n', "broken json: not an object (rows, row 1)"),
        ("jsonl", "q,a\nа,б\n", "Expecting value (rows, row 1); fix the file, or set data.sources.mine.format if"),
    ],
)
def test_a_document_in_another_form_is_refused_with_the_right_advice(
    format: str, content: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "rows"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    assert message in str(error_of(path, format))


def test_the_cases_of_the_shared_folder(shared_data: Path) -> None:
    for name, format in (("bom_int.jsonl", "jsonl"), ("dict_of_rows.json", "json")):
        found, bad = read(shared_data.parent / "cases" / name, format, columns=("query", "pos", "neg"))
        assert [number for number, _ in found] == list(range(1, 13)) and bad == {}
        assert found[0][1]["query"] == "Как называется столица Франции?"

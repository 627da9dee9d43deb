"""Csv: quotes, nulls, delimiters and encodings; lost rows are reported."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.data import SourceConfig
from data.sources.batch import LONGEST_ROW, RowErrors
from data.sources.files import SourceFile
from data.sources.formats import batches
from pipeline.core.errors import UserError

PAIRS = [(f"вопрос {n}", f"ответ {n}") for n in range(20)]
LINES = [f"{question},{answer}\n" for question, answer in PAIRS]


def read(path: Path, skip: bool = False, columns: tuple[str, ...] = ("q", "a"), **writing: Any) -> Any:
    """(number, fields) of each good row, and the bad ones by their reason."""
    errors, found = RowErrors("data.sources.mine", skip), list[Any]()
    for batch in batches(SourceFile(path, "rows.csv"), list(columns), errors, SourceConfig(format="csv", **writing)):
        rows = (tuple(row.values()) for row in batch.table.to_pylist())
        found += zip(batch.numbers, rows, strict=True)
    return found, errors.counts


fields = st.text(st.sampled_from('аб,;"\n \t0'), max_size=6)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(fields, fields), max_size=6),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    block=st.sampled_from([5, 2**20]),
)
def test_what_a_csv_writer_wrote_is_read(
    rows: list[tuple[str, str]],
    delimiter: str,
    quoting: Any,
    end: str,
    block: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path, text = tmp_path_factory.getbasetemp() / "rows.csv", io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([("q", "a"), *rows])
    path.write_text(text.getvalue(), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.sources.formats.BATCH_BYTES", block)
        found, bad = read(path, delimiter=delimiter)
    assert bad == {}
    assert [tuple(text or "" for text in row) for _, row in found] == rows


def test_batches_stay_small_where_all_rows_have_line_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, row = tmp_path / "rows.csv", '"первая\nвторая\nтретья","да\nнет"\n'
    path.write_text("q,a\n" + row * 100, encoding="utf-8")
    monkeypatch.setattr("data.sources.formats.BATCH_BYTES", 10 * len(row.encode()))
    found = batches(SourceFile(path, "rows.csv"), ["q", "a"], RowErrors("mine"), SourceConfig(format="csv"))
    sizes = [batch.table.num_rows for batch in found]
    assert sum(sizes) == 100 and max(sizes) <= 11


def test_an_empty_field_is_null_also_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('\ufeffq,a\n"",б\n,"в ""г"""\n\nд,\n', encoding="utf-8")
    assert read(tmp_path / "rows.csv")[0] == [(1, (None, "б")), (2, (None, 'в "г"')), (3, ("д", None))]


@pytest.mark.parametrize("closed", ["", 'вопрос,в кавычке"\n', 'вопрос,"в кавычках"\n'])
def test_a_quote_that_stays_open_costs_one_row(closed: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("q,a\n" + LINES[0] + 'вопрос,"экран\n' + "".join(LINES[1:]) + closed, encoding="utf-8")
    with pytest.raises(UserError, match=r"mine: an? .*quote .*rows.csv, row 2, line 3\); .*mine.quotes to false"):
        read(path)
    found, bad = read(path, skip=True)
    assert [row for _, row in found][:20] == PAIRS and len(found) == 20 + bool(closed)
    assert sum(bad.values()) == 1


def test_a_quote_that_stays_open_over_a_large_file_ends_before_memory_does(tmp_path: Path) -> None:
    limit = csv.field_size_limit(1000)
    (tmp_path / "rows.csv").write_text('q,a\nвопрос,"' + "строка\n" * 1000, encoding="utf-8")
    try:
        with pytest.raises(UserError, match=r"a row of more than 64 MB \(rows.csv, row 1\)"):
            read(tmp_path / "rows.csv", skip=True)
    finally:
        csv.field_size_limit(limit)
    assert limit == LONGEST_ROW


def test_long_texts_of_many_lines_are_not_open_quotes(tmp_path: Path) -> None:
    poem = "Мороз и солнце, день чудесный\nЕще ты дремлешь, друг прелестный\n" * 50
    recipe = "Масло 0,5 кг\nМука 1,5 кг\nСоль 0,1 кг\nСахар 0,2 кг"
    listed = "масло,\nмука,\nсоль,\nсахар,\nвода"
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("q", "a"), ("стихи", poem), ("рецепт", recipe), ("список", listed)])
    assert [row for _, row in read(path)[0]] == [("стихи", poem), ("рецепт", recipe), ("список", listed)]


def test_quotes_may_be_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('q\ta\n"Ода\t"к" радости"\n15" экран\t"\n', encoding="utf-8")
    assert read(path, delimiter="\t", quotes=False)[0] == [(1, ('"Ода', '"к" радости"')), (2, ('15" экран', '"'))]


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "utf-16", "utf-8", "utf-8-sig"])
@pytest.mark.parametrize(("delimiter", "called"), [(";", "';'"), ("\t", "tab")])
def test_another_delimiter_and_encoding(encoding: str, delimiter: str, called: str, tmp_path: Path) -> None:
    path, names = tmp_path / "rows.csv", ("вопрос", "ответ")
    text = "".join(delimiter.join(row) + "\r\n" for row in [names, *PAIRS])
    path.write_bytes(text.encode(encoding))
    assert [row for _, row in read(path, columns=names, encoding=encoding, delimiter=delimiter)[0]] == PAIRS
    with pytest.raises(UserError, match=f"separated by {called}, not ','.*set data.sources.mine.delimiter to {called}"):
        read(path, columns=names, encoding=encoding)
    if "utf-8" not in encoding:
        for skip in (False, True):
            with pytest.raises(UserError, match=r"set data.sources.mine.encoding"):
                read(path, columns=names, delimiter=delimiter, skip=skip)
    else:
        with pytest.raises(UserError, match=r"the file is in UTF-8 \(rows.csv\); remove data.sources.mine.encoding"):
            read(path, columns=names, delimiter=delimiter, encoding="cp1251")


def test_bytes_of_another_encoding_below_an_english_header_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"q,a\n" + "да,нет\nno,yes\n".encode("cp1251"))
    with pytest.raises(UserError, match=r"invalid UTF-8 \(rows.csv, row 1, character 1\).*mine.encoding .* cp1251"):
        read(path)
    assert read(path, skip=True) == ([(2, ("no", "yes"))], {"invalid UTF-8": 1})
    path.write_bytes("q,a\nда,нет".encode("cp1251") + b"\x98\n")
    with pytest.raises(UserError, match=r"invalid cp1251 \(rows.csv, row 1, character 7\)"):
        read(path, encoding="cp1251")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q,a\rб,в\r", r"lines end in \r only"),
        ('q,"a\nб,в\n', "a quote is never closed (rows.csv, header, line 1)"),
        ("q,a\nб\rв,г\n", "broken csv: new-line character seen in unquoted field"),
        ("q,a\nб,в,г\n", "wrong number of fields (rows.csv, row 1: 3 for 2 columns)"),
        ("q,b\nб,в\n", "no column a"),
        ('{"q": "б", "a": "в"}\n', "the file is JSON, not csv (rows.csv); set data.sources.mine.format to jsonl"),
        ('[{"q": "б", "a": "в"},\n', "set data.sources.mine.format to json"),
    ],
)
def test_what_is_not_csv_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(content.encode())
    with pytest.raises(UserError) as error:
        read(tmp_path / "rows.csv")
    assert message in error.value.line


def test_the_case_of_the_shared_folder(shared_data: Path) -> None:
    path = shared_data.parent / "cases" / "unbalanced_quote.csv"
    with pytest.raises(UserError, match=r"a quote is never closed \(rows.csv, row 5, line 6\)"):
        read(path, columns=("query", "pos"))
    found, bad = read(path, skip=True, columns=("query", "pos"))
    assert len(found) == 11 and bad == {"a quote is never closed": 1}

"""Json lines and json arrays as Arrow tables; every bad row is named by its number."""

import io
import json
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.json

from data.batch import BATCH_BYTES, Batch, RowErrors, wanted_columns
from pipeline.errors import UserError

STRING_LIST = pa.list_(pa.string())


def json_lines(stream: IO[bytes], file: str, columns: list[str], errors: RowErrors) -> Iterator[Batch]:
    row, chosen, rest = 1, None, b""
    while True:
        block = stream.read(BATCH_BYTES)
        lines, rest = _whole_lines(rest + block, last=not block)
        if lines.strip():
            chosen = chosen or _columns_of_first_line(lines, file, columns, errors)
            table, numbers = _parsed_lines(lines, file, row, chosen, errors)
            yield (Batch(table, file, row) if numbers is None else Batch(table, f"{file} (bad rows left out)", row))
        row += lines.count(b"\n")
        if not block:
            return


def _whole_lines(content: bytes, *, last: bool) -> tuple[bytes, bytes]:
    if last:
        return (content if content.endswith(b"\n") or not content else content + b"\n"), b""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _columns_of_first_line(lines: bytes, file: str, columns: list[str], errors: RowErrors) -> list[str]:
    for line in lines.splitlines():
        try:
            first = json.loads(line)
        except ValueError:
            continue
        if isinstance(first, dict):
            found = {name: type(value).__name__ for name, value in first.items()}
            return wanted_columns(columns, found, errors.set_name, file)
    return [column for column in columns if "*" not in column]


def _parsed_lines(
    lines: bytes, file: str, row: int, columns: list[str], errors: RowErrors
) -> tuple[pa.Table, list[int] | None]:
    """The lines as a table; when Arrow refuses, each line on its own tells which one is bad."""
    read = pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    for kind in (pa.string(), STRING_LIST):  # texts, or lists of texts
        schema = pa.schema([(column, kind) for column in columns])
        parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        try:
            if kind == pa.string():
                lines.decode()
            return pa.json.read_json(io.BytesIO(lines), read, parse).select(columns), None
        except (pa.ArrowInvalid, UnicodeDecodeError):
            continue
    return _line_by_line(lines, file, row, columns, errors)


def _line_by_line(
    lines: bytes, file: str, row: int, columns: list[str], errors: RowErrors
) -> tuple[pa.Table, list[int]]:
    rows, numbers = [], []
    for number, line in enumerate(lines.split(b"\n")[:-1], start=row):
        if not line.strip():
            continue
        try:
            content = json.loads(line.decode())
            if not isinstance(content, dict):
                raise ValueError("not an object")
        except UnicodeDecodeError as error:
            errors.bad(f"invalid UTF-8: {error.reason} at byte {error.start}", f"{file}, row {number}")
        except ValueError as error:
            errors.bad(f"broken json: {error}", f"{file}, row {number}")
        else:
            if (kept := _typed(content, columns, f"{file}, row {number}", errors)) is not None:
                rows.append(kept)
                numbers.append(number)
    return _table(rows, columns), numbers


def _typed(content: dict[str, Any], columns: list[str], where: str, errors: RowErrors) -> dict[str, Any] | None:
    """The wanted fields, labels of numbers and truth values as texts; None where one has a wrong type."""
    kept: dict[str, Any] = {}
    for column in columns:
        value = content.get(column)
        if isinstance(value, int | float):
            value = json.dumps(value)
        if not (value is None or isinstance(value, str) or _is_texts(value)):
            errors.bad(f"wrong type {type(value).__name__} in column {column}", where)
            return None
        kept[column] = value
    return kept


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _table(rows: list[dict[str, Any]], columns: list[str]) -> pa.Table:
    kinds = {
        column: STRING_LIST if any(isinstance(row[column], list) for row in rows) else pa.string() for column in columns
    }
    return pa.table({column: pa.array([row[column] for row in rows], kinds[column]) for column in columns})


def json_array(stream: IO[bytes], file: str, columns: list[str], errors: RowErrors) -> Iterator[Batch]:
    """One array of objects, decoded object by object."""
    chosen: list[str] | None = None
    row, rows = 1, list[dict[str, Any]]()
    for content in _array_items(stream, file, errors):
        if chosen is None:
            found = {name: type(value).__name__ for name, value in content.items()}
            chosen = wanted_columns(columns, found, errors.set_name, file)
        kept = _typed(content, chosen, f"{file}, row {row + len(rows)}", errors)
        if kept is not None:
            rows.append(kept)
        if len(rows) == 1024:
            yield Batch(_table(rows, chosen), file, row)
            row, rows = row + len(rows), []
    if rows and chosen:
        yield Batch(_table(rows, chosen), file, row)


def _array_items(stream: IO[bytes], file: str, errors: RowErrors) -> Iterator[dict[str, Any]]:
    decoder, text, row = json.JSONDecoder(), "", 0
    characters = io.TextIOWrapper(stream, encoding="utf-8")  # type: ignore[type-var]
    if characters.read(1).strip("\ufeff") != "[":
        raise UserError(f"{errors.set_name}: no json array", where=file, remedy="set format to jsonl")
    while block := characters.read(2**20):
        text += block
        while True:
            text = text.lstrip(" \t\r\n,")
            try:
                content, end = decoder.raw_decode(text)
            except ValueError:
                break
            row += 1
            yield content
            text = text[end:]
    if text.strip() != "]":
        raise UserError(
            f"{errors.set_name}: broken json",
            where=f"{file}, row {row + 1}",
            remedy="mend the file or get it again",
        )

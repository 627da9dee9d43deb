"""Json lines and json arrays as Arrow tables; every bad row is named by its number."""

import fnmatch
import io
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.json

from data.sources.batch import BATCH_BYTES, LONGEST_ROW, Batch, OptionalColumn, RowErrors, too_long, wanted_columns
from pipeline.core.errors import UserError

NEWLINE = b"\n"
TAIL = 16  # characters at the end of a text that may be the beginning of a word or an escape
TOO_DEEP = "broken json: nested too deeply"
STRING_LIST = pa.list_(pa.string())
ARRAY_ROWS, ARRAY_CHARACTERS = 1024, 2**20  # of a json array, decoded at once


def json_lines(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, block: int = BATCH_BYTES
) -> Iterator[Batch]:
    """One object a line."""
    row, chosen, rest = 1, list[str](), b""
    while True:
        content = stream.read(block)
        lines, rest = _whole_lines(rest + content, last=not content)
        if len(rest) > LONGEST_ROW:
            raise too_long(errors.set_name, f"{file}, row {row + lines.count(NEWLINE)}")
        if lines.strip():
            chosen = _chosen(_objects(lines), chosen, file, columns, errors)
            kinds = _schema(chosen, _list_columns(_objects(lines), chosen))
            table = _parsed_lines(lines, kinds)
            if table is None:
                table = _line_by_line(lines, file, row, kinds, errors)
            yield Batch(table, file, row)
        row += lines.count(NEWLINE)
        if not content:
            return


def _whole_lines(content: bytes, *, last: bool) -> tuple[bytes, bytes]:
    if last:
        return (content if content.endswith(b"\n") or not content else content + b"\n"), b""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _objects(lines: bytes) -> Iterator[dict[str, Any]]:
    """The objects among the lines, whatever else there is."""
    for line in lines.splitlines():
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(content, dict):
            yield content


def _chosen(
    objects: Iterable[dict[str, Any]], known: list[str], file: str, columns: list[str], errors: RowErrors
) -> list[str]:
    """The wanted columns: `known` of earlier objects, or those of the first; what is optional may come with any."""
    objects = iter(objects)
    if not known:
        if (first := next(objects, None)) is None:
            return [column for column in columns if "*" not in column]
        found = [(name, type(value).__name__) for name, value in first.items()]
        known = wanted_columns(columns, found, errors.set_name, file)
    optional = [column for column in columns if isinstance(column, OptionalColumn)]
    known = known + [column for column in optional if "*" not in column and column not in known]
    for pattern in (column for column in optional if "*" in column):
        matches = {name: None for content in objects for name in content if fnmatch.fnmatchcase(name, pattern)}
        known += [name for name in matches if name not in known]
    return known


def _list_columns(objects: Iterable[dict[str, Any]], columns: list[str]) -> set[str]:
    """Which columns hold lists of texts, by the first objects that have something in them."""
    known: dict[str, bool] = {}
    for content in objects:
        found = {name: isinstance(content[name], list) for name in columns if content.get(name) is not None}
        known = found | known
        if len(known) == len(columns):
            break
    return {name for name, is_list in known.items() if is_list}


def _schema(columns: list[str], lists: set[str]) -> pa.Schema:
    return pa.schema([(column, STRING_LIST if column in lists else pa.string()) for column in columns])


def _parsed_lines(lines: bytes, kinds: pa.Schema) -> pa.Table | None:
    """The lines as a table, or None where Arrow refuses any of them."""
    read = pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    parse = pa.json.ParseOptions(explicit_schema=kinds, unexpected_field_behavior="ignore")
    try:
        lines.decode()
        return pa.json.read_json(io.BytesIO(lines), read, parse).select(kinds.names)
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return None


def _line_by_line(lines: bytes, file: str, row: int, kinds: pa.Schema, errors: RowErrors) -> pa.Table:
    """Each line on its own, to name the bad ones by their number."""
    rows = []
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
        except RecursionError:
            errors.bad(TOO_DEEP, f"{file}, row {number}")
        else:
            if (kept := _typed(content, kinds, f"{file}, row {number}", errors)) is not None:
                rows.append(kept)
    return pa.Table.from_pylist(rows, kinds)


def _typed(content: dict[str, Any], kinds: pa.Schema, where: str, errors: RowErrors) -> dict[str, Any] | None:
    """The wanted fields, numbers and truth values as texts; None where one has a wrong type."""
    kept: dict[str, Any] = {}
    for field in kinds:
        value = content.get(field.name)
        if problem := _unwritable(value):
            errors.bad(f"{problem} in column {field.name}", where)
            return None
        if isinstance(value, int | float) and field.type != STRING_LIST:
            value = json.dumps(value)
        fits = _is_texts(value) if field.type == STRING_LIST else isinstance(value, str)
        if value is not None and not fits:
            errors.bad(f"wrong type {type(value).__name__} in column {field.name}", where)
            return None
        kept[field.name] = value
    return kept


def _unwritable(value: Any) -> str | None:
    """What json lets pass and no table holds: NaN and infinity, and halves of characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} instead of a text"
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
            return "half of a surrogate pair"
    return None


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(item is None or isinstance(item, str) for item in value)


def json_array(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, block: int = BATCH_BYTES
) -> Iterator[Batch]:
    """One array of objects, decoded object by object."""
    chosen: list[str] = []

    def wanted() -> Iterator[dict[str, Any]]:
        for content in _array_items(stream, file, errors):
            chosen[:] = _chosen([content], chosen, file, columns, errors)
            yield {name: content[name] for name in chosen if name in content}

    row, items = 1, wanted()
    while objects := list(islice(items, ARRAY_ROWS)):
        kinds = _schema(chosen, _list_columns(objects, chosen))
        numbered = enumerate(objects, start=row)
        rows = [_typed(content, kinds, f"{file}, row {number}", errors) for number, content in numbered]
        if kept := [content for content in rows if content is not None]:
            yield Batch(pa.Table.from_pylist(kept, kinds), file, row)
        row += len(objects)


def _array_items(stream: IO[bytes], file: str, errors: RowErrors) -> Iterator[dict[str, Any]]:
    """The objects of a json array, decoded as their characters come in."""
    decoder, row, at = json.JSONDecoder(), 0, 0
    characters = io.TextIOWrapper(cast(BinaryIO, stream), encoding="utf-8-sig")
    text = characters.read(ARRAY_CHARACTERS).lstrip()
    if not text.startswith("["):
        raise UserError(f"{errors.set_name}: no json array", where=file, remedy="set format to jsonl")
    text = text[1:]
    while True:
        at = _after_separators(text, at)
        try:
            content, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            left = len(text) - at
            more = characters.read(max(ARRAY_CHARACTERS, left)) if _may_go_on(error, text) else ""
            if more and left < LONGEST_ROW:  # twice as much each time: what is long is not decoded again and again
                text, at = text[at:] + more, 0
                continue
            if text[at:].strip() == "]":
                return
            if more:
                raise too_long(errors.set_name, f"{file}, row {row + 1}") from None
            raise UserError(
                f"{errors.set_name}: {TOO_DEEP if isinstance(error, RecursionError) else 'broken json'}",
                where=f"{file}, row {row + 1}",
                remedy="mend the file or get it again",
            ) from error
        row += 1
        if not isinstance(content, dict):
            errors.bad("not an object", f"{file}, row {row}")
            continue
        yield content


def _may_go_on(error: Exception, text: str) -> bool:
    """Whether the text may have failed for want of its end: a text that is wrong before it is not read on."""
    if not isinstance(error, json.JSONDecodeError):
        return False
    return error.msg.startswith("Unterminated") or error.pos >= len(text) - TAIL


def _after_separators(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at

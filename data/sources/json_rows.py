"""Json lines and json documents as Arrow tables, by one decoder and one set of rules; bad rows are numbered."""

import io
import json
import math
import re
from collections.abc import Iterator
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa

from configs.schema.data import SourceConfig
from data.sources.batch import (
    LONGEST_ROW,
    SHOWN_COLUMNS,
    Batch,
    OptionalColumn,
    RowErrors,
    names_like,
    wanted_columns,
)
from data.sources.lines import bad_encoding, text_lines
from pipeline.core.errors import UserError

TAIL = 16  # characters at the end of the buffer that may start a literal or an escape
NO_OBJECT = "broken json: not an object"
STRING_LIST = pa.list_(pa.string())
DOCUMENT_ROWS, DOCUMENT_CHARACTERS = 1024, 2**20  # of a json document, processed at once
WHITESPACE = re.compile(r"[ \t\r\n]*")
DOCUMENT = re.compile(r'[\[{\s]+("[^"]*"\s*:\s*[\[{]?\s*)?')  # the first line of a multi-line document
BY_ROWS = "write it as an array of objects, as pandas' to_json(orient='records') does"


class _Ambiguous(dict[str, Any]):
    """An object with a duplicate key."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    return content if len(content) == len(pairs) else _Ambiguous(content)


DECODER = json.JSONDecoder(object_pairs_hook=_object)


class _Rows:
    """Decoded rows as the wanted columns, each of texts or of lists of texts, like its first value."""

    def __init__(self, file: str, columns: list[str], errors: RowErrors) -> None:
        self.file, self.columns, self.errors = file, columns, errors
        # Such columns may first occur in any row.
        self.patterns: list[str] = [column for column in columns if isinstance(column, OptionalColumn)]
        self.kinds: dict[str, type | None] = {}  # by column: str, list, or None until a row has a value
        self.seen: set[str] = set()
        self.rows: list[list[Any]] = []
        self.numbers: list[int] = []

    def add(self, number: int, content: Any, *, escapes: bool = True) -> None:
        """Keep the row, or report why it is bad; without escapes its texts can't contain lone surrogates."""
        if type(content) is not dict:
            return self.bad("duplicate key" if isinstance(content, _Ambiguous) else NO_OBJECT, number)
        if not self.seen or (self.patterns and not self.seen.issuperset(content)):
            self._add_columns(content)
        row = []
        for name, kind in self.kinds.items():
            value = content.get(name)
            if value is not None and (type(value) is not str or kind is not str or escapes):
                if kind is None:
                    kind = self.kinds[name] = list if type(value) is list else str
                if kind is str and (type(value) in (int, bool) or (type(value) is float and math.isfinite(value))):
                    value = json.dumps(value)
                if problem := _problem(value, kind):
                    if self.columns != ["*"]:
                        return self.bad(f"{problem} in column {name}", number)
                    shown = json.dumps(value)  # no role is known yet: any rendering will do to show the columns
                    value = [shown] if kind is list else shown
            row.append(value)
        self.rows.append(row)
        self.numbers.append(number)

    def bad(self, reason: str, number: int, hint: str = "") -> None:
        """Report a bad row; `hint` is an additional remedy."""
        self.errors.bad(reason, f"{self.file}, row {number}", hint=hint)

    def _add_columns(self, content: dict[str, Any]) -> None:
        columns = self.patterns if self.seen else self.columns
        for name in wanted_columns(columns, _types(content), self.errors, self.file):
            if name not in self.kinds:
                self.kinds[name] = None
                for row in self.rows:
                    row.append(None)
        self.seen.update(content)

    def batches(self) -> Iterator[Batch]:
        """The rows kept since the last call, as one batch, if any."""
        if not self.rows:
            return
        types = [STRING_LIST if kind is list else pa.string() for kind in self.kinds.values()]
        columns = [pa.array(values, kind) for values, kind in zip(zip(*self.rows, strict=True), types, strict=True)]
        yield Batch(pa.table(columns, list(self.kinds)), self.file, self.numbers)
        self.rows, self.numbers = [], []


def _types(content: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, type(value).__name__) for name, value in content.items()]


def _problem(value: Any, kind: type) -> str | None:
    """What is wrong with a value of a column of this kind: its type, a number that is not finite, a lone surrogate."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} instead of a text"
    if type(value) is not kind:
        return f"wrong type {'dict' if isinstance(value, dict) else type(value).__name__}"
    for item in cast(list[Any], value) if kind is list else [value]:
        if type(item) is str:
            try:
                item.encode()
            except UnicodeEncodeError:
                return "half of a surrogate pair"
        elif item is not None:
            return f"wrong type {type(item).__name__} in a list"
    return None


def json_lines(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, source: SourceConfig, block: int
) -> Iterator[Batch]:
    """One object per line; empty lines are skipped."""
    rows, before = _Rows(file, columns, errors), 0
    for lines in text_lines(stream, file, errors, block):
        for number, line in enumerate(lines, start=before + 1):
            if isinstance(line, UnicodeDecodeError):
                bad_encoding(line, source.encoding, f"{file}, row {number}", errors)
                continue
            line = line.strip(" \t\r\ufeff")  # with the byte order mark of an appended file
            if not line:
                continue
            try:
                content = DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                if not rows.seen and DOCUMENT.fullmatch(line):
                    raise _document(file, errors) from error
                other = "" if rows.seen else f"or set {errors.key}.format if it isn't json lines"
                rows.bad(f"broken json: {_reason(error, line)}", number, other)
                continue
            if not rows.seen and _is_document(content, columns):
                raise _document(file, errors)
            rows.add(number, content, escapes="\\u" in line)
        before += len(lines)
        yield from rows.batches()


def _document(file: str, errors: RowErrors) -> UserError:
    return errors.refused("one json document instead of json lines", file, f"set {errors.key}.format to json")


def _is_document(content: Any, columns: list[str]) -> bool:
    """Whether a line contains rows instead of being one."""
    if _has_wanted(content, columns) or not isinstance(content, dict | list):
        return False
    parts = content.values() if isinstance(content, dict) else content
    return any(_has_wanted(part[0] if isinstance(part, list) and part else part, columns) for part in parts)


def _has_wanted(content: Any, columns: list[str]) -> bool:
    return isinstance(content, dict) and any(names_like(column, content) for column in columns)


def json_document(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, source: SourceConfig, block: int
) -> Iterator[Batch]:
    """Rows of one json document: an array of objects, such an array in an object, or an object of objects."""
    rows, text = _Rows(file, columns, errors), _JsonText(stream, file, errors)
    opening = text.next()
    if opening not in ("[", "{"):
        raise text.refused("not json", f"set {errors.key}.format to its real format")
    for number, content in enumerate(text.items() if opening == "[" else _object_rows(text, columns), start=1):
        rows.add(number, content)
        if len(rows.rows) == DOCUMENT_ROWS:
            yield from rows.batches()
    if text.next():
        raise text.broken("extra content after its end")
    yield from rows.batches()


def _object_rows(text: "_JsonText", columns: list[str]) -> Iterator[Any]:
    """Rows of an object: either one of its values is an array of rows, or each value is a row."""
    place: str | None = None  # where the rows are: the key of the array, or "" for the values themselves
    others: dict[str, tuple[str, Any]] = {}  # the other members by key: first character, and first value
    for key in text.members():
        opening = text.next()
        values = text.items() if opening == "[" else iter([text.value()])
        first = next(values, None)
        if place == "" or _has_wanted(first, columns):
            here = key if opening == "[" else ""
            if place not in (None, here) or (
                place is None and here == "" and "{" in (part[0] for part in others.values())
            ):
                raise text.refused(f"rows in {key!r} and elsewhere", BY_ROWS)
            place = here
            yield first
        elif len(others) < SHOWN_COLUMNS or _has_wanted({key: None}, columns):
            others[key] = opening, first
        for value in values:
            if place == key:
                yield value
    if place is None:
        raise _no_rows(text, others, columns)


def _no_rows(text: "_JsonText", others: dict[str, tuple[str, Any]], columns: list[str]) -> UserError:
    """The error for a document without rows, with a remedy for what it seems to be."""
    wanted = [begin for key, (begin, _) in others.items() if _has_wanted({key: None}, columns)]
    if text.next() or any(begin not in "[{" for begin in wanted):
        return text.refused("json lines instead of one document", f"set {text.errors.key}.format to jsonl")
    if wanted:
        return text.refused("the table is stored by columns", BY_ROWS)
    for _, first in others.values():
        if isinstance(first, dict):
            wanted_columns(columns, _types(first), text.errors, text.file)
    return text.refused(f"it has no rows, only {', '.join(others) or 'nothing'}", BY_ROWS)


class _JsonText:
    """A json document, parsed value by value as it is read."""

    def __init__(self, stream: IO[bytes], file: str, errors: RowErrors) -> None:
        self.characters = io.TextIOWrapper(cast(BinaryIO, stream), encoding="utf-8-sig")
        self.file, self.errors = file, errors
        self.text, self.at, self.row = "", 0, 0

    def next(self) -> str:
        """The next non-blank character, without taking it; empty at the end."""
        while True:
            match = WHITESPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or not self._more(DOCUMENT_CHARACTERS):
                return self.text[self.at : self.at + 1]

    def _more(self, characters: int) -> bool:
        more = self.characters.read(characters)
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def take(self, *allowed: str) -> str:
        """Take the next character, which must be one of these."""
        found = self.next()
        if not found or found not in allowed:
            raise self.broken(f"{found!r} instead of {' or '.join(allowed)}" if found else "cut off")
        self.at += 1
        return found

    def value(self) -> Any:
        """Take the next value."""
        self.next()
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or not self._more(DOCUMENT_CHARACTERS):  # a number may go on
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                left, may_go_on = len(self.text) - self.at, False
                if isinstance(error, json.JSONDecodeError):  # an error before the end won't be fixed by reading on
                    may_go_on = error.msg.startswith("Unterminated") or error.pos >= len(self.text) - TAIL
                if not may_go_on or not self._more(max(DOCUMENT_CHARACTERS, left)):
                    raise self.broken(_reason(error, self.text)) from error
                if left > LONGEST_ROW:  # doubled each time, so that long values are decoded few times
                    raise self.errors.too_long(f"{self.file}, row {self.row + 1}") from None

    def items(self) -> Iterator[Any]:
        """Take an array, value by value."""
        for _ in self._parts("[", "]"):
            yield self.value()
            self.row += 1

    def members(self) -> Iterator[str]:
        """Take an object, key by key; the caller must take each value before the next key."""
        for _ in self._parts("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise self.broken("a key that is not a string")
            self.take(":")
            yield key

    def _parts(self, opening: str, closing: str) -> Iterator[None]:
        """Take the brackets and commas around parts, each of which the caller takes."""
        self.take(opening)
        if self.next() == closing:
            self.take(closing)
            return
        yield
        while self.take(",", closing) == ",":
            yield

    def refused(self, what: str, remedy: str) -> UserError:
        """The error for a document in an unsupported form."""
        return self.errors.refused(what, self.file, remedy)

    def broken(self, reason: str) -> UserError:
        """The error for a damaged document, even where bad rows are skipped: the next row's start is unknown."""
        where = f"{self.file}, row {self.row + 1}"
        return self.errors.refused(f"broken json: {reason}", where, "fix the file or download it again")


def _reason(error: Exception, text: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        ended = error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())
        return "cut off" if ended else error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)

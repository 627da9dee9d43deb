"""Json lines and json documents as Arrow tables, by one decoder and one set of rules; bad rows are numbered."""

import json
import math
import re
from collections.abc import Iterator
from itertools import dropwhile
from typing import IO, Any, cast

import pyarrow as pa

from configs.schema.data import SourceConfig
from data.sources.batch import SHOWN_COLUMNS, Batch, OptionalColumn, RowErrors, names_like, wanted_columns
from data.sources.lines import bad_encoding, text_lines
from pipeline.core.errors import UserError

NO_OBJECT = "broken json: not an object"
STRING_LIST = pa.list_(pa.string())
DOCUMENT_ROWS = 1024  # of a json document, in a batch
LARGEST_DOCUMENT = 2**30  # bytes: it is parsed as a whole, which takes several times its size
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
    return any(_has_wanted(_first(part), columns) for part in parts)


def _first(part: Any) -> Any:
    """The first item of an array; anything else as it is."""
    return part[0] if isinstance(part, list) and part else part


def _has_wanted(content: Any, columns: list[str]) -> bool:
    return isinstance(content, dict) and any(names_like(column, content) for column in columns)


def json_document(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, source: SourceConfig, block: int
) -> Iterator[Batch]:
    """Rows of one json document: an array of objects, such an array in an object, or an object of objects."""
    content = stream.read(LARGEST_DOCUMENT + 1)
    if len(content) > LARGEST_DOCUMENT:
        what, remedy = f"a json document of more than {LARGEST_DOCUMENT // 2**20} MB", "save it as json lines"
        raise errors.refused(what, file, f"{remedy}, and set {errors.key}.format to jsonl")
    text = content.decode("utf-8-sig")
    try:
        document = DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise _undecodable(error, text, file, errors) from error
    rows, found = _Rows(file, columns, errors), _rows_of(document, file, columns, errors)
    for number, row in enumerate(found, start=1):
        rows.add(number, row)
        if len(rows.rows) == DOCUMENT_ROWS:
            yield from rows.batches()
    yield from rows.batches()


def _undecodable(error: Exception, text: str, file: str, errors: RowErrors) -> UserError:
    """The error for a document that is no json, or more than one."""
    begins, remedy = text.lstrip()[:1], "fix the file or download it again"
    if begins not in ("[", "{"):
        return errors.refused("not json", file, f"set {errors.key}.format to its real format")
    if not isinstance(error, json.JSONDecodeError):
        return errors.refused(f"broken json: {_reason(error, text)}", file, remedy)
    if begins == "{" and error.msg == "Extra data":
        return _lines(file, errors)
    where = f"{file}, line {error.lineno}, character {error.colno}"
    return errors.refused(f"broken json: {_reason(error, text)}", where, remedy)


def _lines(file: str, errors: RowErrors) -> UserError:
    return errors.refused("json lines instead of one document", file, f"set {errors.key}.format to jsonl")


def _rows_of(document: Any, file: str, columns: list[str], errors: RowErrors) -> Iterator[Any]:
    """The rows of a document: those of an array, or an object's values from its first object on.

    Raises UserError where none is a row, or rows are in several places.
    """
    if isinstance(document, list):
        return iter(document)
    if not isinstance(document, dict):
        raise errors.refused("not json", file, f"set {errors.key}.format to its real format")
    if isinstance(document, _Ambiguous):  # whose first rows are lost
        raise errors.refused("duplicate key", file, BY_ROWS)
    places = [key for key, part in document.items() if _has_wanted(_first(part), columns)]
    if not places:
        raise _no_rows(document, file, columns, errors)
    by_key = isinstance(document[places[0]], dict)
    if elsewhere := [key for key in places[1:] if not by_key or isinstance(document[key], list)]:
        raise errors.refused(f"rows in {elsewhere[0]!r} and elsewhere", file, BY_ROWS)
    rows = document.values() if by_key else document[places[0]]
    return dropwhile(lambda part: not isinstance(part, dict), rows) if by_key else iter(rows)


def _no_rows(document: dict[str, Any], file: str, columns: list[str], errors: RowErrors) -> UserError:
    """The error for an object without rows, with a remedy for what it seems to be."""
    wanted = [part for key, part in document.items() if _has_wanted({key: None}, columns)]
    if any(not isinstance(part, list | dict) for part in wanted):
        return _lines(file, errors)
    if wanted:
        return errors.refused("the table is stored by columns", file, BY_ROWS)
    for part in map(_first, document.values()):
        if isinstance(part, dict):
            wanted_columns(columns, _types(part), errors, file)
    shown = ", ".join([*document][:SHOWN_COLUMNS]) or "nothing"
    return errors.refused(f"it has no rows, only {shown}", file, BY_ROWS)


def _reason(error: Exception, text: str) -> str:
    if isinstance(error, json.JSONDecodeError):
        ended = error.msg.startswith("Unterminated") or error.pos >= len(text.rstrip())
        return "cut off" if ended else error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)

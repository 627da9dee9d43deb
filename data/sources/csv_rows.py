"""Csv as Arrow tables; a bad row is reported by its number (without the header), and by its line where that differs.

Fields are parsed here and not by a library: Arrow silently accepts a file that ends inside a quoted field, and
Python's reader doesn't distinguish an empty field from a missing one.
"""

import re
from collections import deque
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from configs.schema.data import SourceConfig
from data.sources.batch import LONGEST_ROW, Batch, OptionalColumn, RowErrors, names_like, wanted_columns
from data.sources.lines import Line, bad_encoding, text_lines

DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}  # common delimiters, as a config names them
UP_TO_QUOTE = re.compile(r'([^"]*(?:""[^"]*)*)("?)')
SWALLOWED = 3  # lines inside one field that look like rows: a quote was left open

Fields = list[str | None]  # None: an empty field without quotes


class _Csv:
    """Parses lines, read block by block, into rows of fields; the first row is the header."""

    def __init__(self, blocks: Iterator[list[Line]], file: str, errors: RowErrors, source: SourceConfig) -> None:
        self.blocks, self.file, self.errors, self.source = blocks, file, errors, source
        self.lines = deque[Line]()  # read but not yet taken
        self.line = 0  # number of the last line taken
        self.delimiter = delimiter = source.separator
        self.row = -1  # number of the last row read
        self.width = 0  # fields per row
        self.crossed = False  # whether a row began in an earlier block
        mark = re.escape(delimiter)  # between fields, not before a space or line end, as in prose, nor inside a number
        self.between = re.compile(rf"{mark}(?!\s|$)(?!(?<=\d{mark})\d)")

    @property
    def where(self) -> str:
        """The last row read, as errors name it."""
        return f"{self.file}, row {self.row}" if self.row else f"{self.file}, header"

    def has_line(self) -> bool:
        """Read on if needed; false at the end of the file."""
        while not self.lines and (block := next(self.blocks, None)) is not None:
            self.lines.extend(line.removesuffix("\r") if isinstance(line, str) else line for line in block)
        return bool(self.lines)

    def _take(self) -> Line:
        self.line += 1
        return self.lines.popleft()

    def rows(self) -> Iterator[Fields]:
        """Each valid row."""
        while self.has_line():
            line = self._take()
            self.row += line != ""
            if isinstance(line, UnicodeDecodeError):
                bad_encoding(line, self.source.encoding, self.where, self.errors)
            elif '"' in line and self.source.quotes:
                begun, taken = self.line, list[Line]()
                fields = self._quoted(line, taken)
                if not isinstance(fields, str):
                    yield fields
                    continue
                self.lines.extendleft(reversed(taken))  # so that a bad quote costs only one row
                self.line -= len(taken)
                hint = f"or set {self.errors.key}.quotes to false if quotes belong to the texts"
                self.errors.bad(fields, f"{self.where}, line {begun}", hint=hint)
            elif line:
                yield [text or None for text in line.split(self.delimiter)]

    def _quoted(self, line: str, taken: list[Line]) -> Fields | str:
        """The fields of the row that begins with this line, or why it is bad; `taken` gets the row's other lines."""
        fields, at, size = Fields(), 0, len(line)
        while True:
            if not line.startswith('"', at):
                end = line.find(self.delimiter, at)
                fields.append(line[at : None if end < 0 else end] or None)
            else:
                text, end = _up_to_quote(line, at + 1)
                parts = [text]
                while end < 0:
                    self.crossed |= not self.lines
                    following = self._take() if self.has_line() else None
                    taken += [] if following is None else [following]
                    if not isinstance(following, str):
                        return "a quote is never closed"
                    line, size = following, size + len(following) + 1
                    if size > LONGEST_ROW:
                        raise self.errors.too_long(self.where)
                    text, end = _up_to_quote(line, 0)
                    parts.append(text)
                if not line.startswith(self.delimiter, end) and end < len(line):
                    return "a quote is unclosed, or not doubled inside quotes"
                if self._look_like_rows(parts[1:-1]):
                    return "an unclosed quote spans lines that look like rows"
                fields.append("\n".join(parts).replace('""', '"'))
                end = end if end < len(line) else -1
            if end < 0:
                return fields
            at = end + 1

    def _look_like_rows(self, lines: list[str]) -> bool:
        if len(lines) < SWALLOWED or self.width < 2:
            return False
        alike = sum(len(self.between.findall(line)) == self.width - 1 for line in lines)
        return alike >= SWALLOWED and 2 * alike > len(lines)


def _up_to_quote(line: str, at: int) -> tuple[str, int]:
    """The text up to the closing quote, and the position after it; -1 where the line has none."""
    match = UP_TO_QUOTE.match(line, at)
    assert match
    return match[1], match.end() if match[2] else -1


def csv_rows(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, source: SourceConfig, block: int
) -> Iterator[Batch]:
    """Rows with quoted line breaks; an empty field without quotes is null."""
    csv = _Csv(text_lines(stream, file, errors, block), file, RowErrors(errors.key), source)
    rows = csv.rows()
    if csv.has_line() and isinstance(header := csv.lines[0], str):
        _refuse_header(header, file, columns, errors, source)
    names = [name or "" for name in next(rows, [])]
    if not names:
        return
    chosen = wanted_columns(columns, [(name, "text") for name in names], errors, file)
    places = [names.index(name) for name in chosen]
    csv.errors, csv.width = errors, len(names)
    kept, numbers = list[Fields](), list[int]()

    def batch() -> Batch:
        arrays = [pa.array(values, pa.string()) for values in zip(*kept, strict=True)]
        return Batch(pa.table(arrays, chosen), file, tuple(numbers))

    for fields in rows:
        if len(fields) != len(names):
            errors.bad("wrong number of fields", f"{csv.where}: {len(fields)} for {len(names)} columns")
            continue
        kept.append([fields[place] for place in places])
        numbers.append(csv.row)
        if csv.crossed or not csv.lines:
            yield batch()
            kept, numbers, csv.crossed = [], [], False
    if kept:
        yield batch()


def _refuse_header(header: str, file: str, columns: list[str], errors: RowErrors, source: SourceConfig) -> None:
    """Raise UserError for a header with another delimiter, JSON, or a file that is a single line."""
    if "\r" in header:
        raise errors.refused("lines end in \\r only", file, "save the file with \\n line ends")

    def names(delimiter: str) -> list[str]:
        return [name.strip(' "') for name in header.split(delimiter)]

    own, required = names(source.separator), [name for name in columns if not isinstance(name, OptionalColumn)]
    if len(own) > 1 and all(names_like(name, own) for name in required):
        return
    for other, called in DELIMITERS.items():
        found = names(other)
        if len(found) > 1 and other != source.separator and all(names_like(name, found) for name in required):
            what = f"the header is separated by {called}, not {DELIMITERS.get(source.separator, 'that')}"
            raise errors.refused(what, file, f"set {errors.key}.delimiter to {called}")
    if header.startswith(("{", "[")):
        kind = "jsonl" if header.startswith("{") and header.endswith("}") else "json"
        raise errors.refused("the file is JSON, not csv", file, f"set {errors.key}.format to {kind}")

"""Csv as Arrow tables; a bad row is reported by its number (without the header), and by its line where that differs.

Python's reader parses them and not Arrow's, which accepts a file that ends inside a quoted field.
"""

import csv
import re
from collections import deque
from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from configs.schema.data import SourceConfig
from data.sources.batch import LONGEST_ROW, Batch, OptionalColumn, RowErrors, names_like, wanted_columns
from data.sources.lines import Line, bad_encoding, text_lines

DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}  # common delimiters, as a config names them
SWALLOWED = 3  # lines inside one field that look like rows: a quote was left open
QUOTES = {  # what is wrong, by how the reader's message begins
    "unexpected end": "a quote is never closed",
    "'": "a quote is unclosed, or not doubled inside quotes",
}

csv.field_size_limit(LONGEST_ROW)


class _Csv:
    """Rows of fields from blocks of lines, and the iterator over a row's lines for Python's reader."""

    def __init__(self, blocks: Iterator[list[Line]], file: str, errors: RowErrors, source: SourceConfig) -> None:
        self.blocks, self.file, self.errors, self.source = blocks, file, errors, source
        self.lines = deque[Line]()  # read but not yet taken
        self.taken = list[str]()  # the lines of the current row
        self.line = 0  # number of the last line taken
        self.row = -1  # number of the last row read
        self.width = 0  # fields per row
        self.crossed = False  # whether a row began in an earlier block
        mark = re.escape(source.separator)  # not before a space or line end, as in prose, nor inside a number
        self.between = re.compile(rf"{mark}(?!\s|$)(?!(?<=\d{mark})\d)")

    @property
    def where(self) -> str:
        """The last row read, as errors name it."""
        return f"{self.file}, row {self.row}" if self.row else f"{self.file}, header"

    def has_line(self) -> bool:
        """Read on if needed; false at the end of the file."""
        while not self.lines and (block := next(self.blocks, None)) is not None:
            self.lines.extend(line.removesuffix("\r") if isinstance(line, str) else line for line in block)
            self.crossed |= bool(self.taken)
        return bool(self.lines)

    def _take(self) -> Line:
        self.line += 1
        return self.lines.popleft()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Take a line of the current row; a line that can't be decoded ends the row."""
        if not self.has_line() or not isinstance(line := self.lines[0], str):
            raise StopIteration
        self._take()
        self.taken.append(line)
        return f"{line}\n"

    def rows(self) -> Iterator[list[str]]:
        """Each valid row."""
        reader = csv.reader(
            self,
            delimiter=self.source.separator,
            quoting=csv.QUOTE_MINIMAL if self.source.quotes else csv.QUOTE_NONE,
            strict=True,
        )
        while self.has_line():
            line = self.lines[0]
            self.row += line != ""
            if isinstance(line, UnicodeDecodeError):
                self._take()
                bad_encoding(line, self.source.encoding, self.where, self.errors)
                continue
            begun = self.line + 1
            try:
                fields = next(reader)
                problem = "an unclosed quote spans lines that look like rows" if self._look_like_rows(fields) else None
            except csv.Error as error:
                if "field limit" in str(error):
                    raise self.errors.too_long(self.where) from error
                quote = [found for begin, found in QUOTES.items() if str(error).startswith(begin)]
                problem = quote[0] if quote else f"broken csv: {error}"
            if problem:
                self.lines.extendleft(reversed(self.taken[1:]))  # so that a bad quote costs only one row
                self.line = begun
                hint = f"or set {self.errors.key}.quotes to false if quotes belong to the texts"
                self.errors.bad(problem, f"{self.where}, line {begun}", hint=hint)
            elif fields:
                yield fields
            self.taken.clear()

    def _look_like_rows(self, fields: list[str]) -> bool:
        """Whether a field holds lines that look like rows."""
        for field in fields if len(self.taken) > SWALLOWED and self.width > 1 else ():
            lines = field.split("\n")[1:-1]
            alike = sum(len(self.between.findall(line)) == self.width - 1 for line in lines)
            if alike >= SWALLOWED and 2 * alike > len(lines):
                return True
        return False


def csv_rows(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, source: SourceConfig, block: int
) -> Iterator[Batch]:
    """Rows with quoted line breaks; an empty field is null."""
    lines = _Csv(text_lines(stream, file, errors, block), file, RowErrors(errors.key), source)
    rows = lines.rows()
    if lines.has_line() and isinstance(header := lines.lines[0], str):
        _refuse_header(header, file, columns, errors, source)
    names = next(rows, [])
    if not names:
        return
    chosen = wanted_columns(columns, [(name, "text") for name in names], errors, file)
    places = [names.index(name) for name in chosen]
    lines.errors, lines.width = errors, len(names)
    kept, numbers = list[list[str | None]](), list[int]()

    def batch() -> Batch:
        arrays = [pa.array(values, pa.string()) for values in zip(*kept, strict=True)]
        return Batch(pa.table(arrays, chosen), file, tuple(numbers))

    for fields in rows:
        if len(fields) != len(names):
            errors.bad("wrong number of fields", f"{lines.where}: {len(fields)} for {len(names)} columns")
            continue
        kept.append([fields[place] or None for place in places])
        numbers.append(lines.row)
        if lines.crossed or not lines.lines:
            yield batch()
            kept, numbers, lines.crossed = [], [], False
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

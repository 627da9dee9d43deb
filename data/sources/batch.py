"""Shared by all format readers: a batch of rows, bad rows, and the wanted columns."""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from configs.schema.data import set_name
from pipeline.core.errors import UserError

BATCH_BYTES = 8 * 2**20  # of the columns read; bounds memory
BATCH_ROWS = 16_384
LONGEST_ROW = 2**26  # bytes; anything longer is another format, or made to exhaust memory
SHOWN_COLUMNS, NAME_CHARACTERS = 30, 40  # a file's columns in an error, and characters of each name


class OptionalColumn(str):
    """The name or pattern of a column that a file may lack."""


@dataclass
class RowErrors:
    """Handles bad rows of one set: an error that names the row, or a count by reason."""

    key: str  # the set's config key, such as data.sources.mine
    skip: bool = False
    counts: Counter[str] = field(default_factory=Counter)

    def refused(self, what: str, where: str, remedy: str) -> UserError:
        """The error for what ends reading, even where bad rows are skipped."""
        return UserError(f"{set_name(self.key)}: {what}", where=where, remedy=remedy)

    def too_long(self, where: str) -> UserError:
        """The error for a row beyond the size limit."""
        remedy = f"fix the file, or set {self.key}.format to its real format"
        return self.refused(f"a row of more than {LONGEST_ROW // 2**20} MB", where, remedy)

    def bad(self, reason: str, where: str, rows: int = 1, *, hint: str = "") -> None:
        """Count `rows` bad rows, or raise UserError for the one at `where`; `hint` is an additional remedy."""
        if not self.skip:
            other = f"{hint}, or" if hint else "or"
            remedy = f"fix the file, {other} set data.on_bad_row=skip to count such rows and continue"
            raise self.refused(reason, where, remedy)
        self.counts[reason] += rows


@dataclass(frozen=True)
class Batch:
    """Rows of one file and their row numbers, counted from 1; bad rows between them are left out."""

    table: pa.Table
    file: str
    numbers: Sequence[int]

    def row(self, position: int) -> str:
        """A row of the batch as errors name it."""
        return f"{self.file}, row {self.numbers[position]}"


def names_like(pattern: str, names: Iterable[str]) -> list[str]:
    """The name equal to `pattern`, else all names it matches: a name may contain `[` or `*`."""
    among = list(names)
    return [pattern] if pattern in among else [name for name in among if fnmatch.fnmatchcase(name, pattern)]


def wanted_columns(columns: list[str], found: Sequence[tuple[str, str]], errors: RowErrors, file: str) -> list[str]:
    """The columns with patterns resolved; `found` are (name, type) of the file's columns.

    Raises UserError: a column is missing, or ambiguous because the file has it twice.
    """
    counts = Counter(name for name, _ in found)
    chosen: list[str] = []
    for column in columns:
        matches = names_like(column, counts)
        if not matches and not isinstance(column, OptionalColumn):
            there = ", ".join(f"{name[:NAME_CHARACTERS]}: {kind}" for name, kind in found[:SHOWN_COLUMNS])
            raise errors.refused(f"no column {column}", file, f"columns found: {there}; set {errors.key}.columns")
        chosen += [name for name in matches if name not in chosen]
    for name in chosen:
        if counts[name] > 1:
            what = f"{counts[name]} columns are called {name}"
            raise errors.refused(what, file, "rename or drop all but one of them")
    return chosen


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def is_list_of_texts(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of texts."""
    return is_list(kind) and is_text(kind.value_type)

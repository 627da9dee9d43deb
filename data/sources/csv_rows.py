"""Csv as Arrow tables; every bad row is named by its number, the header not counted."""

import codecs
import csv
import functools
import io
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from data.sources.batch import BATCH_BYTES, LONGEST_ROW, Batch, RowErrors, too_long, wanted_columns

NO_TEXT = "\uffff"  # a noncharacter of Unicode, which no text to be exchanged holds
codecs.register_error("as_noncharacter", lambda error: (NO_TEXT, error.end))  # type: ignore[attr-defined]


def csv_rows(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, block: int = BATCH_BYTES
) -> Iterator[Batch]:
    """Rows with quoted line breaks; an empty field without quotes is null."""
    header = stream.readline(LONGEST_ROW)
    if len(header) == LONGEST_ROW:
        raise too_long(errors.set_name, f"{file}, header")
    names = next(csv.reader([header.decode("utf-8-sig")]), [])
    chosen = wanted_columns(columns, [(name, "text") for name in names], errors.set_name, file)

    def skipped(bad: pa.csv.InvalidRow) -> str:
        errors.bad("wrong number of fields", file)
        return "skip"

    reader = pa.csv.open_csv(
        Decodable(stream) if errors.skip else stream,
        pa.csv.ReadOptions(use_threads=False, block_size=block, column_names=names),
        pa.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skipped if errors.skip else None),
        pa.csv.ConvertOptions(
            include_columns=chosen,
            column_types=dict.fromkeys(chosen, pa.binary()),
            strings_can_be_null=True,
            null_values=[""],
            quoted_strings_can_be_null=False,
        ),
    )
    row = 1
    for part in reader:
        yield Batch(_decoded(pa.Table.from_batches([part]), file, row, errors), file, row)
        row += part.num_rows


class Decodable(io.RawIOBase):
    """A stream with every byte that is not UTF-8 as NO_TEXT: Arrow can't leave out a row that it can't decode."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.ready = stream, b""
        self.decoder = codecs.getincrementaldecoder("utf-8")("as_noncharacter")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = b"more"
        while chunk and not self.ready:
            chunk = self.stream.read(len(buffer))
            self.ready = self.decoder.decode(chunk, final=not chunk).encode()
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size


def _decoded(table: pa.Table, file: str, row: int, errors: RowErrors) -> pa.Table:
    """The table as texts; rows that are not UTF-8 are refused, or left out where they are marked."""
    try:
        texts = table.cast(pa.schema([(name, pa.string()) for name in table.column_names]))
    except pa.ArrowInvalid:
        for number, values in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True), row):
            try:
                b"\n".join(value or b"" for value in values).decode()
            except UnicodeDecodeError as error:
                errors.bad(f"invalid UTF-8: {error.reason}", f"{file}, row {number}")
        raise
    if not errors.skip:
        return texts
    marked = [pc.fill_null(pc.match_substring(column, NO_TEXT), False) for column in texts.columns]
    whole = pc.invert(functools.reduce(pc.or_, marked))
    if lost := len(whole) - pc.sum(whole).as_py():
        errors.bad("invalid UTF-8", file, lost)
    return texts.filter(whole)

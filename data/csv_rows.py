"""Csv as Arrow tables; every bad row is named by its number, the header not counted."""

import csv
from collections.abc import Iterator
from typing import IO

import pyarrow as pa
import pyarrow.csv

from data.batch import BATCH_BYTES, LONGEST_ROW, Batch, RowErrors, refuse_repeated, too_long, wanted_columns


def csv_rows(
    stream: IO[bytes], file: str, columns: list[str], errors: RowErrors, block: int = BATCH_BYTES
) -> Iterator[Batch]:
    """Rows with quoted line breaks; an empty field without quotes is null."""
    header = stream.readline(LONGEST_ROW)
    if len(header) == LONGEST_ROW:
        raise too_long(errors.set_name, f"{file}, header")
    names = next(csv.reader([header.decode("utf-8-sig")]), [])
    chosen = wanted_columns(columns, dict.fromkeys(names, "text"), errors.set_name, file)
    refuse_repeated(names, chosen, errors.set_name, file)

    def skipped(bad: pa.csv.InvalidRow) -> str:
        errors.bad("wrong number of fields", file)
        return "skip"

    reader = pa.csv.open_csv(
        stream,
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


def _decoded(table: pa.Table, file: str, row: int, errors: RowErrors) -> pa.Table:
    """The table as texts; rows that are not UTF-8 are refused or left out."""
    schema = pa.schema([(name, pa.string()) for name in table.column_names])
    try:
        return table.cast(schema)
    except pa.ArrowInvalid:
        kept = []
        for number, values in enumerate(zip(*(column.to_pylist() for column in table.columns), strict=True)):
            try:
                kept.append([value if value is None else value.decode() for value in values])
            except UnicodeDecodeError as error:
                errors.bad(f"invalid UTF-8: {error.reason} at byte {error.start}", f"{file}, row {row + number}")
        return pa.Table.from_pylist([dict(zip(schema.names, values, strict=True)) for values in kept], schema)

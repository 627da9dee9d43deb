"""Files as a stream of small Arrow tables: parquet, json lines, one json array, csv; plain, .gz or inside a tar."""

import csv
import fnmatch
import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from data.sources.batch import BATCH_BYTES, BATCH_ROWS, Batch, RowErrors, wanted_columns
from data.sources.csv_rows import csv_rows
from data.sources.files import SourceFile
from data.sources.json_rows import json_array, json_lines
from pipeline.core.errors import UserError, first_line

FIRST_ROWS, FIRST_BYTES = 100, 2**18  # what is read where only the beginning is wanted
BUFFER = 2**20  # of a parquet column; whole column chunks would take as much memory as the file pleases


def batches(file: SourceFile, format: str, columns: list[str], errors: RowErrors) -> Iterator[Batch]:
    """The file's rows with the wanted columns, in order; a trailing `*` in a column's name stands for all that match.

    Raises:
        UserError: a missing column (with those found), or a file that can't be read as what it is said to be.
    """
    with _unreadable(errors.set_name, file.name):
        if format == "parquet":
            yield from _parquet(file, columns, errors)
            return
        for name, stream in _streams(file):
            read = {"jsonl": json_lines, "json": json_array, "csv": csv_rows}[format]
            yield from read(stream, name, columns, errors, FIRST_BYTES if file.beginning else BATCH_BYTES)


def _parquet(file: SourceFile, columns: list[str], errors: RowErrors) -> Iterator[Batch]:
    with file.open() as stream, pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER) as parquet:
        found = [(field.name, str(field.type)) for field in parquet.schema_arrow]
        chosen = wanted_columns(columns, found, errors.set_name, file.name)
        row = 1
        rows = FIRST_ROWS if file.beginning else _batch_rows(parquet)
        for part in parquet.iter_batches(rows, columns=chosen, use_threads=False):
            part.validate(full=True)  # texts that are not UTF-8 would crash what reads them
            yield Batch(pa.Table.from_batches([part]).select(chosen), file.name, row)
            row += part.num_rows


def _batch_rows(parquet: pq.ParquetFile) -> int:
    """Rows that hold at most about BATCH_BYTES, by the file's own sizes of its row groups.

    Those of single columns would be nearer where a file has more columns than are wanted; but Arrow ends the process
    when it is asked for a column whose size statistics are forged. What reads the rows raises an error over these.
    """
    meta = parquet.metadata
    if meta.num_rows == 0:
        return BATCH_ROWS
    size = sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * meta.num_rows // max(size, 1)))


def _streams(file: SourceFile) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, bytes) of the file, or of the members of the tar archive that match its pattern."""
    if file.member is None:
        with file.open() as stream:
            yield file.name, stream
        return
    found = False
    with file.open() as stream, _opened(stream) as archive:
        for entry in archive:
            if entry.isfile() and fnmatch.fnmatchcase(entry.name, file.member):
                found = True
                yield f"{file.name}::{entry.name}", cast(IO[bytes], archive.extractfile(entry))
    if not found:
        raise UserError(f"no member {file.member}", where=file.name, remedy="mend the pattern after :: in files")


def _opened(stream: IO[bytes]) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=stream, mode="r|*")
    except TypeError as error:  # what the library makes of a gzip header that is cut off
        raise tarfile.ReadError("its header is cut off") from error


@contextmanager
def _unreadable(set_name: str, file: str) -> Iterator[None]:
    """Errors of damaged files as one line, with the row where the library names it."""
    remedy = "the file is damaged or cut off: get it again, or mend data.sources." + set_name + ".format"
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{set_name}: no such file", where=str(error.filename or file), remedy=remedy) from error
    except EOFError as error:
        raise UserError(f"{set_name}: the compressed file is cut off", where=file, remedy=remedy) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{set_name}: invalid UTF-8", where=file, remedy=remedy) from error
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError, csv.Error, pa.ArrowException, OSError) as error:
        found = re.search(r"[Rr]ow #?(\d+)", str(error))
        where = f"{file}, row {found[1]}" if found else file
        first = first_line(error)
        raise UserError(f"{set_name}: can't be read: {first}", where=where, remedy=remedy) from error

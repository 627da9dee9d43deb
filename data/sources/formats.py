"""Files as a stream of small Arrow tables: parquet, json lines, one json document, csv; plain, .gz or inside a tar."""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from tarfile import EOFHeaderError, HeaderError, ReadError  # type: ignore[attr-defined]
from typing import IO, Self, cast

import pyarrow as pa
import pyarrow.parquet as pq

from configs.schema.data import SourceConfig
from data.sources.batch import BATCH_BYTES, BATCH_ROWS, Batch, RowErrors, wanted_columns
from data.sources.csv_rows import csv_rows
from data.sources.files import SourceFile, is_chosen
from data.sources.json_rows import json_document, json_lines
from data.sources.lines import UTF_8, encoding_hint, in_utf8
from pipeline.core.errors import first_line

FIRST_ROWS, FIRST_BYTES = 100, 2**18  # read where only the beginning is wanted
BUFFER = 2**20  # per parquet column; whole column chunks would need unbounded memory
MAGIC_BYTES = 40  # at the start of a file, which identify its kind
UNPACK = "decompress it, or use gzip"
MAGIC = {  # first bytes -> kind of file, remedy
    b"version https://git-lfs": ("a git-lfs pointer and not the file", "get the file itself: git lfs pull"),
    b"PAR1\x15": ("parquet", "set {key}.format to parquet"),
    b"\x1f\x8b": ("compressed with gzip", "rename it to end in .gz"),
    b"BZh91AY": ("compressed with bzip2", UNPACK),
    b"\xfd7zXZ": ("compressed with xz", UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed with zstandard", UNPACK),
    b"PK\x03\x04": ("a zip archive or an Excel sheet", "unpack it, or save the sheet as csv"),
    b"\xd0\xcf\x11\xe0": ("an Excel sheet", "save it as csv"),
    b"\xff\xfe": ("text in UTF-16", "set {key}.encoding to utf-16"),
    b"\xfe\xff": ("text in UTF-16", "set {key}.encoding to utf-16"),
    b"<!doctype html": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
COMPRESSED = (b"\x1f\x8b", b"BZh91AY", b"\xfd7zXZ")  # as tar archives may be


def batches(file: SourceFile, columns: list[str], errors: RowErrors, source: SourceConfig) -> Iterator[Batch]:
    """The file's rows with the wanted columns, in order; a trailing `*` in a column's name selects all that match.

    Raises UserError: a missing column (with those found), or a file that can't be read in the configured format or is
    cut off within a row, an archive member or the file itself.
    """
    with _unreadable(errors, file.name, source.encoding):
        if source.format == "parquet":
            yield from _parquet(file, columns, errors)
            return
        read = {"jsonl": json_lines, "json": json_document, "csv": csv_rows}[source.format]
        for name, stream in _streams(file, errors):
            text = io.BufferedReader(cast(io.RawIOBase, stream), 2**16)
            expected = () if source.encoding == UTF_8 else UTF_16  # letters in other encodings
            _refuse_other_kinds(text.peek(MAGIC_BYTES), name, errors, expected)
            utf8 = in_utf8(text, source.encoding, name, errors)
            yield from read(utf8, name, columns, errors, source, FIRST_BYTES if file.beginning else BATCH_BYTES)


def _refuse_other_kinds(head: bytes, file: str, errors: RowErrors, expected: Collection[bytes]) -> None:
    """Raise UserError for a file whose first bytes show that it is neither text nor of an expected kind."""
    for beginning, (kind, remedy) in MAGIC.items():
        if beginning not in expected and (head.startswith(beginning) or head.lower().startswith(beginning)):
            raise errors.refused(f"it is {kind}", file, remedy.format(key=errors.key))


@contextmanager
def _opened(file: SourceFile, errors: RowErrors, expected: Collection[bytes]) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed where its name ends in .gz or .tgz."""
    compressed = file.name.endswith((".gz", ".tgz"))
    with file.open() as stream:
        _refuse_other_kinds(
            stream.read(MAGIC_BYTES), file.name, errors, (*expected, b"\x1f\x8b") if compressed else expected
        )
        stream.seek(0)
        with gzip.open(stream) if compressed else nullcontext(stream) as content:
            yield cast(IO[bytes], content)


def _parquet(file: SourceFile, columns: list[str], errors: RowErrors) -> Iterator[Batch]:
    with _opened(file, errors, [b"PAR1\x15"]) as stream:
        with pq.ParquetFile(stream, pre_buffer=False, buffer_size=BUFFER) as parquet:
            found = [(field.name, str(field.type)) for field in parquet.schema_arrow]
            chosen = wanted_columns(columns, found, errors, file.name)
            row = 1
            rows = FIRST_ROWS if file.beginning else _batch_rows(parquet)
            for part in parquet.iter_batches(rows, columns=chosen, use_threads=False):
                part.validate(full=True)  # texts that are not UTF-8 would crash later code
                yield Batch(pa.Table.from_batches([part]).select(chosen), file.name, range(row, row + part.num_rows))
                row += part.num_rows
            if chosen and row - 1 != parquet.metadata.num_rows:
                raise pa.ArrowInvalid(f"{row - 1} rows found, {parquet.metadata.num_rows} in its footer")


def _batch_rows(parquet: pq.ParquetFile) -> int:
    """The number of rows that hold about BATCH_BYTES, by the row group sizes in the file's metadata.

    Column sizes would be more precise where a file has more columns than are wanted, but Arrow crashes the process
    when asked for a column with forged size statistics, which raise an error when rows are read.
    """
    meta = parquet.metadata
    if meta.num_rows == 0:
        return BATCH_ROWS
    size = sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * meta.num_rows // max(size, 1)))


def _streams(file: SourceFile, errors: RowErrors) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, bytes) of the file, or of the members of the tar archive that match its pattern."""
    if file.member is None:
        with _opened(file, errors, UTF_16) as stream:
            yield file.name, stream
        return
    found = False
    with _opened(file, errors, COMPRESSED) as stream:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_WholeArchive) as archive:
            for entry in archive:
                if entry.isfile() and is_chosen(entry.name, file.member):
                    found = True
                    yield f"{file.name}::{entry.name}", cast(IO[bytes], archive.extractfile(entry))
        while stream.read(BUFFER):  # up to the checksum at the end
            pass
    if not found:
        raise errors.refused(f"no member {file.member}", file.name, "fix the pattern after :: in files")


class _WholeArchive(tarfile.TarInfo):
    """Members of an archive up to its end marker: tarfile treats a damaged or missing header as the end."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """The next member."""
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"the archive is damaged or cut off: {error}") from error


@contextmanager
def _unreadable(errors: RowErrors, file: str, encoding: str) -> Iterator[None]:
    """Turn errors over damaged files into a UserError, with the row where the library names it."""
    remedy = f"the file is damaged or cut off: download it again, or fix {errors.key}.format"
    try:
        yield
    except FileNotFoundError as error:
        raise errors.refused("no such file", str(error.filename or file), remedy) from error
    except EOFError as error:
        raise errors.refused("the compressed file is cut off", file, remedy) from error
    except UnicodeDecodeError as error:
        what, remedy = f"invalid {encoding}: {error.reason}", f"fix the file, {encoding_hint(errors.key)}"
        raise errors.refused(what, file, remedy) from error
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError, pa.ArrowException, OSError) as error:
        if hasattr(error, "response"):  # the Hub's, not about the file's contents
            raise
        found = re.search(r"[Rr]ow #?(\d+)", str(error))
        where = f"{file}, row {found[1]}" if found else file
        raise errors.refused(f"can't be read: {first_line(error)}", where, remedy) from error

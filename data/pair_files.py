"""How pairs are stored: the files that the data stage writes for each set, and rows held in memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.pairs.hashing import Hashes
from pipeline.core.errors import UserError

SCHEMA = [("anchor", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))]
ROWS_AT_ONCE = 16_384
REMEDY = "run make data again"
GROUP_BYTES = 2**28  # of a row group; Arrow can't build a text column of 2**31 bytes


class PairWriter(AbstractContextManager["PairWriter"]):
    """A parquet file of pairs, written batch by batch."""

    def __init__(self, path: Path, scored: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.schema = pa.schema(SCHEMA + ([("score", pa.float32())] if scored else []))
        self.file = pq.ParquetWriter(path, self.schema, compression="zstd", compression_level=1)

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, pairs: pl.DataFrame) -> None:
        rows = max(1, len(pairs) * GROUP_BYTES // max(int(pairs.estimated_size()), 1))
        for some in pairs.select(self.schema.names).iter_slices(rows):
            alone = some.select(pl.all().gather(pl.int_range(pl.len())))  # a slice keeps the lists of all rows
            self.file.write_table(alone.to_arrow().cast(self.schema))


def read_pairs(path: Path) -> pa.Table:
    """A `PairWriter`'s file, always with a score column; raises UserError where it is damaged."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError("not a parquet file", where=str(path), remedy=REMEDY) from error
    if "score" not in table.column_names:
        table = table.append_column("score", pa.nulls(len(table), pa.float32()))
    return table


def read_frames(path: Path) -> Iterator[pl.DataFrame]:
    """The rows of a `PairWriter`'s file in batches that don't cross row groups."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(ROWS_AT_ONCE, [group]):
                yield pl.DataFrame(batch)


def write_keys(path: Path, keys: Hashes) -> None:
    """Write the keys of a set's training texts, for comparison with other sets' dev rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"key": keys}), path, compression="zstd")


def read_keys(path: Path) -> Hashes:
    """The keys that `write_keys` wrote."""
    return pq.read_table(path)["key"].to_numpy()


def detached(rows: pl.DataFrame) -> pl.DataFrame:
    """A copy of the rows: polars' slices keep the whole batch that they were taken from in memory."""
    return pl.DataFrame(rows.to_arrow())

"""Pairs as they are kept: the files that the data stage writes for each set, and rows held in memory."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data.hashing import Hashes

SCHEMA = [("anchor", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))]


class PairWriter:
    """A parquet file of pairs, written batch by batch."""

    def __init__(self, path: Path, scored: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.schema = pa.schema(SCHEMA + ([("score", pa.float32())] if scored else []))
        self.file = pq.ParquetWriter(path, self.schema, compression="zstd", compression_level=1)

    def __enter__(self) -> "PairWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, pairs: pl.DataFrame) -> None:
        self.file.write_table(pairs.select(self.schema.names).to_arrow().cast(self.schema))


def write_keys(path: Path, keys: Hashes) -> None:
    """Keys of a set's trained texts, for the comparison with other sets' dev rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"key": keys}), path, compression="zstd")


def read_keys(path: Path) -> Hashes:
    """What `write_keys` wrote."""
    return pq.read_table(path)["key"].to_numpy()


def detached(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with texts of their own: polars' point into the batch that they were taken from, which would stay."""
    return pl.DataFrame(rows.to_arrow())

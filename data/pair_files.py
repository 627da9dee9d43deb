"""How pairs are stored: the files that the data stage writes for each set, and rows held in memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.pairs.hashing import Hashes
from data.sources.batch import is_list_of_texts, is_text
from pipeline.core.errors import UserError

SCHEMA = [("anchor", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))]
ROWS_AT_ONCE = 16_384
REMEDY = "run make data again"
GROUP_BYTES = 2**28  # of a row group; Arrow can't build a text column of 2**31 bytes


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
        rows = max(1, len(pairs) * GROUP_BYTES // max(int(pairs.estimated_size()), 1))
        for some in pairs.select(self.schema.names).iter_slices(rows):
            alone = some.select(pl.all().gather(pl.int_range(pl.len())))  # a slice keeps the lists of all rows
            self.file.write_table(alone.to_arrow().cast(self.schema))


def read_pairs(path: Path) -> pa.Table:
    """A `PairWriter`'s file, always with a score column; raises UserError for a file in another layout."""
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # also that texts are UTF-8
    except (OSError, pa.ArrowException) as error:
        raise UserError("not a parquet file", where=str(path), remedy=REMEDY) from error
    for name, holds in {"anchor": is_text, "positive": is_text, "negatives": is_list_of_texts}.items():
        if name not in table.column_names:
            raise UserError(f"column {name} is missing", where=str(path), remedy=REMEDY)
        if not holds(kind := table.schema.field(name).type):
            raise UserError(f"column {name} holds {kind}, not text", where=str(path), remedy=REMEDY)
    if not len(table):
        raise UserError("the set has no rows", where=str(path), remedy=REMEDY)
    for name in ("anchor", "positive"):
        blank = pc.or_(pc.equal(table[name], ""), pc.utf8_is_space(table[name]))
        if table[name].null_count or pc.any(blank).as_py():
            raise UserError(f"column {name} has empty texts", where=str(path), remedy=REMEDY)
    if "score" not in table.column_names:
        table = table.append_column("score", pa.nulls(len(table), pa.float32()))
    if not pa.types.is_floating(table.schema.field("score").type):
        raise UserError("column score doesn't hold floats", where=str(path), remedy=REMEDY)
    if not np.isfinite(table["score"].drop_null().to_numpy()).all():
        raise UserError("column score has values that are not finite", where=str(path), remedy=REMEDY)
    return table.select([*(name for name, _ in SCHEMA), "score"])


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

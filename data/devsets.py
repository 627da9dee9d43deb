"""The dev rows of all sets, once every set's training texts are known."""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from data import splits
from data.pair_files import PairWriter, read_keys


def write_dev(stage: Path, folder: Path, names: list[str]) -> dict[str, int]:
    """Write dev/<set>.parquet below `folder` from each set's candidates; returns set -> rows.

    A candidate of one set that another set trains on is left out, so that no dev text occurs in training at all.
    """
    keys = {name: read_keys(stage / "keys" / f"{name}.parquet") for name in names}
    trained = np.unique(np.concatenate(list(keys.values()))) if keys else np.empty(0, np.uint64)
    rows: dict[str, int] = {}
    for name in names:
        place = stage / "candidates" / f"{name}.parquet"
        if place.exists():
            candidates = pl.from_arrow(pq.read_table(place))
            assert isinstance(candidates, pl.DataFrame)
            dev = splits.without_trained_negatives(splits.apart_from(candidates, trained)[0], trained)
            if len(dev):
                rows[name] = len(dev)
                with PairWriter(folder / "dev" / f"{name}.parquet", "score" in dev.columns) as writer:
                    writer.write(dev)
    return rows

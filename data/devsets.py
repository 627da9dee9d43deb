"""The dev rows of all sets, once every set's training texts are known."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from data import splits
from data.pair_files import PairWriter, read_keys
from data.pairs.hashing import Hashes, contained


def write_dev(stage: Path, folder: Path, names: list[str]) -> dict[str, int]:
    """Write dev/<set>.parquet below `folder` from each set's candidates; returns set -> rows.

    A candidate of one set that another set trains on is left out, so that no dev text occurs in training at all.
    """
    places = {name: stage / "candidates" / f"{name}.parquet" for name in names}
    candidates = {name: pl.DataFrame(pq.read_table(place)) for name, place in places.items() if place.exists()}
    trained = _trained(candidates.values(), (stage / "keys" / f"{name}.parquet" for name in names))
    rows: dict[str, int] = {}
    for name, frame in candidates.items():
        dev = splits.without_trained_negatives(splits.apart_from(frame, trained)[0], trained)
        if len(dev):
            rows[name] = len(dev)
            with PairWriter(folder / "dev" / f"{name}.parquet", "score" in dev.columns) as writer:
                writer.write(dev)
    return rows


def _trained(candidates: Iterable[pl.DataFrame], keys: Iterable[Path]) -> Hashes:
    """Sorted keys of the candidates' texts that any set trains on; one set's keys are in memory at a time."""
    asked = [splits.pair_texts(frame) for frame in candidates]
    texts = np.unique(np.concatenate(asked)) if asked else np.empty(0, np.uint64)
    found = np.zeros(len(texts), bool)
    for path in keys:
        found |= contained(texts, read_keys(path))
    return texts[found]

"""Which pairs of a set are used: a seeded sample of at most `max_rows`, and dev rows that training never sees."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from configs.schema.data import DevConfig
from data.pair_files import PairWriter, detached, read_keys
from data.pairs.cleaning import flat_negatives, with_negatives
from data.pairs.constructions import NO_PAIRS
from data.pairs.hashing import NO_KEYS, Hashes, combined, contained, fraction, text_hashes

SALT = 0x5A17  # makes the keys differ from those that choose dev rows


def sample(frames: Iterable[pl.DataFrame], size: int, seed: int) -> tuple[pl.DataFrame, int]:
    """The `size` pairs with the smallest seeded keys, in their original order, and the number of the others.

    At most three times as many are in memory.
    """
    offered, held, seed = 0, list[pl.DataFrame](), seed ^ SALT
    for pairs in frames:
        keys = combined(text_hashes(pairs["anchor"], seed), text_hashes(pairs["positive"], seed))
        places = pl.Series("place", np.arange(offered, offered + len(pairs)))
        offered += len(pairs)
        held.append(pairs.with_columns(pl.Series("key", keys), places))
        if sum(map(len, held)) > 3 * size:
            held = [detached(pl.concat(held).sort("key", "place").head(size))]
    if not held:
        return NO_PAIRS, 0
    smallest = pl.concat(held).sort("key", "place").head(size)
    return smallest.sort("place").drop("key", "place"), max(0, offered - size)


class DevSlice:
    """Holds back the anchors with the smallest seeded keys while a set is streamed.

    The key depends only on the anchor's text and the seed, so a question that occurs in two sets is held back in
    both. At most twice the wanted anchors are in memory; the bound on the key falls as more arrive.
    """

    def __init__(self, config: DevConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.bound = config.share if config.anchors else 0.0
        self.frames: list[pl.DataFrame] = []

    def hold_back(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Take candidates out of `pairs`; returns the rest, and former candidates that no longer qualify."""
        keys = fraction(text_hashes(pairs["anchor"], self.seed))
        held = keys < self.bound
        if not held.any():
            return pairs
        self.frames.append(detached(pairs.with_columns(pl.Series("key", keys)).filter(pl.Series(held))))
        return pl.concat([pairs.filter(pl.Series(~held)), *self._surplus(2 * self.config.anchors)])

    def _surplus(self, most: int) -> list[pl.DataFrame]:
        """Shrink to the `most` anchors with the smallest keys; returns the removed rows, if any."""
        held = pl.concat(self.frames)
        keys = np.unique(held["key"].to_numpy())
        if len(keys) <= most:
            return []
        self.bound = float(keys[most])
        self.frames = [held.filter(pl.col("key") < self.bound)]
        return [held.filter(pl.col("key") >= self.bound).drop("key")]

    def finish(self) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
        """(dev candidates, frames that go back to training)."""
        if not self.frames:
            return NO_PAIRS, []
        surplus = self._surplus(self.config.anchors)
        return pl.concat(self.frames).drop("key"), surplus


def whole_groups(dev: pl.DataFrame, trained: Iterable[pl.DataFrame], seed: int) -> tuple[NDArray[np.bool_], ...]:
    """Masks: which dev candidates stay, then which rows of each frame of `trained` join them.

    Rows that share an anchor or a positive, directly or through other rows, form a group, which is held back whole or
    not at all. The candidates' groups are visited by their smallest keys, and each one that still fits is taken:
    together they have no more anchors than the candidates had.
    """
    keys = [(text_hashes(frame["anchor"]), text_hashes(frame["positive"])) for frame in chain([dev], trained)]
    anchors, positives = map(np.concatenate, zip(*keys, strict=True))
    group = linked(anchors, positives)
    sizes = np.bincount(group[np.unique(anchors, return_index=True)[1]])
    room, staying = dev["anchor"].n_unique(), []
    for each in dict.fromkeys(group[np.argsort(text_hashes(dev["anchor"], seed), kind="stable")].tolist()):
        if sizes[each] <= room:
            staying.append(each)
            room -= sizes[each]
    ends = np.cumsum([len(anchors) for anchors, _ in keys])[:-1]
    return tuple(np.split(np.isin(group, staying), ends))


def linked(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.int32]:
    """A group number for each pair: equal where pairs share a text (or hash), directly or through other pairs."""
    texts, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, other = np.split(places, 2)
    edges = coo_array((np.ones(len(one), bool), (one, other)), shape=(len(texts), len(texts)))
    return connected_components(edges, directed=False)[1][one]


def apart_from(dev: pl.DataFrame, texts: Hashes, *, joins: bool = True) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(dev rows whose anchors share no text with training, the other rows); `texts` are sorted keys of trained texts.

    All rows of an anchor stay together. Where the other rows return to training (`joins`), they may share a text with
    those that stay, so the test is repeated until nothing changes.
    """
    back = dev.clear()
    while True:
        shared = overlap_mask(dev, texts)
        if not shared.any():
            return dev, back
        anchors = dev.filter(pl.Series(shared))["anchor"].unique()
        going = dev["anchor"].is_in(anchors.implode())
        back, dev = pl.concat([back, dev.filter(going)]), dev.filter(~going)
        if not joins:
            return dev, back
        texts = np.union1d(texts, pair_texts(back))


def overlap_mask(pairs: pl.DataFrame, texts: Hashes) -> NDArray[np.bool_]:
    """Which rows have an anchor or a positive in `texts` (sorted keys)."""
    return contained(text_hashes(pairs["anchor"]), texts) | contained(text_hashes(pairs["positive"]), texts)


def without_trained_negatives(dev: pl.DataFrame, texts: Hashes) -> pl.DataFrame:
    """The dev rows without negatives that occur in training."""
    negatives, rows = flat_negatives(dev)
    return with_negatives(dev, negatives, rows, ~contained(text_hashes(negatives), texts))


def pair_texts(pairs: pl.DataFrame) -> Hashes:
    """Sorted distinct keys of all anchors, positives and negatives."""
    columns = [pairs["anchor"], pairs["positive"], flat_negatives(pairs)[0]]
    return np.unique(np.concatenate([text_hashes(column) for column in columns]))


def write_dev(stage: Path, folder: Path, names: list[str]) -> dict[str, int]:
    """Write dev/<set>.parquet below `folder` from each set's candidates; returns set -> rows.

    A candidate of one set that another set trains on is left out, so that no dev text occurs in training at all.
    """
    places = {name: stage / "candidates" / f"{name}.parquet" for name in names}
    candidates = {name: pl.DataFrame(pq.read_table(place)) for name, place in places.items() if place.exists()}
    texts = np.unique(np.concatenate([NO_KEYS, *map(pair_texts, candidates.values())]))
    found = np.zeros(len(texts), bool)
    for name in names:  # one set's keys are in memory at a time
        found |= contained(texts, read_keys(stage / "keys" / f"{name}.parquet"))
    trained, rows = texts[found], dict[str, int]()
    for name, frame in candidates.items():
        dev = without_trained_negatives(apart_from(frame, trained, joins=False)[0], trained)
        if len(dev):
            rows[name] = len(dev)
            with PairWriter(folder / "dev" / f"{name}.parquet", "score" in dev.columns) as writer:
                writer.write(dev)
    return rows

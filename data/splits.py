"""Dev rows: a slice of a set, chosen by anchor, that shares no text with what is trained on."""

from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from configs.schema.data import DevConfig
from data.pair_files import detached
from data.pairs.cleaning import regrouped
from data.pairs.hashing import Hashes, contained, fraction, text_hashes


@dataclass
class DevSlice:
    """Holds back the anchors with the smallest seeded keys, while a set streams by.

    The key depends on the anchor's text and the seed alone, so a question that stands in two sets is held back in
    both. At most twice the wanted anchors are in memory; the bound on the key falls as more arrive.
    """

    config: DevConfig
    seed: int
    bound: float = field(init=False)
    frames: list[pl.DataFrame] = field(default_factory=list)
    anchors: int = 0

    def __post_init__(self) -> None:
        self.bound = self.config.share if self.config.anchors else 0.0

    def hold_back(self, pairs: pl.DataFrame) -> pl.DataFrame:
        """Take candidates out of `pairs`; returns the rest, together with candidates that are none any more."""
        keys = fraction(text_hashes(pairs["anchor"], self.seed))
        held = keys < self.bound
        if not held.any():
            return pairs
        self.frames.append(detached(pairs.with_columns(pl.Series("key", keys)).filter(pl.Series(held))))
        return pl.concat([pairs.filter(pl.Series(~held)), *self._surplus(2 * self.config.anchors)])

    def _surplus(self, most: int) -> list[pl.DataFrame]:
        """Shrink to the `most` anchors with the smallest keys; returns what goes, if anything."""
        held = pl.concat(self.frames)
        keys = np.unique(held["key"].to_numpy())
        if len(keys) <= most:
            return []
        self.bound = float(keys[most])
        self.frames = [held.filter(pl.col("key") < self.bound)]
        return [held.filter(pl.col("key") >= self.bound).drop("key")]

    def finish(self) -> tuple[pl.DataFrame | None, list[pl.DataFrame]]:
        """(dev candidates, frames that go back to training)."""
        if not self.frames:
            return None, []
        surplus = self._surplus(self.config.anchors)
        return pl.concat(self.frames).drop("key"), surplus


def apart_from(dev: pl.DataFrame, texts: Hashes) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(dev rows of anchors that share nothing with the sorted keys of trained texts, the other rows).

    All rows of an anchor stay together. The rows that go back to training may share a text with those that stay, so
    the test is repeated until nothing changes.
    """
    back = dev.clear()
    while True:
        shared = _shares(dev, texts)
        if not shared.any():
            return dev, back
        anchors = dev.filter(pl.Series(shared))["anchor"].unique()
        going = dev["anchor"].is_in(anchors.implode())
        back, dev = pl.concat([back, dev.filter(going)]), dev.filter(~going)
        texts = np.union1d(texts, pair_texts(back))


def _shares(pairs: pl.DataFrame, texts: Hashes) -> NDArray[np.bool_]:
    return contained(text_hashes(pairs["anchor"]), texts) | contained(text_hashes(pairs["positive"]), texts)


def without_trained_negatives(dev: pl.DataFrame, texts: Hashes) -> pl.DataFrame:
    """Dev rows without the negatives that occur in training."""
    counts = dev["negatives"].list.len().to_numpy()
    if counts.sum() == 0:
        return dev
    flat = dev["negatives"].filter(pl.Series(counts > 0)).list.explode()
    kept = ~contained(text_hashes(flat), texts)
    rows = np.repeat(np.arange(len(dev)), counts)
    lists = regrouped(flat.filter(pl.Series(kept)), np.bincount(rows[kept], minlength=len(dev)))
    return dev.with_columns(lists.alias("negatives"))


def pair_texts(pairs: pl.DataFrame) -> Hashes:
    """Sorted distinct keys of all anchors, positives and negatives."""
    counts = pairs["negatives"].list.len()
    columns = [pairs["anchor"], pairs["positive"], pairs["negatives"].filter(counts > 0).list.explode()]
    return np.unique(np.concatenate([text_hashes(column) for column in columns]))

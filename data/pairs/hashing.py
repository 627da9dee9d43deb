"""Stable 64-bit keys of texts (xxh3), for equality tests that hold no texts in memory."""

from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

Hashes = NDArray[np.uint64]
NO_KEYS: Hashes = np.empty(0, np.uint64)


def text_hashes(texts: pl.Series, seed: int = 0) -> Hashes:
    """xxh3-64 of each text's UTF-8 bytes, read directly from the column's buffer; null counts as empty."""
    array = texts.to_arrow()
    if len(array) == 0:
        return NO_KEYS
    _, offsets, content = array.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(array) + 1, array.offset * 8).tolist()
    view = memoryview(content) if content is not None else memoryview(b"")
    digests = (xxh3_64_intdigest(view[start:end], seed) for start, end in pairwise(bounds))
    return np.fromiter(digests, np.uint64, len(array))


def combined(first: Hashes, second: Hashes) -> Hashes:
    """One key from two keys, order-dependent: mixed by the finaliser of splitmix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        mixed = first * np.uint64(0x9E3779B97F4A7C15) + second
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def fraction(hashes: Hashes) -> NDArray[np.float64]:
    """The keys as numbers in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) / 2.0**53


class SeenHashes:
    """A growing set of keys, 8 bytes per key: sorted runs, each more than twice as long as the next."""

    def __init__(self) -> None:
        self.runs: list[Hashes] = []

    def add_new(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Add the keys; True where a key is new to the set, at its first occurrence in `hashes`."""
        new = np.zeros(len(hashes), bool)
        new[np.unique(hashes, return_index=True)[1]] = True
        for run in self.runs:
            new &= ~contained(hashes, run)
        self.runs.append(np.sort(hashes[new]))
        while len(self.runs) > 1 and len(self.runs[-2]) <= 2 * len(self.runs[-1]):
            self.runs[-2:] = [np.sort(np.concatenate(self.runs[-2:]))]
        return new


def contained(hashes: Hashes, ordered: Hashes) -> NDArray[np.bool_]:
    """Which of `hashes` occur in the sorted array `ordered`."""
    if len(ordered) == 0:
        return np.zeros(len(hashes), bool)
    places = np.minimum(np.searchsorted(ordered, hashes), len(ordered) - 1)
    return ordered[places] == hashes

"""A seeded sample of a stream that does not depend on how the stream is cut into batches."""

from collections.abc import Iterator

import numpy as np
import polars as pl

from data.pair_files import detached
from data.pairs.hashing import combined, text_hashes

SALT = 0x5A17  # apart from the keys that choose dev rows


class Sample:
    """The `size` pairs with the smallest seeded keys, in their own order; at most three times as many in memory."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed ^ SALT
        self.offered = 0
        self.held: list[pl.DataFrame] = []

    @property
    def left_out(self) -> int:
        """Pairs offered that are not in the sample."""
        return max(0, self.offered - self.size)

    def offer(self, pairs: pl.DataFrame) -> None:
        """Let the pairs take part."""
        keys = combined(text_hashes(pairs["anchor"], self.seed), text_hashes(pairs["positive"], self.seed))
        places = pl.Series("place", np.arange(self.offered, self.offered + len(pairs)))
        self.offered += len(pairs)
        self.held.append(pairs.with_columns(pl.Series("key", keys), places))
        if sum(map(len, self.held)) > 3 * self.size:
            self.held = [detached(self._smallest())]

    def _smallest(self) -> pl.DataFrame:
        return pl.concat(self.held).sort("key", "place").head(self.size)

    def frames(self) -> Iterator[pl.DataFrame]:
        """The sample."""
        if self.held:
            yield self._smallest().sort("place").drop("key", "place")

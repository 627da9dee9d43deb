"""Evaluation texts that were changed a little: MinHash to find candidates, exact Jaccard similarity to judge them."""

from collections.abc import Iterable

import polars as pl
from datasketch import MinHash, MinHashLSH

from data.pairs.cleaning import comparable

SHINGLE = 5  # characters; words would be too coarse for sentences of ten words
PERMUTATIONS = 128
CANDIDATES = 0.8  # candidates are sought below the threshold: the search misses some of those just above it
SHORTEST = 30  # characters of a comparable form; below it one changed letter already makes another text
LONGER = 1.5  # a text so many times longer than every evaluation text can't be one


class NearIndex:
    """Finds texts whose shingles overlap with those of an evaluation text by at least `threshold` (Jaccard)."""

    def __init__(self, named: Iterable[tuple[str, pl.Series]], threshold: float) -> None:
        self.threshold = threshold
        self.search = MinHashLSH(threshold=CANDIDATES * threshold, num_perm=PERMUTATIONS)
        self.known: dict[int, tuple[str, frozenset[bytes]]] = {}
        self.longest = 0.0
        for name, texts in named:
            for form in comparable(texts).unique(maintain_order=True).to_list():
                if len(form) >= SHORTEST:
                    self._add(name, form)

    def _add(self, name: str, form: str) -> None:
        shingles = _shingles(form)
        self.search.insert(len(self.known), _signature(shingles))
        self.known[len(self.known)] = name, shingles
        self.longest = max(self.longest, LONGER * len(form))

    def find(self, texts: pl.Series) -> pl.Series:
        """For each text the name of an evaluation text it nearly equals, or null."""
        lengths = texts.str.len_chars()
        likely = lengths.is_between(SHORTEST, max(self.longest, SHORTEST)).arg_true()
        names: list[str | None] = [None] * len(texts)
        for place, form in zip(likely.to_list(), comparable(texts.gather(likely)).to_list(), strict=True):
            names[place] = self._match(form)
        return pl.Series(texts.name, names, pl.String)

    def _match(self, form: str) -> str | None:
        if len(form) < SHORTEST or not self.known:
            return None
        shingles = _shingles(form)
        for candidate in sorted(self.search.query(_signature(shingles))):
            name, others = self.known[candidate]
            if len(shingles & others) >= self.threshold * len(shingles | others):
                return name
        return None


def _shingles(form: str) -> frozenset[bytes]:
    return frozenset(form[start : start + SHINGLE].encode() for start in range(len(form) - SHINGLE + 1))


def _signature(shingles: frozenset[bytes]) -> MinHash:
    made = MinHash(num_perm=PERMUTATIONS, seed=1)
    made.update_batch(sorted(shingles))
    return made

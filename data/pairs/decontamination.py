"""Finds texts that must not be trained on: equal up to case, punctuation and spaces, or nearly equal."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

from configs.schema.data import CleaningConfig, DataConfig
from data.pairs.cleaning import Changes, comparable, flat_negatives, no_reason, normalised, with_negatives
from data.pairs.hashing import Hashes, contained, text_hashes

HEAD_CHARACTERS, KEY_CHARACTERS = 96, 48  # of a text, and of its comparable form, compared before the whole text
# Files of the artefact `benchmarks`: texts to remove or report, texts that are always removed, the account.
BENCHMARK_FILE, SAMPLE_FILE, CHECKED_FILE = "benchmarks.parquet", "samples.parquet", "checked.json"
# Near duplicates: MinHash finds candidates, the exact Jaccard similarity of their shingles decides.
SHINGLE = 5  # characters; words would be too coarse for sentences of ten words
PERMUTATIONS = 128
NO_SHINGLES = MinHash(num_perm=PERMUTATIONS, seed=1)  # copied: drawing its permutations takes half of a text's time
CANDIDATES = 0.8  # of the threshold: the search misses some texts just above its own threshold
SHORTEST = 30  # characters of a comparable form; in a shorter one a single changed letter makes another text
LONGER = 1.5  # a text this many times longer than every evaluation text can't match one

Heads = tuple[Hashes, np.ndarray]  # as `heads_of` returns


class TextIndex:
    """Comparable forms of texts as sorted keys, with the name that each text is given under; the first of several.

    Most training texts differ from every evaluation text within the first characters, so the comparable form of a
    whole text is computed only where the heads agree.
    """

    def __init__(self, named: dict[str, pl.Series]) -> None:
        none = pl.DataFrame(schema={"form": pl.String, "name": pl.String})
        parts = (comparable(texts).to_frame("form").with_columns(name=pl.lit(name)) for name, texts in named.items())
        forms = pl.concat([none, *parts])
        forms = forms.filter(pl.col("form").str.len_chars() > 0).unique("form", keep="first", maintain_order=True)
        keys = text_hashes(forms["form"])
        order = np.argsort(keys, kind="stable")
        self.heads = np.unique(text_hashes(forms["form"].str.slice(0, KEY_CHARACTERS)))
        self.texts, self.names = keys[order], forms["name"].gather(order).to_list()

    def find(self, texts: pl.Series, heads: Heads) -> pl.Series:
        """For each text the name under which it is indexed, or null; `heads` are the `heads_of` these texts."""
        found = no_reason(len(texts))
        keys, short = heads
        likely = np.flatnonzero(contained(keys, self.heads) | short)
        keys = text_hashes(comparable(texts.gather(likely)))
        hits = contained(keys, self.texts)
        if hits.any():
            places = np.searchsorted(self.texts, keys[hits])
            found = found.scatter(likely[hits], pl.Series([self.names[place] for place in places]))
        return found


def heads_of(texts: pl.Series) -> Heads:
    """Keys of the texts' heads, and which of these are too short to tell."""
    forms = comparable(texts.str.slice(0, HEAD_CHARACTERS))
    short = (forms.str.len_chars() < KEY_CHARACTERS) & (texts.str.len_chars() > HEAD_CHARACTERS)
    return text_hashes(forms.str.slice(0, KEY_CHARACTERS)), short.to_numpy()


class NearIndex:
    """Finds texts whose shingles have a Jaccard similarity of at least `threshold` with an evaluation text's."""

    def __init__(self, named: dict[str, pl.Series], threshold: float) -> None:
        self.threshold = threshold
        self.search = MinHashLSH(threshold=CANDIDATES * threshold, num_perm=PERMUTATIONS)
        self.numbers: dict[bytes, int] = {}  # of the evaluation texts' shingles
        self.known: list[tuple[str, NDArray[np.int64]]] = []  # name, and numbers of the shingles
        self.longest = 0.0
        for name, texts in named.items():
            forms = comparable(texts).unique(maintain_order=True)
            for form in forms.filter(forms.str.len_chars() >= SHORTEST):
                shingles = _shingles(form)
                self.search.insert(len(self.known), _signature(shingles))
                numbers = (self.numbers.setdefault(shingle, len(self.numbers)) for shingle in shingles)
                self.known.append((name, np.fromiter(numbers, np.int64, len(shingles))))
                self.longest = max(self.longest, LONGER * len(form))

    def find(self, texts: pl.Series) -> pl.Series:
        """For each text the name of an evaluation text that it nearly equals, or null."""
        lengths = texts.str.len_chars()
        likely = lengths.is_between(SHORTEST, max(self.longest, SHORTEST)).arg_true()
        is_own = np.zeros(len(self.numbers), bool)  # a text with a common beginning may have thousands of candidates
        forms = comparable(texts.gather(likely))
        names = {form: self._name(form, is_own) for form in forms.unique()}  # a negative occurs with each positive
        found = forms.replace_strict(names, return_dtype=pl.String)
        return no_reason(len(texts)).scatter(likely, found)

    def _name(self, form: str, is_own: NDArray[np.bool_]) -> str | None:
        """The name of an evaluation text that is near to the form; `is_own` is false for all shingles, and left so."""
        shingles = _shingles(form)
        candidates = sorted(self.search.query(_signature(shingles))) if len(form) >= SHORTEST else []
        own = [self.numbers[shingle] for shingle in shingles if shingle in self.numbers] if candidates else []
        is_own[own] = True
        known = (self.known[candidate] for candidate in candidates)
        counted = ((name, len(numbers), np.count_nonzero(is_own[numbers])) for name, numbers in known)
        near = (name for name, size, both in counted if both >= self.threshold * (len(shingles) + size - both))
        found = next(near, None)
        is_own[own] = False
        return found


def _shingles(form: str) -> frozenset[bytes]:
    return frozenset(form[start : start + SHINGLE].encode() for start in range(len(form) - SHINGLE + 1))


def _signature(shingles: frozenset[bytes]) -> MinHash:
    made = NO_SHINGLES.copy()
    made.update_batch(shingles)
    return made


NOTHING = TextIndex({})


@dataclass(frozen=True)
class Decontamination:
    """What the pairs of a set are checked against; by default nothing."""

    forbidden: TextIndex = NOTHING  # held-out sets, bundled evaluation samples
    benchmarks: TextIndex = NOTHING
    near: NearIndex | None = None  # the benchmarks' texts again, to find slightly changed ones
    removes: bool = True  # whether pairs with a benchmark's text are dropped, or only reported

    @classmethod
    def loaded(cls, data: DataConfig, held_out: dict[str, Path], benchmarks: Path) -> "Decontamination":
        """Loaded with the texts of held-out sets (name -> file) and of the artefact `benchmarks`."""
        # Without glob: a sweep names runs by their overrides, such as languages=[ru,en].
        held_out_texts = {
            f"held out: {name}": pl.concat([*pl.read_parquet(path, columns=["anchor", "positive"], glob=False)])
            for name, path in held_out.items()
        }
        forbidden = held_out_texts | _texts(benchmarks / SAMPLE_FILE, "evaluation sample", data.cleaning)
        texts, settings = _texts(benchmarks / BENCHMARK_FILE, "evaluation", data.cleaning), data.decontamination
        near = NearIndex(texts, settings.threshold) if settings.near_duplicates and texts else None
        return cls(TextIndex(forbidden), TextIndex(texts), near, settings.mode == "remove")

    def find(self, pairs: pl.DataFrame) -> tuple[pl.Series, Counter[str]]:
        """For each pair the held-out set or evaluation that it is dropped for, or null; and the benchmarks found."""
        reasons, reported = no_reason(len(pairs)), Counter[str]()
        columns = [(texts, heads_of(texts)) for texts in (pairs["anchor"], pairs["positive"])]
        for column in columns:
            reasons = reasons.zip_with(reasons.is_not_null(), self.forbidden.find(*column))
        for column in columns:
            found = self._in_benchmarks(*column)
            reported.update(found.drop_nulls().to_list())
            if self.removes:
                reasons = reasons.zip_with(reasons.is_not_null(), found)
        return reasons, reported

    def without_known_negatives(self, pairs: pl.DataFrame) -> tuple[pl.DataFrame, Counter[str]]:
        """The pairs without the negatives for which `find` would drop a pair; and the benchmarks found.

        Pushing a scored text away from questions is training on it, too.
        """
        negatives, rows = flat_negatives(pairs)
        heads = heads_of(negatives)
        found = self._in_benchmarks(negatives, heads)
        unwanted = self.forbidden.find(negatives, heads).is_not_null() | (found.is_not_null() & self.removes)
        if unwanted.any():
            pairs = with_negatives(pairs, negatives, rows, ~unwanted.to_numpy())
        return pairs, Counter(found.drop_nulls().to_list())

    def _in_benchmarks(self, texts: pl.Series, heads: Heads) -> pl.Series:
        found = self.benchmarks.find(texts, heads)
        if self.near is None:
            return found
        unknown = found.is_null().arg_true()
        return found.scatter(unknown, "near " + self.near.find(texts.gather(unknown)))


def _texts(path: Path, kind: str, cleaning: CleaningConfig) -> dict[str, pl.Series]:
    """Texts of the artefact `benchmarks` by task, named as the ledger reports a match.

    Included as they are, and as cleaning leaves them: once, and twice for sets that were cleaned upstream.
    """
    found = pl.read_parquet(path, glob=False)
    once = normalised(found["text"], cleaning, strip_markup=True, changes=Changes())
    twice = normalised(once, cleaning, strip_markup=True, changes=Changes())
    forms = pl.concat([found, found.with_columns(once), found.with_columns(twice)]).unique(maintain_order=True)
    parts = forms.partition_by("task", as_dict=True, maintain_order=True)
    return {f"{kind}: {task}": part["text"] for (task,), part in parts.items()}

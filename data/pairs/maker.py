"""From rows to clean pairs, a frame at a time: no state, so frames may be worked on at once."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from configs.schema.data import DataConfig, SourceConfig
from data.pairs.cleaning import drop_reasons, no_reason, normalised, regrouped, without_wrong_negatives
from data.pairs.constructions import CONSTRUCTIONS, turns
from data.pairs.decontamination import TextIndex
from data.pairs.hashing import Hashes, combined, text_hashes

if TYPE_CHECKING:
    from data.pairs.near_duplicates import NearIndex

TEXT_ROLES = ("anchor", "positive", "title", "text", "summary", "premise", "hypothesis", "query")
LIST_ROLES = ("negative", "pos", "neg")
WRONG_NEGATIVES = "negatives, empty or equal to the positive"


@dataclass
class Surroundings:
    """What one set's preparation takes from outside the set."""

    data: DataConfig
    seed: int
    forbidden: TextIndex  # texts that are never trained on: held-out sets, bundled evaluation samples
    benchmarks: TextIndex  # texts of benchmarks: removed or reported
    near: "NearIndex | None" = None  # the same texts, for finding those that were changed a little
    other_pairs: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))  # of the sets before, sorted
    mirror: str | None = None  # where the model that mines may lie


@dataclass
class Made:
    """Clean pairs out of one frame, with their keys for the duplicate test and what was dropped on the way."""

    pairs: pl.DataFrame
    keys: Hashes
    built: int
    scored: int
    dropped: Counter[str]
    reported: Counter[str]


class PairMaker:
    """Makes and cleans the pairs of one source."""

    def __init__(self, source: SourceConfig, around: Surroundings) -> None:
        self.source, self.around = source, around
        self.cleaning = around.data.cleaning
        self.strip_markup = self.cleaning.strip_markup if source.strip_markup is None else source.strip_markup

    def normalised(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame of roles with mended texts."""
        if self.source.construction == "chat":
            frame = turns(frame)
        return frame.with_columns(
            self._mended(frame[name]) for name in frame.columns if name in (*TEXT_ROLES, *LIST_ROLES)
        )

    def _mended(self, column: pl.Series) -> pl.Series:
        if column.name in LIST_ROLES:
            lengths = column.list.len()
            flat = self._mended_texts(column.filter(lengths > 0).list.explode())
            return regrouped(flat, lengths.to_numpy()).alias(column.name)
        return self._mended_texts(column)

    def _mended_texts(self, texts: pl.Series) -> pl.Series:
        texts = normalised(texts, self.cleaning, self.strip_markup)
        before = self.source.prepend.get(texts.name)
        return texts.zip_with(texts == "", before + texts) if before else texts  # an empty text is dropped later

    def from_rows(self, frame: pl.DataFrame) -> Made:
        """Pairs of rows as they were read."""
        return self.from_normalised(self.normalised(frame))

    def from_normalised(self, frame: pl.DataFrame) -> Made:
        """Pairs of rows whose texts are mended; where the construction needs groups, these are complete."""
        pairs = CONSTRUCTIONS[self.source.construction](frame, self.source, self.around.seed)
        positive = pairs["score"].is_null() | (pairs["score"] == 1)
        made = Made(pairs, np.empty(0, np.uint64), int(positive.sum()), int((~positive).sum()), Counter(), Counter())
        self._drop(made, drop_reasons(made.pairs, self.cleaning, self.source))
        made.pairs, wrong = without_wrong_negatives(made.pairs, self.cleaning.min_characters)
        if wrong:
            made.dropped[WRONG_NEGATIVES] += wrong
        self._drop(made, self._forbidden(made))
        made.keys = self._keys(made.pairs)
        return made

    def _drop(self, made: Made, reasons: pl.Series) -> None:
        if reasons.null_count() < len(reasons):
            made.dropped.update(reasons.drop_nulls().to_list())
            made.pairs = made.pairs.filter(reasons.is_null())

    def _forbidden(self, made: Made) -> pl.Series:
        """Why a pair may not be trained on: the held-out set or evaluation that has one of its texts."""
        reasons = no_reason(len(made.pairs))
        for column in ("anchor", "positive"):
            reasons = reasons.zip_with(reasons.is_not_null(), self.around.forbidden.find(made.pairs[column]))
        for column in ("anchor", "positive"):
            found = self._in_benchmarks(made.pairs[column])
            made.reported.update(found.drop_nulls().to_list())
            if self.around.data.decontamination.mode == "remove":
                reasons = reasons.zip_with(reasons.is_not_null(), found)
        return reasons

    def _in_benchmarks(self, texts: pl.Series) -> pl.Series:
        found = self.around.benchmarks.find(texts)
        if self.around.near is None:
            return found
        unknown = found.is_null().arg_true()
        return found.scatter(unknown, "near " + self.around.near.find(texts.gather(unknown)))

    def _keys(self, pairs: pl.DataFrame) -> Hashes:
        keys = combined(text_hashes(pairs["anchor"]), text_hashes(pairs["positive"]))
        if self.source.negatives_as_rows:
            keys = combined(keys, text_hashes(pairs["negatives"].list.first()))
        return keys

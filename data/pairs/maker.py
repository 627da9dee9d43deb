"""From rows to clean pairs, a frame at a time: no state, so frames may be worked on at once."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from configs.schema.data import CleaningConfig, SourceConfig
from data.pairs.cleaning import drop_reasons, normalised, regrouped, without_wrong_negatives
from data.pairs.constructions import CONSTRUCTIONS, turns
from data.pairs.decontamination import Decontamination
from data.pairs.hashing import Hashes, combined, text_hashes

TEXT_ROLES = ("anchor", "positive", "title", "text", "summary", "premise", "hypothesis", "query")
LIST_ROLES = ("negative", "pos", "neg")
WRONG_NEGATIVES = "negatives, empty or equal to the positive"


@dataclass
class PairBatch:
    """Clean pairs out of one frame, with their keys for the duplicate test and what was dropped on the way."""

    pairs: pl.DataFrame
    built: int  # by the construction
    scored: int  # beside them: rows with a score below 1
    dropped: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    keys: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))

    def drop(self, reasons: pl.Series) -> None:
        """Drop the pairs that have a reason, and count them by it."""
        if reasons.null_count() < len(reasons):
            self.dropped.update(reasons.drop_nulls().to_list())
            self.pairs = self.pairs.filter(reasons.is_null())


class PairMaker:
    """Makes and cleans the pairs of one source."""

    def __init__(
        self, source: SourceConfig, cleaning: CleaningConfig, seed: int, decontamination: Decontamination
    ) -> None:
        self.source, self.cleaning, self.seed, self.decontamination = source, cleaning, seed, decontamination
        self.strip_markup = cleaning.strip_markup if source.strip_markup is None else source.strip_markup

    def from_rows(self, frame: pl.DataFrame) -> PairBatch:
        """Pairs of rows as they were read."""
        return self.from_normalised(self.normalised(frame))

    def normalised(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame of roles with normalised texts."""
        if self.source.construction == "chat":
            frame = turns(frame)
        return frame.with_columns(
            self._normalised(frame[name]) for name in frame.columns if name in (*TEXT_ROLES, *LIST_ROLES)
        )

    def _normalised(self, column: pl.Series) -> pl.Series:
        if column.name in LIST_ROLES:
            lengths = column.list.len()
            flat = self._normalised_texts(column.filter(lengths > 0).list.explode())
            return regrouped(flat, lengths.to_numpy()).alias(column.name)
        return self._normalised_texts(column)

    def _normalised_texts(self, texts: pl.Series) -> pl.Series:
        texts = normalised(texts, self.cleaning, self.strip_markup)
        before = self.source.prepend.get(texts.name)
        return texts.zip_with(texts == "", before + texts) if before else texts  # an empty text is dropped later

    def from_normalised(self, frame: pl.DataFrame) -> PairBatch:
        """Pairs of rows whose texts are normalised; where the construction needs groups, these are complete."""
        pairs = CONSTRUCTIONS[self.source.construction](frame, self.source, self.seed)
        positive = pairs["score"].is_null() | (pairs["score"] == 1)
        batch = PairBatch(pairs, int(positive.sum()), int((~positive).sum()))
        batch.drop(drop_reasons(batch.pairs, self.cleaning, self.source))
        batch.pairs, wrong = without_wrong_negatives(batch.pairs, self.cleaning.min_characters)
        if wrong:
            batch.dropped[WRONG_NEGATIVES] += wrong
        reasons, batch.reported = self.decontamination.find(batch.pairs)
        batch.drop(reasons)
        batch.keys = self._keys(batch.pairs)
        return batch

    def _keys(self, pairs: pl.DataFrame) -> Hashes:
        keys = combined(text_hashes(pairs["anchor"]), text_hashes(pairs["positive"]))
        if self.source.negatives_as_rows:
            keys = combined(keys, text_hashes(pairs["negatives"].list.first()))
        return keys

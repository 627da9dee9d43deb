"""From rows to clean pairs, a frame at a time: stateless, so frames may be processed in parallel."""

from collections import Counter
from dataclasses import dataclass, field, replace

import polars as pl

from configs.schema.data import NO_TEXTS, CleaningConfig, SourceConfig
from data.ledger import WRONG_NEGATIVES
from data.pairs.cleaning import EQUAL, Changes, comparable, drop_reasons, normalised, regrouped, without_wrong_negatives
from data.pairs.constructions import (
    CONSTRUCTIONS,
    IS_POSITIVE,
    PAIRS,
    first_choices,
    most_negatives,
    turns,
    with_chosen_negatives,
)
from data.pairs.decontamination import Decontamination
from data.pairs.hashing import Hashes, combined, text_hashes
from data.sources.rows import LIST_ROLES

# The ledger's reason for left-out negatives where each is a row; it includes those found in benchmarks.
WRONG_ROWS = "rows of a negative that is empty or equal to the positive"
NO_NEGATIVE = "no negative that can be used"


@dataclass(frozen=True)
class PairBatch:
    """Clean pairs of one frame, with their keys for the duplicate test and the counts of dropped rows."""

    pairs: pl.DataFrame
    built: int  # by the construction alone, without cleaning
    scored: int  # additional rows with a score below 1
    dropped: Counter[str]  # rows without a clean candidate as a replacement
    reported: Counter[str]
    keys: Hashes
    changes: Changes = field(default_factory=Changes)


def pair_keys(pairs: pl.DataFrame, source: SourceConfig) -> Hashes:
    """A key for each row, equal for duplicates."""
    keys = combined(text_hashes(pairs["anchor"]), text_hashes(pairs["positive"]))
    return combined(keys, text_hashes(pairs["negatives"].list.first())) if source.negatives_as_rows else keys


class PairMaker:
    """Makes and cleans the pairs of one source."""

    def __init__(
        self, source: SourceConfig, cleaning: CleaningConfig, seed: int, decontamination: Decontamination
    ) -> None:
        self.source, self.cleaning, self.seed, self.decontamination = source, cleaning, seed, decontamination
        self.strip_markup = cleaning.strip_markup if source.strip_markup is None else source.strip_markup
        self.construction, self.most_negatives = CONSTRUCTIONS[source.construction], most_negatives(source)

    def from_rows(self, frame: pl.DataFrame) -> PairBatch:
        """Pairs from rows as read."""
        frame, changes = self.normalised(frame)
        return replace(self.from_normalised(frame), changes=changes)

    def normalised(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, Changes]:
        """The frame of roles with normalised texts, and the changes."""
        changes = Changes()
        if self.source.construction == "chat":
            frame = turns(frame)
        texts = [frame[name] for name in frame.columns if name not in ("row", *NO_TEXTS)]
        return frame.with_columns(self._normalised(column, changes) for column in texts), changes

    def _normalised(self, column: pl.Series, changes: Changes) -> pl.Series:
        if column.name in LIST_ROLES:
            texts = column.list.explode(empty_as_null=False)
            flat = normalised(texts, self.cleaning, self.strip_markup, changes)
            return regrouped(flat, column.list.len().to_numpy()).alias(column.name)
        return normalised(column, self.cleaning, self.strip_markup, changes)

    def from_normalised(self, frame: pl.DataFrame) -> PairBatch:
        """Pairs from rows with normalised texts; where the construction needs groups, they must be complete."""
        candidates = self.construction(frame, self.source).with_columns(given=pl.col("negatives").list.len())
        alone = first_choices(candidates, self.source)
        if self.source.construction == "paraphrase_groups":  # checked as single texts, compared by form
            frame = frame.filter(drop_reasons(frame, self.cleaning, self.source, ["text"]).is_null())
            reasons, reported = self.decontamination.find(frame.select(anchor="text", positive=pl.lit("")))
            frame = frame.filter(reasons.is_null())
            frame = frame.with_columns(form=comparable(frame["text"]))
            clean = self.construction(frame, self.source).with_columns(given=0)
        else:
            clean = candidates.filter(drop_reasons(candidates, self.cleaning, self.source).is_null())
            clean = without_wrong_negatives(clean, self.cleaning.min_characters)
            reasons, reported = self.decontamination.find(clean)
            clean, in_negatives = self.decontamination.without_known_negatives(clean.filter(reasons.is_null()))
            reported.update(in_negatives)
        taken = first_choices(clean, self.source)
        positive = alone.select(IS_POSITIVE).to_series()
        rows = self._rows(alone["given"])
        pairs = with_chosen_negatives(taken.select(*PAIRS), self.source, self.seed)
        built, scored = (int(rows.filter(part).sum()) for part in (positive, ~positive))
        return PairBatch(pairs, built, scored, self._dropped(alone, taken), reported, pair_keys(pairs, self.source))

    def _rows(self, negatives: pl.Series) -> pl.Series:
        """The number of rows from pairs with these numbers of negatives."""
        if not self.source.negatives_as_rows or self.source.negatives == "none":
            return pl.Series([1]).new_from_index(0, len(negatives))
        return negatives.clip(1, self.most_negatives)

    def _dropped(self, alone: pl.DataFrame, taken: pl.DataFrame) -> Counter[str]:
        """Rows that the construction alone takes but cleaning drops, and dropped negatives, by reason."""
        lost = alone.filter(~pl.col("choice").is_in(taken["choice"].implode()))
        reasons = drop_reasons(lost, self.cleaning, self.source)
        reasons = reasons.zip_with(reasons.is_not_null(), self.decontamination.find(lost)[0])
        reasons = reasons.fill_null(NO_NEGATIVE if self.source.need_negative else EQUAL)
        counted = pl.DataFrame({"reason": reasons, "rows": self._rows(lost["given"])})
        dropped = Counter(dict(counted.group_by("reason", maintain_order=True).sum().rows()))
        if self.source.negatives == "none":
            return dropped
        given, left = (some.clip(0, self.most_negatives) for some in (taken["given"], taken["negatives"].list.len()))
        if self.source.negatives_as_rows:
            return dropped + Counter({WRONG_ROWS: int((self._rows(given) - self._rows(left)).sum())})
        return dropped + Counter({WRONG_NEGATIVES: int((given - left).sum())})

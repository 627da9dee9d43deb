"""One set from source to files: read rows, make pairs, drop duplicates, hold back dev rows, write."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from configs.schema.config import Config
from data import sampling
from data.ledger import SetCounts
from data.pair_files import PairWriter, detached, read_frames, write_keys
from data.pairs.cleaning import Changes
from data.pairs.constructions import GROUPED, NO_PAIRS
from data.pairs.decontamination import Decontamination
from data.pairs.hashing import NO_KEYS, Hashes, SeenHashes, contained, fraction, text_hashes
from data.pairs.maker import PairBatch, PairMaker, pair_keys
from data.pairs.streams import grouped, ordered_map
from data.sources.batch import RowErrors
from data.sources.files import Located, PairReader, locate, open_reader
from data.sources.rows import role_frames
from pipeline.core.errors import UserError

DUPLICATE, DUPLICATE_ELSEWHERE = "duplicate", "duplicate of another set"
OUTSIDE = "outside the slice"
SLICING = 0x51CE  # makes the keys differ from those of samples and dev rows
EMPTY_IN_GROUP = "empty text in a group"


class SetBuilder:
    """One set of the mixture, prepared once: its settings, its counts, and the keys of the pairs seen."""

    def __init__(
        self, name: str, config: Config, decontamination: Decontamination, earlier_pairs: Hashes = NO_KEYS
    ) -> None:
        self.name, self.key, self.config, self.data = name, config.data.key(name), config, config.data
        self.source = config.data.all_sources[name]
        self.decontamination = decontamination
        self.earlier_pairs = earlier_pairs  # sorted keys of earlier sets' pairs
        own = self.source.dev_anchors
        self.dev = self.data.dev if own is None else replace(self.data.dev, anchors=own)
        self.maker = PairMaker(self.source, self.data.cleaning, config.seed, decontamination)
        self.errors = RowErrors(self.key, self.data.on_bad_row == "skip")
        self.counts, self.changes = SetCounts(bad_rows=self.errors.counts), Changes()
        self.seen = SeenHashes()
        self.trained: list[Hashes] = []  # keys of all texts written for training

    def write_training(self, folder: Path) -> dict[str, Any]:
        """Write <side>, candidates and keys/<set>.parquet below `folder`; returns the counts."""
        rows, official = self._rows(), bool(self.source.dev_files)
        dev_rows = locate(self.key, self.source, self.config.mirror, dev=True) if official else None
        dev_slice = sampling.DevSlice(self.dev, self.config.seed)
        with self._writer(folder / self.source.side) as writer:
            for pairs in self._sampled(self._kept(rows, folder / "spill")):
                self._write(writer, pairs if official else dev_slice.hold_back(pairs))
            candidates, surplus = dev_slice.finish()
            for pairs in surplus:
                self._write(writer, pairs)
            if dev_rows:
                candidates = self._official_dev(dev_rows, folder / "spill")
            self.counts.dev_candidates = len(candidates)
            mixed = not official and sampling.overlap_mask(candidates, self._trained_keys()).any()
            dev = candidates if mixed else self._dev(candidates, writer, official=official)
        if mixed:
            dev = self._dev_of_groups(candidates, writer.path)
        no_positive = self.counts.built == 0 and self.source.construction != "scored_pairs"  # mixed-up labels
        if no_positive or self.counts.train == 0:
            raise self._nothing_usable()
        if self.data.cleaning.duplicates == "between":
            held = itertools.chain(read_frames(writer.path), [dev])  # without pairs left out by a slice or sample
            keys = np.unique(np.concatenate([pair_keys(frame, self.source) for frame in held]))
            write_keys(folder / "pair_keys" / f"{self.name}.parquet", keys)
        if self.source.negatives == "mine":
            from data.mining import mine  # imports torch, which a mixture without mining needn't wait for

            self.counts.mined = mine(writer.path, self.name, self.config)
            self.counts.negatives = self.counts.mined["negatives"]
        if len(dev):
            self.counts.dev = len(dev)
            with self._writer(folder / "candidates") as writer:
                writer.write(dev)
        write_keys(folder / "keys" / f"{self.name}.parquet", self._trained_keys())
        pa.default_memory_pool().release_unused()  # before the next set
        return self._account(rows.revision)

    def write_held_out(self, folder: Path) -> dict[str, Any]:
        """Write heldout/<set>.parquet below `folder`; returns the counts."""
        rows = self._rows()
        with self._writer(folder / "heldout") as writer:
            for pairs in self._sampled(self._kept(rows, folder / "spill")):
                self._write(writer, pairs)
        if self.counts.train == 0:
            raise self._nothing_usable()
        return self._account(rows.revision)

    def _account(self, revision: str) -> dict[str, Any]:
        self.counts.cleaned, self.counts.examples = self.changes.by_rule(), self.changes.chosen()
        return vars(self.counts) | {"revision": revision}

    def _nothing_usable(self) -> UserError:
        what = "the set is empty" if self.counts.raw == 0 else "no usable pair"
        reasons = [f"{reason} {count}" for reason, count in {**self.counts.dropped, **self.counts.bad_rows}.items()]
        dropped = f"; dropped: {', '.join(reasons)}" if reasons else ""
        where = f"{self.counts.raw} rows, {self.counts.built} pairs built{dropped}"
        remedy = f"fix {self.key} or remove it from the mixture"
        return self.errors.refused(what, where, remedy)

    # source -> rows -> kept pairs

    def _rows(self) -> Located | PairReader:
        if self.source.reader:
            return open_reader(self.key, self.source)
        return locate(self.key, self.source, self.config.mirror)

    def _kept(self, rows: Located | PairReader, spill: Path) -> Iterator[pl.DataFrame]:
        """Clean pairs without duplicates."""
        for batch in self._batches(rows, spill):
            self.counts.built += batch.built
            self.counts.scored += batch.scored
            self.counts.dropped.update(batch.dropped)
            self.counts.reported.update(batch.reported)
            self.changes.update(batch.changes)
            pairs = self._sliced(self._without_duplicates(batch))
            self.counts.kept += len(pairs)
            if len(pairs):
                yield pairs

    def _batches(self, rows: Located | PairReader, spill: Path) -> Iterator[PairBatch]:
        frames = self._counted(role_frames(self.source, rows, self.errors))
        if self.source.construction not in GROUPED:
            return ordered_map(self.maker.from_rows, frames, self.data.workers)
        size = sum(file.path.stat().st_size for file in rows.files) * 3 if isinstance(rows, Located) else 0
        usable = itertools.starmap(self._usable, ordered_map(self.maker.normalised, frames, self.data.workers))
        return map(self.maker.from_normalised, grouped(usable, spill, size))

    def _counted(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        for frame in frames:
            self.counts.raw += len(frame)
            yield frame

    def _usable(self, frame: pl.DataFrame, changes: Changes) -> pl.DataFrame:
        """Rows with all texts; the group is the premise where none is configured."""
        self.changes.update(changes)
        texts = [role for role in ("premise", "hypothesis", "text") if role in frame.columns]
        filled = frame.filter(~pl.any_horizontal(pl.col(texts).str.len_bytes() == 0))
        if lost := len(frame) - len(filled):
            self.counts.bad_rows[EMPTY_IN_GROUP] += lost
        return filled if "group" in filled.columns else filled.with_columns(pl.col("premise").alias("group"))

    def _without_duplicates(self, batch: PairBatch) -> pl.DataFrame:
        if self.data.cleaning.duplicates == "never":
            return batch.pairs
        elsewhere = contained(batch.keys, self.earlier_pairs)
        new = self.seen.add_new(batch.keys) & ~elsewhere
        for reason, count in ((DUPLICATE_ELSEWHERE, elsewhere.sum()), (DUPLICATE, (~new & ~elsewhere).sum())):
            if count:
                self.counts.dropped[reason] += int(count)
        return batch.pairs if new.all() else batch.pairs.filter(pl.Series(new))

    def _sliced(self, pairs: pl.DataFrame) -> pl.DataFrame:
        if not self.source.slice:
            return pairs
        places, (first, end) = fraction(text_hashes(pairs["anchor"], SLICING)), self.source.slice
        chosen = pairs.filter(pl.Series((places >= first) & (places < end)))
        self.counts.dropped[OUTSIDE] += len(pairs) - len(chosen)
        return chosen

    def _sampled(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        if self.source.max_rows is None:
            yield from frames
            return
        pairs, self.counts.sampled_out = sampling.sample(frames, self.source.max_rows, self.config.seed)
        yield pairs

    # kept pairs -> files

    def _writer(self, folder: Path) -> PairWriter:
        return PairWriter(folder / f"{self.name}.parquet", self.source.has_scores)

    def _write(self, writer: PairWriter, pairs: pl.DataFrame) -> None:
        if len(pairs):
            writer.write(pairs)
            self.trained.append(sampling.pair_texts(pairs))
            self.counts.train += len(pairs)
            self.counts.negatives += int(pairs["negatives"].list.len().sum())

    def _trained_keys(self) -> Hashes:
        if len(self.trained) != 1:  # one array is sorted and distinct already
            self.trained = [np.unique(np.concatenate([NO_KEYS, *self.trained]))]
        return self.trained[0]

    def _official_dev(self, rows: Located, spill: Path) -> pl.DataFrame:
        other = SetBuilder(self.name, self.config, self.decontamination, self.earlier_pairs)
        frames = list(other._kept(rows, spill))
        self.counts.bad_rows.update({f"dev files: {why}": count for why, count in other.counts.bad_rows.items()})
        return pl.concat([NO_PAIRS, *frames])

    def _dev_of_groups(self, candidates: pl.DataFrame, path: Path) -> pl.DataFrame:
        """The dev rows of a slice that shares texts with the training rows, whose file is rewritten.

        If the shared rows were trained on, hardly any would be left in a set whose texts occur in several pairs.
        """
        before = path.rename(path.with_suffix(".before"))
        staying, *joining = sampling.whole_groups(candidates, read_frames(before), self.config.seed)
        self.trained, self.counts.train, self.counts.negatives = [], 0, 0
        with self._writer(path.parent) as writer:
            dev = [candidates.filter(pl.Series(staying)).select(writer.schema.names)]
            for pairs, joins in zip(read_frames(before), joining, strict=True):
                dev.append(detached(pairs.filter(pl.Series(joins))))
                self._write(writer, pairs.filter(pl.Series(~joins)))
            self._write(writer, candidates.filter(pl.Series(~staying)))
            before.unlink()
            return self._dev(pl.concat(dev), writer, official=False)

    def _dev(self, candidates: pl.DataFrame, writer: PairWriter, *, official: bool) -> pl.DataFrame:
        """The dev rows that share no text with training; the slice's other rows return to training."""
        dev, back = sampling.apart_from(candidates, self._trained_keys(), joins=not official)
        once = dev.unique(["anchor", "positive"], keep="first", maintain_order=True)
        if not official:
            self._write(writer, back)
            if repeats := len(dev) - len(once):
                self.counts.dropped["repeats a dev pair"] += repeats
        dev = sampling.without_trained_negatives(once, self._trained_keys())
        first = dev["anchor"].unique(maintain_order=True).head(self.dev.anchors)
        return dev.filter(pl.col("anchor").is_in(first.implode()))

"""One set from its rows to its files: pairs made, duplicates dropped, dev rows held back, parquet written."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from configs.schema.data import SourceConfig
from data import splits
from data.mining import mine
from data.pair_files import PairWriter, write_keys
from data.pairs.constructions import GROUPED
from data.pairs.hashing import Hashes, SeenHashes, contained
from data.pairs.maker import Made, PairMaker, Surroundings
from data.pairs.streams import grouped
from data.parallel import ordered_map
from data.sampling import Sample
from data.sources.batch import RowErrors
from data.sources.files import Located
from data.sources.readers import PairReader
from data.sources.rows import reader_frames, role_frames
from pipeline.core.errors import UserError

DUPLICATE, DUPLICATE_ELSEWHERE = "duplicate", "duplicate of another set"
EMPTY_IN_GROUP = "empty text in a group"


@dataclass
class Counts:
    """What the ledger says about one set."""

    raw: int = 0
    built: int = 0
    scored: int = 0  # rows kept with a label that is no entailment
    kept: int = 0
    train: int = 0
    dev: int = 0
    negatives: int = 0
    sampled_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)  # evaluation texts found, by task
    bad_rows: dict[str, int] = field(default_factory=dict)
    mined: dict[str, Any] = field(default_factory=dict)  # by the miner: negatives, share of false ones dropped

    def result(self, revision: str) -> dict[str, Any]:
        """JSON-able."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
        return plain | {"revision": revision}


class Preparation:
    """The preparation of one set; `run` writes its files below a folder and returns its counts."""

    def __init__(self, name: str, source: SourceConfig, around: Surroundings) -> None:
        self.name, self.source, self.around = name, source, around
        self.workers = around.data.workers
        self.maker = PairMaker(source, around)
        self.errors = RowErrors(name, around.data.on_bad_row == "skip")
        self.counts = Counts(bad_rows=self.errors.counts)
        self.seen = SeenHashes()
        self.trained: list[Hashes] = []  # keys of all texts written for training

    def run(self, folder: Path, rows: Located | PairReader, dev_rows: Located | None) -> dict[str, Any]:
        """Write <side>/<set>.parquet, dev/<set>.parquet and keys/<set>.parquet below `folder`."""
        slice_ = splits.DevSlice(self.around.data.dev, self.around.seed)
        held_back = (lambda pairs: pairs) if dev_rows else slice_.hold_back
        with PairWriter(folder / self.source.side / f"{self.name}.parquet", bool(self.source.kept_scores)) as writer:
            for pairs in self._sampled(self._kept(rows, folder / "spill")):
                self._write(writer, held_back(pairs))
            candidates, surplus = slice_.finish()
            for pairs in surplus:
                self._write(writer, pairs)
            if dev_rows:
                candidates = self._official_dev(dev_rows, folder / "spill")
            dev = self._dev(candidates, writer, official=dev_rows is not None)
        if self.counts.built == 0 or self.counts.train == 0:
            self._refuse_nothing(rows)
        if self.source.negatives == "mine":
            self.counts.mined = mine(writer.path, self.around.data.mining, self.name, self.around.mirror)
            self.counts.negatives = self.counts.mined["negatives"]
        self._write_dev(folder, dev)
        write_keys(folder / "keys" / f"{self.name}.parquet", self._trained_keys())
        if self.around.data.cleaning.duplicates == "between":
            write_keys(folder / "pair_keys" / f"{self.name}.parquet", self.seen.sorted)
        pa.default_memory_pool().release_unused()  # before the next set
        return self.counts.result(rows.revision)

    def run_held_out(self, folder: Path, rows: Located | PairReader) -> dict[str, Any]:
        """Write heldout/<set>.parquet below `folder`."""
        with PairWriter(folder / "heldout" / f"{self.name}.parquet", bool(self.source.kept_scores)) as writer:
            for pairs in self._sampled(self._kept(rows, folder / "spill")):
                self._write(writer, pairs)
        if self.counts.train == 0:
            self._refuse_nothing(rows)
        return self.counts.result(rows.revision)

    def _refuse_nothing(self, rows: Located | PairReader) -> None:
        what = "the set is empty" if self.counts.raw == 0 else "no usable pair"
        reasons = ", ".join(
            f"{reason} {count}" for reason, count in {**self.counts.dropped, **self.counts.bad_rows}.items()
        )
        where = f"{self.counts.raw} rows, {self.counts.built} pairs built" + (
            f"; dropped: {reasons}" if reasons else ""
        )
        remedy = f"mend data.sources.{self.name} or take it out of the mixture"
        raise UserError(f"{self.name}: {what}", where=where, remedy=remedy)

    # rows -> kept pairs

    def _made(self, rows: Located | PairReader, spill: Path) -> Iterator[Made]:
        frames = self._role_frames(rows)
        if self.source.construction not in GROUPED:
            return ordered_map(self.maker.from_rows, frames, self.workers)
        usable = map(self._usable, ordered_map(self.maker.normalised, frames, self.workers))
        return map(self.maker.from_normalised, grouped(usable, spill, _bytes(rows)))

    def _role_frames(self, rows: Located | PairReader) -> Iterator[pl.DataFrame]:
        frames = role_frames(self.source, rows, self.errors) if isinstance(rows, Located) else reader_frames(rows)
        for frame in frames:
            self.counts.raw += len(frame)
            yield frame

    def _usable(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows that can be chosen from a group: with texts; the group is the premise where none is configured."""
        texts = [role for role in ("premise", "hypothesis", "text") if role in frame.columns]
        filled = frame.filter(~pl.any_horizontal(pl.col(texts).str.len_bytes() == 0))
        if lost := len(frame) - len(filled):
            self.counts.bad_rows[EMPTY_IN_GROUP] = self.counts.bad_rows.get(EMPTY_IN_GROUP, 0) + lost
        return filled if "group" in filled.columns else filled.with_columns(pl.col("premise").alias("group"))

    def _kept(self, rows: Located | PairReader, spill: Path) -> Iterator[pl.DataFrame]:
        for made in self._made(rows, spill):
            self.counts.built += made.built
            self.counts.scored += made.scored
            self.counts.dropped.update(made.dropped)
            self.counts.reported.update(made.reported)
            pairs = self._without_duplicates(made)
            self.counts.kept += len(pairs)
            if len(pairs):
                yield pairs

    def _without_duplicates(self, made: Made) -> pl.DataFrame:
        if self.around.data.cleaning.duplicates == "never":
            return made.pairs
        elsewhere = contained(made.keys, self.around.other_pairs)
        new = self.seen.add_new(made.keys) & ~elsewhere
        for reason, count in ((DUPLICATE_ELSEWHERE, elsewhere.sum()), (DUPLICATE, (~new & ~elsewhere).sum())):
            if count:
                self.counts.dropped[reason] += int(count)
        return made.pairs if new.all() else made.pairs.filter(pl.Series(new))

    def _sampled(self, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        if self.source.max_rows is None:
            yield from frames
            return
        sample = Sample(self.source.max_rows, self.around.seed)
        for pairs in frames:
            sample.offer(pairs)
        self.counts.sampled_out = sample.left_out
        yield from sample.frames()

    # kept pairs -> files

    def _write(self, writer: "PairWriter", pairs: pl.DataFrame) -> None:
        if len(pairs):
            writer.write(pairs)
            self.trained.append(splits.pair_texts(pairs))
            self.counts.train += len(pairs)
            self.counts.negatives += int(pairs["negatives"].list.len().sum())

    def _trained_keys(self) -> Hashes:
        self.trained = [np.unique(np.concatenate(self.trained))] if self.trained else [np.empty(0, np.uint64)]
        return self.trained[0]

    def _official_dev(self, rows: Located, spill: Path) -> pl.DataFrame | None:
        other = Preparation(self.name, self.source, self.around)
        frames = list(other._kept(rows, spill))
        return pl.concat(frames) if frames else None

    def _dev(self, candidates: pl.DataFrame | None, writer: "PairWriter", *, official: bool) -> pl.DataFrame | None:
        """The dev rows that share no text with training; others of a slice are trained on after all."""
        if candidates is None:
            return None
        dev, back = splits.apart_from(candidates, self._trained_keys())
        once = dev.unique(["anchor", "positive"], keep="first", maintain_order=True)
        if not official:
            self._write(writer, back)
            if repeats := len(dev) - len(once):
                self.counts.dropped["repeats a dev pair"] += repeats
        dev = splits.without_trained_negatives(once, self._trained_keys())
        first = dev["anchor"].unique(maintain_order=True).head(self.around.data.dev.anchors)
        return dev.filter(pl.col("anchor").is_in(first.implode()))

    def _write_dev(self, folder: Path, dev: pl.DataFrame | None) -> None:
        if dev is None or len(dev) == 0:
            return
        self.counts.dev = len(dev)
        with PairWriter(folder / "candidates" / f"{self.name}.parquet", bool(self.source.kept_scores)) as writer:
            writer.write(dev)


def _bytes(rows: Located | PairReader) -> int:
    return sum(file.path.stat().st_size for file in rows.files) * 3 if isinstance(rows, Located) else 0

"""One set from its rows to its files: construct, clean, decontaminate, split, write."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from data import splits
from data.batch import RowErrors
from data.cleaning import drop_reasons, no_reason, normalised, regrouped, without_wrong_negatives
from data.config import DataConfig, SourceConfig
from data.constructions import CONSTRUCTIONS, GROUPED, turns
from data.decontamination import TextIndex
from data.files import Located
from data.grouping import grouped
from data.hashing import Hashes, SeenHashes, combined, text_hashes
from data.readers import PairReader
from data.rows import reader_frames, role_frames
from data.sampling import Sample
from pipeline.errors import UserError

if TYPE_CHECKING:
    from data.near_duplicates import NearIndex

TEXT_ROLES = ("anchor", "positive", "title", "text", "summary", "premise", "hypothesis", "query")
LIST_ROLES = ("negative", "pos", "neg")
DUPLICATE = "duplicate"
SCHEMA = [("anchor", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))]


@dataclass
class Surroundings:
    """What one set's preparation takes from outside the set."""

    data: DataConfig
    seed: int
    forbidden: TextIndex  # texts that are never trained on: held-out sets, bundled evaluation samples
    benchmarks: TextIndex  # texts of benchmarks: removed or reported
    near: "NearIndex | None" = None  # the same texts, for finding those that were changed a little
    other_pairs: Hashes = field(default_factory=lambda: np.empty(0, np.uint64))  # of sets before this one


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

    def result(self, revision: str) -> dict[str, Any]:
        """JSON-able."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
        return plain | {"revision": revision}


class Preparation:
    """The preparation of one set; `run` writes its files below a folder and returns its counts."""

    def __init__(self, name: str, source: SourceConfig, around: Surroundings) -> None:
        self.name, self.source, self.around = name, source, around
        self.cleaning = around.data.cleaning
        self.strip_markup = self.cleaning.strip_markup if source.strip_markup is None else source.strip_markup
        self.errors = RowErrors(name, around.data.on_bad_row == "skip")
        self.counts = Counts(bad_rows=self.errors.counts)
        self.seen = SeenHashes()
        self.trained: list[Hashes] = []  # keys of all texts written for training

    def run(self, folder: Path, rows: Located | PairReader, dev_rows: Located | None) -> dict[str, Any]:
        """Write <side>/<set>.parquet, dev/<set>.parquet and keys/<set>.parquet below `folder`."""
        slice_ = splits.DevSlice(self.around.data.dev, self.around.seed)
        held_back = (lambda pairs: pairs) if dev_rows else slice_.hold_back
        with PairWriter(folder / self.source.side / f"{self.name}.parquet", bool(self.source.scores)) as writer:
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
        self._write_dev(folder, dev)
        write_keys(folder / "keys" / f"{self.name}.parquet", self._trained_keys())
        return self.counts.result(rows.revision)

    def run_held_out(self, folder: Path, rows: Located | PairReader) -> dict[str, Any]:
        """Write heldout/<set>.parquet below `folder`."""
        with PairWriter(folder / "heldout" / f"{self.name}.parquet", False) as writer:
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

    # rows -> pairs

    def _constructed(self, rows: Located | PairReader, spill: Path) -> Iterator[pl.DataFrame]:
        frames: Iterator[pl.DataFrame] = map(self._normalised, self._role_frames(rows))
        if self.source.construction in GROUPED:
            frames = grouped(map(self._usable, frames), spill, _bytes(rows))
        for frame in frames:
            yield CONSTRUCTIONS[self.source.construction](frame, self.source, self.around.seed)

    def _role_frames(self, rows: Located | PairReader) -> Iterator[pl.DataFrame]:
        frames = reader_frames(rows) if not isinstance(rows, Located) else role_frames(self.source, rows, self.errors)
        for frame in frames:
            self.counts.raw += len(frame)
            yield turns(frame) if self.source.construction == "chat" else frame

    def _normalised(self, frame: pl.DataFrame) -> pl.DataFrame:
        mended = []
        for name in frame.columns:
            column = frame[name]
            if name in TEXT_ROLES and column.dtype == pl.String:
                texts = normalised(column, self.cleaning, self.strip_markup)
                mended.append(self.source.prepend.get(name, "") + texts if name in self.source.prepend else texts)
            elif name in LIST_ROLES:
                lengths = column.list.len()
                flat = normalised(column.filter(lengths > 0).list.explode(), self.cleaning, self.strip_markup)
                mended.append(regrouped(flat, lengths.to_numpy()).alias(name))
        return frame.with_columns(mended)

    def _usable(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows that can be chosen from a group: with texts; the group is the premise where none is configured."""
        texts = [role for role in ("premise", "hypothesis", "text") if role in frame.columns]
        empty = pl.any_horizontal(pl.col(texts).str.len_bytes() == 0)
        filled = frame.filter(~empty)
        if lost := len(frame) - len(filled):
            self.counts.bad_rows["empty text in a group"] = self.counts.bad_rows.get("empty text in a group", 0) + lost
        return filled if "group" in filled.columns else filled.with_columns(pl.col("premise").alias("group"))

    # pairs -> kept pairs

    def _kept(self, rows: Located | PairReader, spill: Path) -> Iterator[pl.DataFrame]:
        for pairs in self._constructed(rows, spill):
            unlabelled = pairs["score"].is_null() | (pairs["score"] == 1)
            self.counts.built += int(unlabelled.sum())
            self.counts.scored += int((~unlabelled).sum())
            pairs = self._clean(pairs)
            self.counts.kept += len(pairs)
            if len(pairs):
                yield pairs

    def _clean(self, pairs: pl.DataFrame) -> pl.DataFrame:
        pairs = self._without(pairs, drop_reasons(pairs, self.cleaning, self.source))
        pairs, wrong = without_wrong_negatives(pairs, self.cleaning.min_characters)
        if wrong:
            self.counts.dropped["negatives, empty or equal to the positive"] += wrong
        pairs = self._without(pairs, self._forbidden(pairs))
        return self._without(pairs, self._duplicates(pairs))

    def _without(self, pairs: pl.DataFrame, reasons: pl.Series) -> pl.DataFrame:
        if reasons.null_count() == len(pairs):
            return pairs
        self.counts.dropped.update(reasons.drop_nulls().to_list())
        return pairs.filter(reasons.is_null())

    def _forbidden(self, pairs: pl.DataFrame) -> pl.Series:
        """Why a pair may not be trained on: the held-out set or evaluation that has one of its texts."""
        reasons = no_reason(len(pairs))
        for column in ("anchor", "positive"):
            reasons = reasons.zip_with(reasons.is_not_null(), self.around.forbidden.find(pairs[column]))
        for column in ("anchor", "positive"):
            found = self._in_benchmarks(pairs[column])
            self.counts.reported.update(found.drop_nulls().to_list())
            if self.around.data.decontamination.mode == "remove":
                reasons = reasons.zip_with(reasons.is_not_null(), found)
        return reasons

    def _in_benchmarks(self, texts: pl.Series) -> pl.Series:
        found = self.around.benchmarks.find(texts)
        if self.around.near is None:
            return found
        unknown = found.is_null().arg_true()
        near = self.around.near.find(texts.gather(unknown))
        return found.scatter(unknown, "near " + near)

    def _duplicates(self, pairs: pl.DataFrame) -> pl.Series:
        if self.cleaning.duplicates == "never":
            return no_reason(len(pairs))
        keys = combined(text_hashes(pairs["anchor"]), text_hashes(pairs["positive"]))
        if self.source.negatives_as_rows:
            keys = combined(keys, text_hashes(pairs["negatives"].list.first()))
        new = self.seen.add_new(keys)
        return pl.Series("reason", [DUPLICATE], pl.String).new_from_index(0, len(pairs)).set(pl.Series(new), None)

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
        with PairWriter(folder / "candidates" / f"{self.name}.parquet", bool(self.source.scores)) as writer:
            writer.write(dev)


class PairWriter:
    """A parquet file of pairs, written batch by batch."""

    def __init__(self, path: Path, scored: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.schema = pa.schema(SCHEMA + ([("score", pa.float32())] if scored else []))
        self.file = pq.ParquetWriter(path, self.schema, compression="zstd", compression_level=1)

    def __enter__(self) -> "PairWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, pairs: pl.DataFrame) -> None:
        self.file.write_table(pairs.select(self.schema.names).to_arrow().cast(self.schema))


def write_keys(path: Path, keys: Hashes) -> None:
    """Keys of a set's trained texts, for the comparison with other sets' dev rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"key": keys}), path, compression="zstd")


def read_keys(path: Path) -> Hashes:
    """What `write_keys` wrote."""
    return pq.read_table(path)["key"].to_numpy()


def _bytes(rows: Located | PairReader) -> int:
    return sum(file.path.stat().st_size for file in rows.files) * 3 if isinstance(rows, Located) else 0

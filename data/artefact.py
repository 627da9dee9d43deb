"""The data stage's output as later stages read it: training sets, dev rows, held-out sets, shares of the batches.

<side>/<set>.parquet    rows that a side trains on
dev/<set>.parquet       rows of the same sets, held out of training
heldout/<set>.parquet   sets that no side trains on
ledger.json             the account of every set, including its weight and repeat
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from configs.schema.data import DATA_SIDES
from data.pair_files import REMEDY, read_pairs
from pipeline.core.artefact import read_json
from pipeline.core.errors import UserError

ERROR_CHARACTERS = 60  # of a text in an error


@dataclass(frozen=True)
class PairSet:
    """Rows of one set; row i is (anchors[i], positives[i], negatives[i], scores[i])."""

    name: str
    side: str  # of the data: symmetric or asymmetric
    anchors: list[str]
    positives: list[str]
    negatives: list[list[str]]
    scores: list[float]  # 1 where a row has none; below 1 the row's "positive" isn't one

    def __len__(self) -> int:
        return len(self.anchors)

    def take(self, rows: Iterable[int]) -> "PairSet":
        """The set with only these rows, in this order."""
        chosen = list(rows)
        columns = ("anchors", "positives", "negatives", "scores")
        taken: dict[str, Any] = {name: [getattr(self, name)[row] for row in chosen] for name in columns}
        return replace(self, **taken)

    def spread(self, most: int) -> "PairSet":
        """At most `most` rows, evenly spread over the set, which is in its source's order."""
        places = np.linspace(0, len(self), min(most, len(self)), endpoint=False, dtype=np.int64)
        return self.take(places.tolist())

    def positive_rows(self) -> "PairSet":
        """The set without rows whose score marks them as no pair."""
        return self.take(row for row, score in enumerate(self.scores) if score >= 1)

    def answers(self) -> dict[str, dict[str, None]]:
        """The positives of each anchor, both in their original order."""
        found: dict[str, dict[str, None]] = {}
        positive = self.positive_rows()
        for anchor, text in zip(positive.anchors, positive.positives, strict=True):
            found.setdefault(anchor, {})[text] = None
        return found

    def passages(self) -> Iterator[str]:
        """Positives, then negatives."""
        yield from self.positives
        yield from (text for texts in self.negatives for text in texts)


def set_files(data: Path, *sides: str) -> list[tuple[str, Path]]:
    """Side and file of each training set of these data sides (default: all), in a fixed order."""
    return [(side, path) for side in sides or DATA_SIDES for path in sorted((data / side).glob("*.parquet"))]


def read_pair_set(path: Path, side: str) -> PairSet:
    """One file of the artefact; `side` is its data side. Raises UserError for a damaged file."""
    table = read_pairs(path)
    anchors, positives, negatives = (table[name].to_pylist() for name in ("anchor", "positive", "negatives"))
    scores = table["score"].fill_null(1.0).to_pylist()
    return PairSet(path.stem, side, anchors, positives, [texts or [] for texts in negatives], scores)


def read_dev_sets(data: Path, *sides: str) -> list[PairSet]:
    """The dev rows of the sets of these data sides (default: all), ordered as by `set_files`."""
    files = [(side, data / "dev" / path.name) for side, path in set_files(data, *sides)]
    return [read_pair_set(path, side) for side, path in files if path.is_file()]


def held_out_file(data: Path, name: str) -> Path:
    """The file with the rows of a held-out set."""
    return data / "heldout" / f"{name}.parquet"


def read_held_out_set(data: Path, name: str, side: str) -> PairSet:
    """A set that is never trained on, read as part of the data side `side`, whose prompts it uses.

    Raises UserError: a set that the data stage did not hold out, or without positives.
    """
    path = held_out_file(data, name)
    if not path.is_file():
        remedy = "name sets of data.held_out, then run make data"
        raise UserError(f"set {name} is not held out", where=str(path), remedy=remedy)
    pairs = read_pair_set(path, side)
    if not len(pairs.positive_rows()):
        raise UserError(f"set {name} has no positive pair", where=str(path), remedy="name another set")
    return pairs


def require_unseen(sets: Iterable[PairSet], data: Path) -> None:
    """Raise UserError if an anchor or positive of `sets` is an anchor or positive of a training set."""
    held_out = {text: pairs.name for pairs in sets for text in (*pairs.anchors, *pairs.positives)}
    wanted = pa.array(list(held_out), pa.string())
    for _, path in set_files(data):
        for column in ("anchor", "positive"):
            texts = pq.read_table(path, columns=[column])[column]
            for seen in texts.filter(pc.is_in(texts, wanted.cast(texts.type)))[:1].to_pylist():
                shown = seen if len(seen) <= ERROR_CHARACTERS else seen[: ERROR_CHARACTERS - 1] + "…"
                what = f"set {held_out[seen]} shares a text with training set {path.stem}: {shown!r}"
                remedy = "run make data again; weights must not be chosen on training texts"
                raise UserError(what, where=str(path), remedy=remedy)


def rows_of_sets(data: Path) -> dict[str, int]:
    """The training rows of each set."""
    return {path.stem: pq.read_metadata(path).num_rows for _, path in set_files(data)}


def read_shares(data: Path) -> dict[str, tuple[float, int]]:
    """Each set's share of the batches, (weight, repeat), from the ledger; empty where there is none, as in a trial.

    Raises UserError for a damaged ledger.
    """
    ledger = data / "ledger.json"
    try:
        sets = read_json(ledger)["sets"] if ledger.is_file() else []
        return {entry["name"]: (entry["weight"], entry["repeat"]) for entry in sets}
    except (ValueError, LookupError, TypeError) as error:
        raise UserError("not a ledger of sets", where=str(ledger), remedy=REMEDY) from error

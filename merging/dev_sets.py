"""The rows that choose merge weights: held out of training by the data stage, read from its artefact."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars

from configs.schema.config import SIDES
from data.pair_files import read_pairs
from pipeline.core.errors import UserError
from pipeline.core.seeding import generator


@dataclass(frozen=True)
class PairSet:
    """Rows of one set; row i is (anchors[i], positives[i], negatives[i])."""

    name: str
    side: str  # symmetric or asymmetric
    anchors: list[str]
    positives: list[str]
    negatives: list[list[str]]
    labels: list[bool]  # False where the row's own score says that its "positive" is none

    def __len__(self) -> int:
        return len(self.anchors)

    def rows(self, numbers: list[int]) -> "PairSet":
        """The set with these rows alone."""
        columns = ("anchors", "positives", "negatives", "labels")
        picked: dict[str, Any] = {name: [getattr(self, name)[i] for i in numbers] for name in columns}
        return replace(self, **picked)

    def positive_rows(self) -> "PairSet":
        """The set without rows whose score says that they are no pair."""
        return self.rows([row for row, label in enumerate(self.labels) if label])

    def sample(self, count: int, seed: int, purpose: str) -> "PairSet":
        """At most `count` rows in their order, chosen by `seed`, the purpose and the set's name."""
        if len(self) <= count:
            return self
        chosen = generator(seed, "merge", purpose, self.name).choice(len(self), count, replace=False)
        return self.rows(sorted(chosen.tolist()))

    def texts(self) -> Iterator[str]:
        """Anchors and positives."""
        yield from self.anchors
        yield from self.positives


def read_dev_sets(data: Path) -> list[PairSet]:
    """The sets of `data/dev` in the order of their names, with the sides that the ledger gives them.

    Raises:
        UserError: no dev rows at all, a set that the ledger does not know, a missing column.
    """
    sides = _sides(data / "ledger.json")
    sets = []
    for path in sorted((data / "dev").glob("*.parquet")):
        if path.stem not in sides:
            remedy = "make the data stage again"
            raise UserError(f"dev set {path.stem} is not in the ledger", where=str(path), remedy=remedy)
        sets.append(read_pair_set(path, sides[path.stem]))
    if not sets:
        remedy = "have the data stage hold out dev rows, or use merging=uniform"
        raise UserError("no dev data to choose merge weights on", where=str(data / "dev"), remedy=remedy)
    return sets


def read_pair_set(path: Path, side: str) -> PairSet:
    """A parquet file of the data artefact; a row without a score, or with score 1, is a positive pair."""
    table = read_pairs(path)
    scores = table["score"].to_pylist()
    return PairSet(
        name=path.stem,
        side=side,
        anchors=table["anchor"].to_pylist(),
        positives=table["positive"].to_pylist(),
        negatives=[list(texts or []) for texts in table["negatives"].to_pylist()],
        labels=[score is None or score >= 1 for score in scores],
    )


def require_unseen(sets: list[PairSet], data: Path) -> None:
    """Raise UserError if an anchor or positive of `sets` is an anchor or positive of a training set."""
    held_out = {text: pairs.name for pairs in sets for text in pairs.texts()}
    wanted = polars.Series(list(held_out), dtype=polars.String)
    for side in SIDES:
        for path in sorted((data / side).glob("*.parquet")):
            for column in ("anchor", "positive"):
                texts = polars.scan_parquet(path).select(column).collect()[column]
                seen = texts.filter(texts.is_in(wanted.implode())).head(1).to_list()
                if seen:
                    shown = seen[0] if len(seen[0]) <= 60 else seen[0][:59] + "…"
                    raise UserError(
                        f"dev set {held_out[seen[0]]} shares a text with training set {path.stem}: {shown!r}",
                        where=str(path),
                        remedy="make the data stage again; weights must not be chosen on what was trained on",
                    )


def _sides(ledger: Path) -> dict[str, str]:
    try:
        entries = json.loads(ledger.read_text(encoding="utf-8"))["sets"]
        return {entry["name"]: entry["side"] for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"can't read which side a set belongs to: {type(error).__name__}"
        raise UserError(what, where=str(ledger), remedy="make the data stage again") from None

"""Rows of the two tables that the stage `evaluate` writes, with their CSV reader and writer."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from configs.schema.evaluation import MODES
from pipeline.core.errors import UserError

MEAN = "mean"  # metric of the rows that average a suite's tasks
BM25 = "bm25"  # instead of a model
DENSE, SPARSE, MULTI_VECTOR, HYBRID = MODES
VECTOR_MODES = MODES[:3]  # hybrid sums their scores
HYBRID_FITTED = "hybrid_fitted"
EXTRA_MODES = (SPARSE, MULTI_VECTOR, HYBRID, HYBRID_FITTED)  # suffixes of a model's name
ZERO_SHARE, ACTIVE_IDS, BYTES = SIZES = ("zero_share", "active_ids", "bytes_per_passage")  # metrics that are not scores


def dense(model: str) -> bool:
    """Whether a row's `model` refers to a model's dense vectors."""
    return model != BM25 and not model.endswith(tuple(f".{mode}" for mode in EXTRA_MODES))


class TableRow:
    """A row whose fields are the table's columns: strings, integers, booleans, and floats, with NaN as empty."""

    @classmethod
    def write(cls, path: Path, rows: Iterable[Self]) -> None:
        """Write the table; floats get six decimals, seconds three."""
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, _columns(cls), lineterminator="\n")
            writer.writeheader()
            for row in rows:
                writer.writerow({name: _written(name, value) for name, value in vars(row).items()})

    @classmethod
    def read(cls, path: Path) -> list[Self]:
        """Read the table; raises UserError if a column is missing."""
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if missing := _columns(cls).keys() - set(reader.fieldnames or ()):
                what = f"the table lacks the column {', '.join(sorted(missing))}"
                raise UserError(what, where=str(path), remedy="rebuild it: make evaluate")
            return [cls(**{name: _READ[kind](row[name]) for name, kind in _columns(cls).items()}) for row in reader]


@dataclass(frozen=True)
class Score(TableRow):
    """One row of scores.csv: a model's score by one metric of one task, with the interval over its items.

    A score without items, such as clustering's, has no interval.
    """

    model: str
    suite: str
    task: str
    metric: str
    score: float
    ci_low: float
    ci_high: float
    items: int
    seconds: float


@dataclass(frozen=True)
class Difference(TableRow):
    """One row of comparison.csv: `model` minus `against` on one metric of one task."""

    model: str
    against: str
    suite: str
    task: str
    metric: str
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    p_holm: float  # corrected over the tasks of the suite; NaN before
    test: str  # permutation, bootstrap, or none if nothing was resampled
    items: int
    main: bool  # the main score of the task or of the mean over tasks, not a further metric


_READ: dict[Any, Any] = {str: str, int: int, float: lambda text: float(text or "nan"), bool: "true".__eq__}


def _columns(cls: Any) -> dict[str, Any]:
    return {field.name: field.type for field in fields(cls)}


def _written(column: str, value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return value
    if value != value:
        return ""
    return f"{value:.3f}" if column == "seconds" else f"{value:.6f}"

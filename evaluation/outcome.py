"""The outcome of one model on one task: per-item columns, and the metrics computed from them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evaluation.results import BM25, DENSE

SCORE_VERSION = 3  # of outcomes: raised when scores or items change
PART = "part"  # column with the part of the task an item belongs to; a metric is the mean over parts
# Column that names an item's text: items with the same name, in one task or several, are resampled together. In tasks
# on pairs, all pairs that share a text, directly or through other pairs, have the same name.
ITEM = "item"


@dataclass(frozen=True)
class Measure:
    """A metric of a task and how it is computed from the per-item columns.

    `statistic` names a function of `metrics.STATISTICS`; `columns` are its arguments in order. `by` says whose
    score it is: the model's ({}), the model's in one of its modes ({}.sparse), or no model's (bm25).
    """

    metric: str
    score: float
    statistic: str
    columns: tuple[str, ...]
    by: str = "{}"


@dataclass(frozen=True)
class Outcome:
    """Per-item columns (of equal length, items in the data's order) and measures, the task's main one first."""

    columns: dict[str, np.ndarray]
    measures: tuple[Measure, ...]
    notes: dict[str, Any] = field(default_factory=dict)  # JSON-serialisable, such as the best variant

    @property
    def items(self) -> int:
        """Number of items that are resampled."""
        return len(next(iter(self.columns.values())))

    def write(self, path: Path) -> None:
        """Write columns and measures as one parquet file; two-dimensional columns become lists."""
        arrays = {name: pa.array(list(v) if v.ndim > 1 else v) for name, v in self.columns.items()}
        metadata = {"measures": [asdict(measure) for measure in self.measures], "notes": self.notes}
        table = pa.table(arrays).replace_schema_metadata({"outcome": json.dumps(metadata, ensure_ascii=False)})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def joined(parts: Mapping[str, Outcome]) -> Outcome:
    """Combine the outcomes of several modes on the same items, such as dense, sparse and bm25 (see `Measure`).

    The first mode's columns keep their names; columns that describe the items are kept once.
    """
    columns: dict[str, np.ndarray] = {}
    measures, notes = list[Measure](), dict[str, Any]()
    for place, (mode, part) in enumerate(parts.items()):
        prefix = "" if place == 0 else f"{mode}:"
        by = {DENSE: "{}", BM25: BM25}.get(mode, f"{{}}.{mode}")
        own = {name for measure in part.measures for name in measure.columns}
        columns |= {prefix + name if name in own else name: values for name, values in part.columns.items()}
        measures += [
            replace(measure, by=by, columns=tuple(prefix + name for name in measure.columns))
            for measure in part.measures
        ]
        notes |= part.notes
    return Outcome(columns, tuple(measures), notes)


def read_outcome(path: Path) -> Outcome:
    """The outcome that `Outcome.write` wrote to `path`."""
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[b"outcome"])
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        lists = pa.types.is_list(column.type)
        columns[name] = np.stack(column.to_numpy(zero_copy_only=False)) if lists else column.to_numpy(False)
    measures = (Measure(**{**entry, "columns": tuple(entry["columns"])}) for entry in metadata["measures"])
    return Outcome(columns, tuple(measures), metadata["notes"])

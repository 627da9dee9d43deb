"""What one model did on one task: per-item columns, and the metrics that are computed from them."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCORE_VERSION = 2  # of what a model did on a task: raised when scores or items change
PART = "part"  # column that says which part of a task an item belongs to; a metric is the mean over the parts
# Column that names an item's text: items of one name, in one task or in two, are resampled together.
ITEM = "item"


@dataclass(frozen=True)
class Measure:
    """A metric of a task and how it follows from the per-item columns.

    `statistic` names a function of `evaluation.significance`; `columns` are its arguments in order.
    """

    metric: str
    score: float
    statistic: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """Per-item columns (all of one length, items in the data's order) and measures, the task's main one first."""

    columns: dict[str, np.ndarray]
    measures: tuple[Measure, ...]
    notes: dict[str, Any] = field(default_factory=dict)  # JSON-able, such as which variant was the best

    @property
    def items(self) -> int:
        """Number of items that are resampled."""
        return len(next(iter(self.columns.values())))

    def write(self, path: Path) -> None:
        """Write columns and measures as one parquet file; a two-dimensional column becomes lists."""
        arrays = {name: pa.array(list(v) if v.ndim > 1 else v) for name, v in self.columns.items()}
        told = {"measures": [asdict(measure) for measure in self.measures], "notes": self.notes}
        table = pa.table(arrays).replace_schema_metadata({"outcome": json.dumps(told, ensure_ascii=False)})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)


def read_outcome(path: Path) -> Outcome:
    """The outcome that `Outcome.write` wrote to `path`."""
    table = pq.read_table(path)
    told = json.loads(table.schema.metadata[b"outcome"])
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        lists = pa.types.is_list(column.type)
        columns[name] = np.stack(column.to_numpy(zero_copy_only=False)) if lists else column.to_numpy(False)
    measures = (Measure(**{**entry, "columns": tuple(entry["columns"])}) for entry in told["measures"])
    return Outcome(columns, tuple(measures), told["notes"])

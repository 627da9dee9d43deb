"""Other models' vectors of a side's texts: of a guide against false negatives, and of a teacher.

They are computed once, when the side's sets are prepared, and kept next to the tokens; a step reads those of its rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.schema.config import Config
from data.encoders import AuxiliaryModel, open_auxiliary_model
from pipeline.core.artefact import replacing
from pipeline.core.embedding import prompts_of
from training.batch_plan import GlobalBatch, Integers, SetRows


@dataclass(frozen=True)
class TextVectors:
    """Another model's vectors of one set's texts."""

    keys: Integers  # (texts,) ascending: an anchor's number in `SetRows`, a passage's plus `passages`
    passages: int
    vectors: np.ndarray  # (texts, width) float32, on disk

    @classmethod
    def read(cls, file: Path, rows: SetRows) -> "TextVectors":
        """The set's vectors that `write_vectors` wrote."""
        return cls(*_keys(rows), np.load(file, mmap_mode="r"))

    def of(self, rows: SetRows, batch: GlobalBatch) -> np.ndarray:
        """The vectors of a batch's anchors, positives and chosen negatives, shape (rows, 2 + negatives, width)."""
        keys = np.column_stack([rows.anchors[batch.rows], rows.passages_of(batch) + self.passages])
        return np.asarray(self.vectors[np.searchsorted(self.keys, keys)])


def write_vectors(file: Path, other: AuxiliaryModel, texts: pa.Array, rows: SetRows, side: str, length: int) -> None:
    """Write the vectors of a set of this data `side`: of `texts`, numbered as in `rows`, cut at `length` tokens."""
    keys, passages = _keys(rows)
    found, anchors = texts.take(pa.array(keys % passages)).to_pylist(), int(np.searchsorted(keys, passages))
    prompts = prompts_of(other.model, side)
    parts = (found[:anchors], prompts.anchor), (found[anchors:], prompts.positive)
    vectors = [other.embed(some, prompt, length) for some, prompt in parts]
    shape = len(found), vectors[0].shape[1]
    with replacing(file) as path, path.open("wb") as out:  # one after the other, not joined in memory
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for part in vectors:
            part.tofile(out)


def _keys(rows: SetRows) -> tuple[Integers, int]:
    """Keys of all texts that a batch of these rows may have, and what is added to a passage's number."""
    passages = [rows.positives, *(rows.negatives if rows.max_negatives else ())]
    first = 1 + max(int(numbers.max(initial=0)) for numbers in (rows.anchors, *passages))
    return np.unique(np.concatenate([rows.anchors, *(numbers + first for numbers in passages)])), first


def auxiliary_models_of(config: Config, name: str) -> dict[str, Callable[[], AuxiliaryModel]]:
    """The guide and teacher of a training stage, if any: each is opened once, and only if a set lacks its vectors."""
    wanted = config.training_of(name).auxiliary_models.items()
    return {
        role: cache(partial(open_auxiliary_model, config, model, f"training.{name}.{role}")) for role, model in wanted
    }

"""Other models' vectors of a side's texts: of a guide against false negatives, and of a teacher.

They are computed once, when the side's sets are prepared, and kept next to the tokens; a step reads those of its rows.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs.schema.config import Config
from data.encoders import OpenedEncoder, open_encoder
from pipeline.core.artefact import replacing
from pipeline.core.console import log
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
        """The set's vectors that `AuxiliaryModel.write_vectors` wrote."""
        return cls(*_keys(rows), np.load(file, mmap_mode="r"))

    def of(self, rows: SetRows, batch: GlobalBatch) -> np.ndarray:
        """The vectors of a batch's anchors, positives and chosen negatives, shape (rows, 2 + negatives, width)."""
        keys = np.column_stack([rows.anchors[batch.rows], rows.passages_of(batch) + self.passages])
        return np.asarray(self.vectors[np.searchsorted(self.keys, keys)])


class AuxiliaryModel:
    """A guide or teacher, opened only where a set lacks its vectors.

    Args:
        wanted: base or init, a folder or a Hub id. Its tokenizer may differ: it reads texts.
        key: the config key that names it.
    """

    def __init__(self, config: Config, wanted: str, key: str) -> None:
        self.config, self.wanted, self.key = config, wanted, key

    @cached_property
    def encoder(self) -> OpenedEncoder:
        """The model, and where its vectors are kept for other runs."""
        opened = open_encoder(self.config, self.wanted, self.key)
        log.info("%s: %s (%s)", self.key, self.wanted, opened.revision)
        return opened

    def write_vectors(self, file: Path, texts: pa.Array, rows: SetRows, side: str, length: int) -> None:
        """Write the vectors of a set of this data `side`: of `texts`, numbered as in `rows`, cut at `length` tokens."""
        keys, passages = _keys(rows)
        found, anchors = texts.take(pa.array(keys % passages)).to_pylist(), int(np.searchsorted(keys, passages))
        prompts = prompts_of(self.encoder.model, side)
        parts = (found[:anchors], prompts.anchor), (found[anchors:], prompts.positive)
        vectors = [self.encoder.embed(some, prompt, length) for some, prompt in parts]
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


def auxiliary_models_of(config: Config, name: str) -> dict[str, AuxiliaryModel]:
    """The guide and teacher that a training stage has, if any."""
    wanted = config.training_of(name).auxiliary_models
    return {role: AuxiliaryModel(config, model, f"training.{name}.{role}") for role, model in wanted.items()}

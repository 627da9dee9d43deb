"""What other models make of a side's texts: a guide against false negatives, a teacher.

Their vectors are made once, before the first step, and kept beside the tokens; a step reads those of its rows.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from accelerate import PartialState

from configs.schema.config import Config
from data.encoders import Encoder, encode, open_encoder
from data.pair_files import read_pairs
from pipeline.core.artefact import replacing
from pipeline.core.console import log
from pipeline.core.embedding import DOCUMENT, QUERY
from training.batch_plan import GlobalBatch, Integers, SetRows


@dataclass(frozen=True)
class TextVectors:
    """Another model's vectors of one set's texts."""

    keys: Integers  # (texts,) rising: an anchor's identity in `SetRows`, a passage's plus `passages`
    passages: int
    vectors: np.ndarray  # (texts, width) float32, on disk

    def of(self, rows: SetRows, batch: GlobalBatch) -> np.ndarray:
        """Those of a batch's anchors, positives and chosen negatives, shape (rows, 2 + negatives, width)."""
        places = zip(batch.rows.tolist(), batch.negatives, strict=True)
        negatives = np.stack([rows.negatives[row][chosen] for row, chosen in places])
        passages = np.column_stack([rows.positives[batch.rows], negatives]) + self.passages
        keys = np.column_stack([rows.anchors[batch.rows], passages])
        return np.asarray(self.vectors[np.searchsorted(self.keys, keys)])


class OtherModel:
    """A guide or teacher; it is opened only where a set lacks its vectors.

    Args:
        wanted: base or init, a folder or a Hub id. Its tokenizer may be another: it reads texts.
        key: where the config names it.
    """

    def __init__(self, config: Config, wanted: str, key: str) -> None:
        self.config, self.wanted, self.key = config, wanted, key

    @cached_property
    def encoder(self) -> Encoder:
        """The model, and where its vectors are kept for other runs."""
        opened = open_encoder(self.config, self.wanted, self.key)
        log.info("%s: %s (%s)", self.key, self.wanted, opened.revision)
        return opened

    def vectors(self, pairs: Path, rows: SetRows, side: str, length: int, file: Path) -> TextVectors:
        """Of the set in `pairs`, a set of this data `side`, whose texts are cut at `length` tokens; kept in `file`.

        Each rank encodes its share of the texts.
        """
        first_passage = 1 + max(
            int(numbers.max(initial=0)) for numbers in (rows.anchors, rows.positives, *rows.negatives)
        )
        negatives = [numbers + first_passage for numbers in rows.negatives] if rows.most_negatives else []
        numbers = np.concatenate([rows.anchors, rows.positives + first_passage, *negatives])
        keys, places = np.unique(numbers, return_index=True)
        process, is_there = PartialState(), file.is_file()
        process.wait_for_everyone()  # till all have looked
        if not is_there:
            texts = _column_after_column(pairs).take(pa.array(places)).to_pylist()
            queries = int(np.searchsorted(keys, first_passage))
            embedder = self.encoder.embedder(length)
            prompts = embedder.prompt(QUERY), embedder.prompt(QUERY if side == "symmetric" else DOCUMENT)
            parts = list(zip(prompts, (texts[:queries], texts[queries:]), strict=True))
            own = [(prompt, some[process.process_index :: process.num_processes]) for prompt, some in parts]
            encode(embedder, own, rows.name, self.key)
            process.wait_for_everyone()
            if process.is_main_process:
                embedder = self.encoder.embedder(length)  # which reads what the other ranks have encoded
                with replacing(file) as path, path.open("wb") as out:
                    np.save(out, np.concatenate([embedder.embed(some, prompt) for prompt, some in parts]))
            process.wait_for_everyone()
        return TextVectors(keys, first_passage, np.load(file, mmap_mode="r"))


def _column_after_column(pairs: Path) -> Any:
    """The texts of all anchors, then of all positives, then of all negatives."""
    table = read_pairs(pairs)
    columns = [table["anchor"], table["positive"], table["negatives"].combine_chunks().flatten()]
    chunks = [chunk for column in columns for chunk in getattr(column, "chunks", [column])]
    return pa.chunked_array([chunk.cast(pa.large_string()) for chunk in chunks], pa.large_string())


def other_models(config: Config, side: str) -> dict[str, OtherModel]:
    """The side's guide and teacher, as far as it has them."""
    wanted = config.side(side).other_models
    return {role: OtherModel(config, name, f"training.{side}.{role}") for role, name in wanted.items()}

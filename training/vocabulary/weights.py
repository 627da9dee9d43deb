"""A model's weights with fewer rows in its vocabulary, streamed from file to file: no model object, no mapping."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from merging.checkpoint import ITEM_BYTES, WEIGHTS, Checkpoint, StoredTensor, write_header
from pipeline.errors import UserError
from training.vocabulary.torch_file import TORCH_WEIGHTS, TorchCheckpoint

BUFFER = 1 << 23  # bytes in memory at once
PADDING_ROWS = 128  # an embedding may have fewer than so many rows beyond the tokenizer's ids
EMBEDDING = "embeddings.word_embeddings.weight"
# All tensors with a row (or an item) for each id, by the ends of their names; the others belong to a language model.
BY_ID = (EMBEDDING, "lm_head.decoder.weight", "lm_head.decoder.bias", "lm_head.bias")


def open_weights(folder: Path) -> Checkpoint:
    """The folder's weights: safetensors if there are, else torch's own file; raises UserError."""
    has_safetensors = (folder / WEIGHTS).is_file() or (folder / f"{WEIGHTS}.index.json").is_file()
    return TorchCheckpoint(folder) if not has_safetensors and (folder / TORCH_WEIGHTS).is_file() else Checkpoint(folder)


def embedding_rows(weights: Checkpoint, ids: int) -> int:
    """Rows of the word embedding, checked against the tokenizer's number of ids.

    Raises:
        UserError: no word embedding, fewer rows than ids, or more than padding explains.
    """
    names = [name for name in weights.tensors if name.endswith(EMBEDDING)]
    if len(names) != 1:
        remedy = "choose a base of the BERT or XLM-RoBERTa family"
        raise UserError(f"{len(names)} word embeddings in the weights", where=str(weights.folder), remedy=remedy)
    rows = weights.tensors[names[0]].shape[0]
    if not ids <= rows < ids + PADDING_ROWS:
        what = f"the tokenizer has {ids:,} ids, but the embedding has {rows:,} rows"
        raise UserError(what, where=str(weights.folder), remedy="take weights and tokenizer from one model")
    return rows


def shrunk_shapes(weights: Checkpoint, rows: int, size: int) -> dict[str, tuple[int, ...]]:
    """The tensors' shapes after shrinking `rows` rows to `size`, in the order in which they are stored."""
    return {
        name: (size, *tensor.shape[1:]) if has_row_per_id(name, tensor, rows) else tensor.shape
        for name, tensor in weights.tensors.items()
    }


def has_row_per_id(name: str, tensor: StoredTensor, rows: int) -> bool:
    """Whether the tensor's rows go with the vocabulary's ids."""
    return name.endswith(BY_ID) and tensor.shape[0] == rows


def parameters(weights: Checkpoint, shapes: dict[str, tuple[int, ...]]) -> int:
    """Number of parameters in tensors of these shapes; buffers of whole numbers don't count."""
    floating = (name for name, tensor in weights.tensors.items() if tensor.is_floating)
    return sum(int(np.prod(shapes[name], dtype=np.int64)) for name in floating)


def shrink_weights(weights: Checkpoint, kept: npt.NDArray[np.int64], rows: int, target: Path) -> None:
    """Write `target` (safetensors): rows `kept` of the tensors with a row per id, all else bit by bit.

    Memory: two buffers of 8 MB, whatever the size of the model.
    """
    shapes = shrunk_shapes(weights, rows, len(kept))
    codes = {name: tensor.code for name, tensor in weights.tensors.items()}
    buffer = bytearray(BUFFER)
    with target.open("wb", buffering=0) as file:
        write_header(file, shapes, codes, {})
        for name, tensor in weights.tensors.items():
            if has_row_per_id(name, tensor, rows):
                _copy_rows(weights, tensor, kept, file)
            else:
                _copy(weights, tensor, buffer, file)


def _copy(weights: Checkpoint, tensor: StoredTensor, buffer: bytearray, file: BinaryIO) -> None:
    step = len(buffer) // ITEM_BYTES[tensor.code]
    for first in range(0, tensor.items, step):
        _write(file, weights.read(tensor, first, min(step, tensor.items - first), buffer))


def _copy_rows(weights: Checkpoint, tensor: StoredTensor, kept: npt.NDArray[np.int64], file: BinaryIO) -> None:
    items = tensor.items // tensor.shape[0]
    row_bytes = items * ITEM_BYTES[tensor.code]
    span = max(BUFFER // row_bytes, 1)
    buffer = bytearray(span * row_bytes)
    for ids in _spans(kept, span):
        first, count = int(ids[0]), int(ids[-1] - ids[0]) + 1
        part = weights.read(tensor, first * items, count * items, buffer)
        chosen = np.frombuffer(part, np.uint8).reshape(count, row_bytes)[ids - first]
        _write(file, chosen.data.cast("B"))


def _spans(kept: npt.NDArray[np.int64], span: int) -> Iterator[npt.NDArray[np.int64]]:
    """Ascending ids in groups whose first and last lie less than `span` apart."""
    start = 0
    while start < len(kept):
        end = int(np.searchsorted(kept, kept[start] + span))
        yield kept[start:end]
        start = end


def _write(file: BinaryIO, part: memoryview) -> None:
    while part:
        part = part[os.write(file.fileno(), part) :]

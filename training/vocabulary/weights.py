"""A model's weights with fewer rows in its vocabulary, streamed from file to file: no model object, no mapping."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.core.checkpoint import WEIGHTS, Checkpoint, EagerFile, StoredTensor, write_header
from pipeline.core.errors import UserError
from training.vocabulary.torch_file import TORCH_WEIGHTS, TorchCheckpoint

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


def shrink_weights(weights: Checkpoint, kept: npt.NDArray[np.int64], rows: int, target: EagerFile) -> None:
    """Write the file `target` (safetensors): rows `kept` of the tensors with a row per id, all else bit by bit.

    Only what stays is read, and the kernel copies it where it can: no tensor is in memory.
    """
    codes = {name: tensor.code for name, tensor in weights.tensors.items()}
    write_header(target.file, shrunk_shapes(weights, rows, len(kept)), codes, {})
    for name, tensor in weights.tensors.items():
        if has_row_per_id(name, tensor, rows):
            items = tensor.items // rows
            for first, count in _runs(kept):
                weights.copy(tensor, first * items, count * items, target)
        else:
            weights.copy(tensor, 0, tensor.items, target)


def _runs(kept: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """(first, number) of the ids that follow each other without a gap."""
    bounds = [0, *(np.flatnonzero(np.diff(kept) != 1) + 1).tolist(), len(kept)]
    for start, end in pairwise(bounds):
        yield int(kept[start]), end - start

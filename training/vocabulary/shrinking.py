"""The shrunk folder: every file of a base, edited where it depends on the vocabulary, copied where it does not."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from pipeline.core.artefact import PARTIAL, read_json, write_json
from pipeline.core.errors import UserError
from pipeline.core.model_folder import STAGE_FILES, read_tokenizer
from pipeline.core.safetensors_io import INDEX_FILE, WEIGHTS_FILE, EagerFile, SafetensorsReader, write_header
from training.vocabulary.tokenizer_file import OTHER_BASE, Ids, TokenizerFile, shrink_sentencepiece

TOKENIZER, SENTENCEPIECE = "tokenizer.json", "sentencepiece.bpe.model"
ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
PADDING_ROWS = 1024  # an embedding may have fewer than this many rows beyond the tokenizer's ids; mDeBERTa's has 898
# The ends of its name: BERT's, ModernBERT's, decoders', T5's. It is the only tensor with a row for each id.
EMBEDDING = ("word_embeddings.weight", "tok_embeddings.weight", "embed_tokens.weight", "shared.weight")


@dataclass(frozen=True)
class Sizes:
    """Sizes before and after shrinking."""

    vocabulary_before: int  # ids of the tokenizer
    vocabulary_after: int
    embedding_rows_before: int
    padding_rows_dropped: int  # rows that no id used
    parameters_before: int
    parameters_after: int


def shrink(base: Path, target: Path, tokenizer: TokenizerFile, kept: Ids) -> Sizes:
    """Write the base with only the ids `kept` (ascending, all special tokens among them) into the folder `target`.

    Raises UserError where the base's files disagree with each other.
    """
    config = _config(base / "config.json", {int(old): new for new, old in enumerate(kept)})
    copy_files(base, target, "*.safetensors", INDEX_FILE, TOKENIZER, SENTENCEPIECE)  # config.json is replaced below
    with SafetensorsReader(base) as weights, EagerFile(target / WEIGHTS_FILE) as file:
        rows = embedding_rows(weights, tokenizer.size)
        before = {name: tensor.shape for name, tensor in weights.tensors.items()}
        after = shrink_weights(weights, kept, rows, file)
        sizes = Sizes(
            tokenizer.size, len(kept), rows, rows - tokenizer.size,
            parameters(weights, before), parameters(weights, after),
        )  # fmt: skip
        # The tokenizer's files are edited while the disk is still writing the weights.
        tokenizer.write(target / TOKENIZER, kept)
        if (base / SENTENCEPIECE).is_file():
            shrink_sentencepiece(base / SENTENCEPIECE, target / SENTENCEPIECE, tokenizer, kept)
    write_json(target / "config.json", config)
    return sizes


def copy_files(base: Path, target: Path, *without: str) -> None:
    """Copy the base into the folder `target`, without its stage's own files and those that match `without`."""
    left_out = shutil.ignore_patterns(f"*{PARTIAL}", *STAGE_FILES, *without)
    shutil.copytree(base, target, ignore=left_out, dirs_exist_ok=True)


def copy_base(base: Path, target: Path) -> tuple[int, int]:
    """Copy the whole base into the folder `target`; returns its numbers of ids and parameters."""
    copy_files(base, target)
    with SafetensorsReader(base) as weights:
        shapes = {name: tensor.shape for name, tensor in weights.tensors.items()}
        return read_tokenizer(base / TOKENIZER).get_vocab_size(), parameters(weights, shapes)


def embedding_rows(weights: SafetensorsReader, ids: int) -> int:
    """Rows of the word embedding, checked against the tokenizer's number of ids.

    Raises UserError: no word embedding, fewer rows than ids, or more than padding explains.
    """
    names = [name for name in weights.tensors if name.endswith(EMBEDDING)]
    if len(names) != 1:
        raise UserError(f"{len(names)} word embeddings in the weights", where=str(weights.folder), remedy=OTHER_BASE)
    rows = weights.tensors[names[0]].shape[0]
    if not ids <= rows < ids + PADDING_ROWS:
        what = f"the tokenizer has {ids:,} ids, but the embedding has {rows:,} rows"
        raise UserError(what, where=str(weights.folder), remedy="take weights and tokenizer from one model")
    return rows


def shrink_weights(weights: SafetensorsReader, kept: Ids, rows: int, target: EagerFile) -> dict[str, tuple[int, ...]]:
    """Write the file `target` (safetensors): the rows `kept` of the word embedding, everything else bit for bit.

    Only what is kept is read, and the kernel copies it where it can: no tensor is in memory. Returns the new shapes.
    """
    tensors = weights.tensors.items()
    shapes = {
        name: (len(kept), *tensor.shape[1:]) if name.endswith(EMBEDDING) else tensor.shape for name, tensor in tensors
    }
    write_header(target.file, shapes, {name: tensor.code for name, tensor in tensors}, {})
    for name, tensor in tensors:
        if name.endswith(EMBEDDING):
            items = tensor.items // rows
            for first, count in _runs(kept):
                weights.copy(tensor, first * items, count * items, target)
        else:
            weights.copy(tensor, 0, tensor.items, target)
    return shapes


def parameters(weights: SafetensorsReader, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of parameters in tensors of these shapes; buffers of whole numbers don't count."""
    floating = (name for name, tensor in weights.tensors.items() if tensor.is_floating)
    return sum(int(np.prod(shapes[name], dtype=np.int64)) for name in floating)


def write_id_map(path: Path, tokenizer: TokenizerFile, kept: Ids, occurrences: Mapping[str, Ids]) -> None:
    """Write which id became which, for users of sparse dimensions: old_id, new_id, piece, score, count_<language>.

    One row per kept id, special tokens included; pieces of Unigram tokenizers have a score.
    """
    columns: dict[str, Any] = {
        "old_id": kept.astype(np.int32),
        "new_id": np.arange(len(kept), dtype=np.int32),
        "piece": [tokenizer.piece(int(old)) for old in kept],
    }
    if tokenizer.scores is not None:
        scores = np.zeros(tokenizer.size)  # added tokens after the pieces have no score
        scores[: len(tokenizer.pieces)] = tokenizer.scores
        columns["score"] = scores[kept]
    columns |= {f"count_{language}": count[kept] for language, count in occurrences.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def _runs(kept: Ids) -> Iterator[tuple[int, int]]:
    """(first id, number of ids) of each run of consecutive ids."""
    bounds = [0, *(np.flatnonzero(np.diff(kept) != 1) + 1).tolist(), len(kept)]
    for start, end in pairwise(bounds):
        yield int(kept[start]), end - start


def _config(path: Path, new_ids: Mapping[int, int]) -> dict[str, Any]:
    content = read_json(path)
    ids = {key: content[key] for key in ID_KEYS if content.get(key) is not None}
    if wrong := [f"{key} is {own}" for key, own in ids.items() if own not in list(new_ids)]:
        remedy = "correct it in the base, or choose another one"
        raise UserError(f"{wrong[0]}, which is no special token", where=str(path), remedy=remedy)
    return {**content, **{key: new_ids[own] for key, own in ids.items()}, "vocab_size": len(new_ids)}

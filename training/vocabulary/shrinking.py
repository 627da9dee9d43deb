"""The shrunk folder: every file of a base, edited where it depends on the vocabulary, copied where it does not."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.core.checkpoint import WEIGHTS, EagerFile
from training.vocabulary.selection import check_specials
from training.vocabulary.sentencepiece_file import shrink_sentencepiece
from training.vocabulary.tokenizer_file import TokenizerFile
from training.vocabulary.torch_file import TORCH_WEIGHTS
from training.vocabulary.weights import embedding_rows, open_weights, parameters, shrink_weights, shrunk_shapes

SENTENCEPIECE = "sentencepiece.bpe.model"
WEIGHT_FILES = (WEIGHTS, "model-*.safetensors", "model.safetensors.index.json", TORCH_WEIGHTS)
STAGE_FILES = ("manifest.json", "*.partial", "README.md")
ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id")


@dataclass(frozen=True)
class Sizes:
    """What shrinking did to the sizes."""

    vocabulary_before: int  # ids of the tokenizer
    vocabulary_after: int
    embedding_rows_before: int
    padding_rows_dropped: int  # rows that no id ever reached
    parameters_before: int
    parameters_after: int


def shrink(base: Path, target: Path, tokenizer: TokenizerFile, kept: npt.NDArray[np.int64]) -> Sizes:
    """Write the base with only the ids `kept` (ascending) into the folder `target`.

    Raises:
        UserError: a special token is not kept, or the base's files disagree with each other.
    """
    check_specials(tokenizer, kept)
    new_ids = {int(old): new for new, old in enumerate(kept)}
    with open_weights(base) as weights, EagerFile(target / WEIGHTS) as file:
        rows = embedding_rows(weights, tokenizer.size)
        shrink_weights(weights, kept, rows, file)
        before = {name: tensor.shape for name, tensor in weights.tensors.items()}
        sizes = Sizes(
            tokenizer.size, len(kept), rows, rows - tokenizer.size,
            parameters(weights, before), parameters(weights, shrunk_shapes(weights, rows, len(kept))),
        )  # fmt: skip
        # The tokenizer's files are edited while the disk still stores the weights.
        tokenizer.write(target / "tokenizer.json", kept)
        if (base / SENTENCEPIECE).is_file():
            shrink_sentencepiece(base / SENTENCEPIECE, target / SENTENCEPIECE, tokenizer, kept)
    edits = {"config.json": _config, "tokenizer_config.json": _tokenizer_config, "added_tokens.json": _added_tokens}
    for name, edit in edits.items():
        if (base / name).is_file():
            content = edit(json.loads((base / name).read_text(encoding="utf-8")), new_ids)
            (target / name).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    _copy_others(base, target, {"tokenizer.json", SENTENCEPIECE, *edits})
    return sizes


def _copy_others(base: Path, target: Path, edited: set[str]) -> None:
    """Copy what does not depend on the vocabulary: modules, pooling, the sparse and multi-vector heads."""
    matched = shutil.ignore_patterns(*WEIGHT_FILES, *STAGE_FILES)

    def left_out(folder: str, names: list[str]) -> set[str]:
        return matched(folder, names) | edited if Path(folder) == base else set()

    shutil.copytree(base, target, ignore=left_out, dirs_exist_ok=True)


def _config(content: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    renumbered = {key: new_ids[content[key]] for key in ID_KEYS if content.get(key) is not None}
    return {**content, **renumbered, "vocab_size": len(new_ids)}


def _tokenizer_config(content: dict[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    decoder = content.get("added_tokens_decoder")
    if decoder is None:
        return content
    return {**content, "added_tokens_decoder": {str(new_ids[int(old)]): token for old, token in decoder.items()}}


def _added_tokens(content: dict[str, int], new_ids: Mapping[int, int]) -> dict[str, int]:
    return {text: new_ids[old] for text, old in content.items()}

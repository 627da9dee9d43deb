"""The original and the shrunk encoder on the same texts: their hidden states must be the same, bit by bit."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

LONGEST = 128  # tokens of a text that are compared, where the model takes as many
TEXTS = 16  # texts in a batch


def compare_hidden_states(base: Path, shrunk: Path, texts: list[str], max_length: int) -> dict[str, Any]:
    """Last hidden states of both models in float32 on the CPU, in batches of equal shape.

    Returns:
        texts, tokens, whether all numbers are bitwise equal, and the largest difference.
    """
    before, tokens = _hidden_states(base, texts, min(LONGEST, max_length))
    after, _ = _hidden_states(shrunk, texts, min(LONGEST, max_length))
    same = all(bool((one == other).all()) for one, other in zip(before, after, strict=True))
    largest = max(float((one - other).abs().max()) for one, other in zip(before, after, strict=True))
    return {"texts": len(texts), "tokens": tokens, "bitwise_equal": same, "largest_difference": largest}


def _hidden_states(folder: Path, texts: list[str], length: int) -> tuple[list["torch.Tensor"], int]:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("<pad>"), pad_token="<pad>")
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    states, tokens = [], 0
    with torch.inference_mode():
        for start in range(0, len(texts), TEXTS):
            ids, mask = _batch(tokenizer, texts[start : start + TEXTS])
            states.append(model(input_ids=ids, attention_mask=mask).last_hidden_state)
            tokens += int(mask.sum())
    del model
    gc.collect()
    return states, tokens


def _batch(tokenizer: "Tokenizer", texts: list[str]) -> tuple["torch.Tensor", "torch.Tensor"]:
    import torch

    encodings = tokenizer.encode_batch(texts)
    ids = torch.tensor([encoding.ids for encoding in encodings])
    return ids, torch.tensor([encoding.attention_mask for encoding in encodings])

"""Packed texts: a batch as one row of token ids, each text behind the last, with attention inside each text alone.

There is no padding to compute and no mask to look at. `packed` makes the model's input, sentence-transformers' pooling
understands it, and `PACKED` is the name under which transformers finds the attention. A model with that attention
takes padded texts too, as with `sdpa`.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.core.models import PLAIN_NAMES
from pipeline.core.precision import PACKED

LEAST_CAPABILITY = (8, 0)  # of a GPU for which torch has the kernel
WIDTHS = range(8, 257, 8)  # of a head, for which there is a kernel


def packed(tokens: Tensor, lengths: Tensor, longest: int, first_position: int) -> dict[str, Any]:
    """The model's input: rows of shape (1, tokens), and where each text begins and ends, all on the tokens' device.

    `tokens` are the ids of texts behind one another, `lengths` those of the texts, int64, and `first_position` is the
    number of a text's first position (`first_position_of`). The names are those of transformers'
    DataCollatorWithFlattening, which pooling looks for. Nothing here waits for the device.
    """
    ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    text = torch.arange(len(lengths), device=tokens.device).repeat_interleave(lengths, output_size=len(tokens))
    places = torch.arange(len(tokens), device=tokens.device) - ends[text]
    limits = ends.int()
    return {
        "input_ids": tokens.long()[None],
        "position_ids": places[None] + first_position,
        "seq_idx": text[None],
        "cu_seq_lens_q": limits,
        "cu_seq_lens_k": limits,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def pack(texts: Sequence[Sequence[int]], first_position: int) -> dict[str, Any]:
    """`packed` of texts that are lists of ids, on the CPU."""
    lengths = [len(text) for text in texts]
    return packed(concatenated(texts), torch.tensor(lengths), max(lengths), first_position)


def concatenated(texts: Sequence[Sequence[int]]) -> Tensor:
    """The ids of texts behind one another, (tokens,) int32; `torch.tensor` of a list takes twelve times as long."""
    return torch.from_numpy(np.fromiter(chain.from_iterable(texts), np.int32, sum(map(len, texts))))


def first_position_of(model: SentenceTransformer) -> int:
    """Position id of a text's first token: 0, but 2 with XLM-R, which counts from the padding token's id (1) plus 1."""
    module: Any = model[0]
    return module._infer_flatten_position_offset()


def is_packed(model: SentenceTransformer) -> bool:
    """Whether the model attends inside packed texts."""
    encoder = getattr(model[0], "model", None)
    return isinstance(encoder, PreTrainedModel) and encoder.config._attn_implementation == PACKED


def use_packed(model: SentenceTransformer) -> None:
    """Switch the model to attention inside packed texts; padded batches still work, as with sdpa."""
    module: Any = model[0]
    module.model.set_attn_implementation(PACKED)


def why_not_packed(model: SentenceTransformer, half: bool, dropout: float) -> str | None:
    """What packed attention lacks here, or None where it can run, such as a GPU, 16-bit numbers, or no dropout.

    `half` says whether the encoder computes in bfloat16 or float16.
    """
    encoder: Any = getattr(model[0], "model", None)
    family = encoder.config.model_type if isinstance(encoder, PreTrainedModel) else type(model[0]).__name__
    if family not in PLAIN_NAMES:
        return f"a base of one of the families {', '.join(PLAIN_NAMES)}, not {family}"
    if not torch.cuda.is_available():
        return "a GPU"
    place = model.device if model.device.type == "cuda" else None  # None: where this process will put it
    if torch.cuda.get_device_capability(place) < LEAST_CAPABILITY:
        return "a GPU of compute capability 8.0 or more"
    if encoder.config.hidden_size // encoder.config.num_attention_heads not in WIDTHS:
        return "a base whose heads' width is a multiple of 8, up to 256"
    if not half:
        return "precision bf16 or fp16"
    if dropout:
        return "dropout=0"
    return None if encoder.config._attn_implementation in ("sdpa", PACKED) else "attention sdpa"


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of `query`, `key` and `value` (1, heads, tokens, width of a head) inside each text.

    Returns (1, tokens, heads, width of a head). The kernel scales by 1 / sqrt(width), as do all `PLAIN_NAMES`.
    """
    ends = options.get("cu_seq_lens_q")
    if ends is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if query.device.type == "cpu":  # slow, for tests: without a kernel text by text
        lengths = ends.diff().tolist()
        parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
        return torch.cat([scaled_dot_product_attention(*part) for part in parts], dim=2).transpose(1, 2), None
    longest = options["max_length_q"]
    query, key, value = (tensor.squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    found: Any = varlen_attn(query, key, value, ends, ends, longest, longest)
    return found[None], None


AttentionInterface.register(PACKED, _attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)  # None for packed texts, which have no mask

"""Packed texts: a batch as one row of token ids, texts concatenated, with attention restricted to each text.

There is no padding to compute and no mask to evaluate. `packed` makes the model's input, sentence-transformers' pooling
supports it, and transformers registers the attention as `PACKED`. A model with this attention also takes padded texts,
as with `sdpa`.
"""

from collections.abc import Sequence
from inspect import signature
from itertools import chain
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from pipeline.core.device import PACKED
from pipeline.core.models import FAMILIES

LEAST_CAPABILITY = (8, 0)  # least capability of a GPU for torch's kernel
WIDTHS = range(8, 257, 8)  # of a head, as supported by the kernel


def packed(tokens: Tensor, lengths: Tensor, longest: int, first_position: int) -> dict[str, Any]:
    """The model's input: rows of shape (1, tokens) and the texts' boundaries, all on the tokens' device.

    `tokens` are the concatenated ids of the texts, `lengths` the texts' lengths, int64, and `first_position` is the
    position id of a text's first token (`first_position_of`). The names are those of transformers'
    DataCollatorWithFlattening, which pooling expects. Nothing here synchronises with the device.
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
    """`packed` for texts as lists of ids, on the CPU."""
    lengths = [len(text) for text in texts]
    return packed(concatenated(texts), torch.tensor(lengths), max(lengths), first_position)


def concatenated(texts: Sequence[Sequence[int]]) -> Tensor:
    """The concatenated ids of texts, (tokens,) int32; `torch.tensor` of a list takes twelve times as long."""
    return torch.from_numpy(np.fromiter(chain.from_iterable(texts), np.int32, sum(map(len, texts))))


def first_position_of(model: SentenceTransformer) -> int:
    """Position id of a text's first token: 0, or 2 for XLM-R, which starts at the padding token's id (1) plus 1."""
    module: Any = model[0]
    return module._infer_flatten_position_offset()


def is_packed(model: SentenceTransformer) -> bool:
    """Whether the model uses attention for packed texts."""
    encoder = getattr(model[0], "model", None)
    return isinstance(encoder, PreTrainedModel) and encoder.config._attn_implementation == PACKED


def use_packed(model: SentenceTransformer) -> None:
    """Switch the model to attention for packed texts; padded batches still work, as with sdpa."""
    module: Any = model[0]
    module.model.set_attn_implementation(PACKED)


def why_not_packed(model: SentenceTransformer, half: bool, dropout: float) -> str | None:
    """A missing requirement of packed attention, such as a GPU, 16-bit precision or no dropout; None if it can run.

    `half`: whether the encoder computes in bfloat16 or float16.
    """
    encoder: Any = getattr(model[0], "model", None)
    family = encoder.config.model_type if isinstance(encoder, PreTrainedModel) else type(model[0]).__name__
    if family not in FAMILIES:
        return f"a base of one of the families {', '.join(FAMILIES)}, not {family}"
    if not torch.cuda.is_available():
        return "a GPU"
    place = model.device if model.device.type == "cuda" else None  # None: where this process will put it
    if torch.cuda.get_device_capability(place) < LEAST_CAPABILITY:
        return "a GPU of compute capability 8.0 or more"
    config = encoder.config
    if (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads) not in WIDTHS:
        return "a base whose heads' width is a multiple of 8, up to 256"
    is_grouped = getattr(config, "num_key_value_heads", config.num_attention_heads) != config.num_attention_heads
    if is_grouped and "enable_gqa" not in signature(varlen_attn).parameters:
        return "a newer torch, for heads that share keys"
    if not half:
        return "precision bf16 or fp16"
    if dropout:
        return "dropout=0"
    return None if encoder.config._attn_implementation in ("sdpa", PACKED) else "attention sdpa"


def _attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention of `query`, `key` and `value` (1, heads, tokens, width of a head) within each text.

    Returns (1, tokens, heads, width of a head). The kernel scales by 1 / sqrt(width), as all `FAMILIES` do. In a
    layer with a `sliding_window` a token sees those at a smaller distance, in a decoder's layer none after it. Groups
    of query heads may share the heads of `key` and `value`.
    """
    ends, window = options.get("cu_seq_lens_q"), options.get("sliding_window")
    if ends is None:
        assert attention_mask is not None or window is None, "padded texts without their mask"
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    causal, grouped = getattr(module, "is_causal", False), query.shape[1] != key.shape[1]
    if query.device.type == "cpu":  # slow, for tests: text by text, as there is no kernel
        lengths = ends.diff().tolist()
        parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), lengths, strict=True)
        texts = [
            scaled_dot_product_attention(q, k, v, _seen(length, window, causal), enable_gqa=grouped)
            for q, k, v, length in parts
        ]
        return torch.cat(texts, dim=2).transpose(1, 2), None
    longest, before = options["max_length_q"], -1 if window is None else window - 1  # -1: all
    limit: dict[str, Any] = {"enable_gqa": True} if grouped else {}  # where needed: earlier releases of torch lack it
    if causal or window is not None:
        limit["window_size"] = before, 0 if causal else before
    # The kernel takes 16 bit only: under autocast rotary positions and norms widen query and key to float32.
    query, key, value = (tensor.to(value.dtype).squeeze(0).transpose(0, 1) for tensor in (query, key, value))
    # From torch 2.15 cuDNN's kernel would come first on H100 and B200. It builds a plan for each new shape, tens of
    # milliseconds, and packed mini-batches seldom have the same shape twice.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found: Any = varlen_attn(query, key, value, ends, ends, longest, longest, **limit)
    return found[None], None


def _seen(tokens: int, window: int | None, causal: bool) -> Tensor | None:
    """Which tokens of a text each of them sees, (tokens, tokens); None: all."""
    if window is None and not causal:
        return None
    reach = (tokens if window is None else window) - 1
    return torch.ones(tokens, tokens, dtype=torch.bool).tril(0 if causal else reach).triu(-reach)


def _mask(attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """The mask of padded texts, as with sdpa; None for packed ones, which come without one."""
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **options)


AttentionInterface.register(PACKED, _attention)
AttentionMaskInterface.register(PACKED, _mask)

"""Texts through the heads of `pipeline.core.heads`: their sparse vectors and their multi-vectors."""

from collections.abc import Sequence

import torch

from evaluation.encoder import Encoder
from pipeline.core.embedding import require_finite
from pipeline.core.errors import UserError
from pipeline.core.heads import Heads


@torch.inference_mode()
def sparse_vectors(encoder: Encoder, heads: Heads, texts: Sequence[str], prompt: str = "") -> torch.Tensor:
    """Weights of all pieces as a sparse tensor (texts, vocabulary), float32, on the model's device."""
    check_width(encoder, heads)
    shape, unused, found = (len(texts), encoder.config.vocab_size), unused_ids(encoder), []
    for batch, features in encoder.token_batches(encoder.tokenise(texts, prompt)):
        weights = heads.weights(features["token_embeddings"]) * features["attention_mask"]
        made = weights.new_zeros(len(batch), shape[1])
        made.scatter_reduce_(1, features["input_ids"], weights, reduce="amax")
        made[:, unused] = 0
        rows, pieces = made.nonzero(as_tuple=True)
        found.append((torch.tensor(batch, device=made.device)[rows], pieces, made[rows, pieces]))
    rows, pieces, values = (torch.cat(parts) for parts in zip(*found, strict=True))
    require_finite([values.cpu()], encoder.model)
    return torch.sparse_coo_tensor(torch.stack([rows, pieces]), values, shape).coalesce()


@torch.inference_mode()
def token_vectors(encoder: Encoder, heads: Heads, texts: Sequence[str], prompt: str = "") -> list[torch.Tensor]:
    """Unit vectors (tokens, width) of every text's tokens but the first one, float32, on the CPU."""
    check_width(encoder, heads)
    ids, found = encoder.tokenise(texts, prompt), dict[int, torch.Tensor]()
    for batch, features in encoder.token_batches(ids):
        vectors = heads.vectors(features["token_embeddings"]).cpu()
        found.update({index: vectors[row, 1 : len(ids[index])].clone() for row, index in enumerate(batch)})
    require_finite(found.values(), encoder.model)
    return [found[index] for index in range(len(texts))]


def unused_ids(encoder: Encoder) -> list[int]:
    """Ids of <s>, </s>, <pad> and <unk>, whose sparse weights are zero."""
    tokenizer = encoder.tokenizer
    ids = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id}
    return sorted((ids | {tokenizer.pad_token_id, tokenizer.unk_token_id}) - {None})


def check_width(encoder: Encoder, heads: Heads) -> None:
    """Raise UserError where the encoder has no hidden states, or ones of another width than the heads."""
    hidden = encoder.config.hidden_size
    if heads.sparse.in_features != hidden or heads.multi_vector.in_features != hidden:
        raise UserError(
            f"heads for width {heads.sparse.in_features}, but the encoder has {hidden}",
            where=str(encoder.folder),
            remedy="give the heads of this model's own base in evaluation.heads",
        )

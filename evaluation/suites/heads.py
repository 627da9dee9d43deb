"""bge-m3's sparse and multi-vector abilities: its two linear heads on the encoder of any model.

Sparse: a token weighs relu(w·h + b), a piece the maximum over its tokens, special tokens nothing; score by dot product.
Multi-vector: every token but the first one is projected and scaled to length 1; score by MaxSim. Source: FlagEmbedding,
`m3/modeling.py`. Re-fitting the two heads on a tuned encoder would be a step of training.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evaluation.encoder import Encoder
from evaluation.models import has_heads
from pipeline.core.embedding import require_finite
from pipeline.core.errors import UserError, first_line
from pipeline.core.models import HEADS, RAISED_BY_FILES

SPARSE_FILE, MULTI_VECTOR_FILE = HEADS


@dataclass(frozen=True)
class Heads:
    """Two linear layers on the last hidden state: [1, hidden] and [width, hidden], with their biases."""

    sparse: torch.nn.Linear
    multi_vector: torch.nn.Linear
    fingerprint: str

    def weights(self, hidden: torch.Tensor) -> torch.Tensor:
        """Sparse weights (texts, tokens) of hidden states (texts, tokens, hidden), which may be on any device."""
        return torch.relu(_applied(self.sparse, hidden)).squeeze(-1)

    def vectors(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unit vectors (texts, tokens, width) of hidden states (texts, tokens, hidden), which may be on any device."""
        return torch.nn.functional.normalize(_applied(self.multi_vector, hidden), dim=-1)


def read_heads(*folders: Path) -> Heads:
    """The heads of the first of `folders` that has both; raises UserError where none has, or where they don't fit."""
    for folder in folders:
        if has_heads(folder):
            contents = [(folder / name).read_bytes() for name in HEADS]
            fingerprint = hashlib.sha256(b"".join(contents)).hexdigest()
            return Heads(_linear(folder / SPARSE_FILE), _linear(folder / MULTI_VECTOR_FILE), fingerprint)
    raise UserError(
        f"no sparse and multi-vector heads ({SPARSE_FILE}, {MULTI_VECTOR_FILE})",
        where=", ".join(str(folder) for folder in folders),
        remedy="set evaluation.heads to a folder that has them, such as the base's",
    )


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


def _applied(layer: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """The layer where the hidden states are; itself it stays where it is, as models on other devices use it too."""
    return torch.nn.functional.linear(hidden, layer.weight.to(hidden.device), layer.bias.to(hidden.device))


def _linear(path: Path) -> torch.nn.Linear:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        out, width = state["weight"].shape
        layer = torch.nn.Linear(width, out)
        layer.load_state_dict({name: value.float() for name, value in state.items()})
    except RAISED_BY_FILES as error:
        what = f"not the weights of a linear layer: {first_line(error)}"
        raise UserError(what, where=str(path), remedy="take the file from the base model") from error
    return layer.requires_grad_(False).eval()


def check_width(encoder: Encoder, heads: Heads) -> None:
    """Raise UserError where the encoder has no hidden states, or ones of another width than the heads."""
    hidden = encoder.config.hidden_size
    if heads.sparse.in_features != hidden or heads.multi_vector.in_features != hidden:
        raise UserError(
            f"heads for width {heads.sparse.in_features}, but the encoder has {hidden}",
            where=str(encoder.folder),
            remedy="give the heads of this model's own base in evaluation.heads",
        )

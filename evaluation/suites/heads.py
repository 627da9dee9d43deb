"""bge-m3's sparse and multi-vector abilities: its two linear heads on the encoder of any model.

Sparse: a token weighs relu(w·h + b), a piece the maximum over its tokens, special tokens nothing; score by dot product.
Multi-vector: every token but the first one is projected and scaled to length 1; score by MaxSim. Source: FlagEmbedding,
`m3/modeling.py`. Re-fitting the two heads on a tuned encoder would be a step of training.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Module, Normalize
from sentence_transformers.sparse_encoder import SparseEncoder

from evaluation.encoder import Embedder
from evaluation.models import has_heads
from pipeline.core.errors import UserError, first_line
from pipeline.core.models import HEADS, RAISED_BY_FILES

SPARSE_FILE, MULTI_VECTOR_FILE = HEADS


@dataclass(frozen=True)
class Heads:
    """Two linear layers on the last hidden state: [1, hidden] and [width, hidden], with their biases."""

    sparse: torch.nn.Linear
    multi_vector: torch.nn.Linear
    fingerprint: str


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


class SparseWeights(Module):
    """Writes the weights of all pieces, [texts, vocabulary], as the embedding."""

    def __init__(self, head: torch.nn.Linear, vocabulary: int, unused: list[int]) -> None:
        super().__init__()
        self.head, self.vocabulary, self.unused = head, vocabulary, unused

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """From token_embeddings [texts, tokens, hidden], input_ids and attention_mask."""
        weights = torch.relu(self.head(features["token_embeddings"].float())).squeeze(-1)
        weights = weights * features["attention_mask"]
        made = weights.new_zeros(len(weights), self.vocabulary)
        made = made.scatter_reduce(1, features["input_ids"], weights, reduce="amax")
        made[:, self.unused] = 0
        features["sentence_embedding"] = made
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Never saved: it is made of a model folder's own files."""
        raise NotImplementedError

    def get_embedding_dimension(self) -> int:
        """Width of a sparse vector."""
        return self.vocabulary


class WithoutFirst(Module):
    """Takes the first token, which bge-m3 does not match, out of the attention mask."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Changes attention_mask [texts, tokens]."""
        mask = features["attention_mask"].clone()
        mask[:, 0] = 0
        features["attention_mask"] = mask
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Never saved: it has nothing to save."""
        raise NotImplementedError


def sparse_encoder(embedder: Embedder, heads: Heads) -> SparseEncoder:
    """The model as a sparse encoder of sentence-transformers, without another copy of its weights."""
    _check_width(embedder, heads)
    pooled = SparseWeights(heads.sparse, embedder.config.vocab_size, unused_ids(embedder))
    return SparseEncoder(
        modules=[embedder.model[0], pooled],
        similarity_fn_name="dot",
        device=str(embedder.model.device),
        prompts={name: prompt or "" for name, prompt in embedder.model.prompts.items()},
        default_prompt_name=embedder.model.default_prompt_name,
    )


def multi_vector_encoder(embedder: Embedder, heads: Heads) -> MultiVectorEncoder:
    """The model as a multi-vector encoder of sentence-transformers, without another copy of its weights."""
    _check_width(embedder, heads)
    width, hidden = heads.multi_vector.weight.shape
    tokens = "token_embeddings"
    dense = Dense(hidden, width, activation_function=None, module_input_name=tokens, module_output_name=tokens)
    dense.linear = heads.multi_vector
    return MultiVectorEncoder(
        modules=[embedder.model[0], dense, WithoutFirst(), Normalize(module_input_name=tokens)],
        device=str(embedder.model.device),
        prompts={name: prompt or "" for name, prompt in embedder.model.prompts.items()},
        default_prompt_name=embedder.model.default_prompt_name,
    )


def unused_ids(embedder: Embedder) -> list[int]:
    """Ids of <s>, </s>, <pad> and <unk>, whose sparse weights are zero."""
    tokenizer = embedder.tokenizer
    ids = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id}
    return sorted((ids | {tokenizer.pad_token_id, tokenizer.unk_token_id}) - {None})


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


def _check_width(embedder: Embedder, heads: Heads) -> None:
    hidden = embedder.config.hidden_size
    if heads.sparse.in_features != hidden or heads.multi_vector.in_features != hidden:
        raise UserError(
            f"heads for width {heads.sparse.in_features}, but the encoder has {hidden}",
            where=str(embedder.folder),
            remedy="give the heads of this model's own base in evaluation.heads",
        )

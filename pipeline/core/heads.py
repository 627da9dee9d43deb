"""bge-m3's sparse and multi-vector outputs: two linear heads on an encoder's last hidden state.

Sparse: a token weighs relu(w·h + b), a piece the maximum over its tokens, special tokens nothing; score by dot product.
Multi-vector: every token but the first one is projected and scaled to length 1; score by MaxSim. Source: FlagEmbedding,
`m3/modeling.py`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.core.errors import UserError, first_line
from pipeline.core.models import HEADS, RAISED_BY_FILES, has_heads

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

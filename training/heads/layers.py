"""Sparse and multi-vector heads as a part of a model that trains, and what they start from."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from torch import Tensor, nn

from pipeline.core.heads import read_heads
from pipeline.core.model_folder import HEADS
from pipeline.core.seeding import derived_seed
from training.model_files import encoder_of

FIRST_WEIGHT = 0.2  # of every token: about the size of those in the example of bge-m3's model card


class HeadLayers(Module):
    """Both heads as the last module of a model, for the trainer's sake: it passes on what it gets."""

    def __init__(self, sparse: nn.Linear, multi_vector: nn.Linear) -> None:
        super().__init__()
        self.sparse, self.multi_vector = sparse.requires_grad_(), multi_vector.requires_grad_()

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        self.save_torch_weights(output_path)

    def weights(self, hidden: Tensor) -> Tensor:
        """Sparse weights (..., tokens), at least 0, of hidden states (..., tokens, width)."""
        return torch.relu(self.sparse(hidden)).squeeze(-1)

    def vectors(self, hidden: Tensor) -> Tensor:
        """Unit vectors (..., tokens, width of the head) of hidden states (..., tokens, width)."""
        return F.normalize(self.multi_vector(hidden), dim=-1)


def add_heads(model: SentenceTransformer, folder: Path, seed: int) -> HeadLayers:
    """Give the model, which was loaded from the folder, its `first_heads` as its last module."""
    heads = HeadLayers(*first_heads(folder, encoder_of(model).config.hidden_size, seed))
    model.add_module("heads", heads)
    return heads


def first_heads(folder: Path, hidden: int, seed: int) -> tuple[nn.Linear, nn.Linear]:
    """The heads of the model folder, else new ones as wide as the encoder.

    Of new ones every token weighs the same in the sparse vector: at random, relu would leave texts without any weight,
    which get no gradient. The multi-vector head is a rotation, which keeps the angles between hidden states.
    """
    if any((folder / name).is_file() for name in HEADS):
        found = read_heads(folder)
        return found.sparse, found.multi_vector
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "heads") % 2**63)
        sparse, multi_vector = nn.Linear(hidden, 1), nn.Linear(hidden, hidden)
        nn.init.orthogonal_(multi_vector.weight)
        nn.init.zeros_(multi_vector.bias)
        nn.init.zeros_(sparse.weight)
        nn.init.constant_(sparse.bias, FIRST_WEIGHT)
        return sparse, multi_vector

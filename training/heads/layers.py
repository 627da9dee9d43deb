"""Initial sparse and multi-vector heads, to be trained."""

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import nn

from pipeline.core.heads import Heads, read_heads
from pipeline.core.model_folder import HEADS
from pipeline.core.seeding import derived_seed
from training.model_files import encoder_of

FIRST_WEIGHT = 0.2  # of every token: about as large as those in the example of bge-m3's model card


def add_heads(model: SentenceTransformer, folder: Path, seed: int) -> Heads:
    """Append `first_heads` as the last module of the model, which was loaded from the folder."""
    heads = first_heads(folder, encoder_of(model).config.hidden_size, seed).requires_grad_()
    model.add_module("heads", heads)
    return heads


def first_heads(folder: Path, hidden: int, seed: int) -> Heads:
    """The heads of the model folder, otherwise new ones as wide as the encoder.

    A new sparse head gives every token the same weight: with a random one, relu would leave some texts without any
    weight, and thus without a gradient. A new multi-vector head is a rotation, which keeps the angles between hidden
    states.
    """
    if any((folder / name).is_file() for name in HEADS):
        return read_heads(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "heads") % 2**63)
        sparse, multi_vector = nn.Linear(hidden, 1), nn.Linear(hidden, hidden)
        nn.init.orthogonal_(multi_vector.weight)
        nn.init.zeros_(multi_vector.bias)
        nn.init.zeros_(sparse.weight)
        nn.init.constant_(sparse.bias, FIRST_WEIGHT)
        return Heads(sparse, multi_vector)

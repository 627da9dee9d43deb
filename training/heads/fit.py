"""The stage `heads`: sparse and multi-vector heads for the merged model, whose encoder stays as it is."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.schema.config import Config
from pipeline.core.artefact import StageFolder, link_tree
from pipeline.core.heads import read_heads, write_heads
from pipeline.core.models import HEADS
from pipeline.core.seeding import derived_seed


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Fit heads to the merged model and write model/, that model with them."""
    start = config.model_folder("merge")
    sparse, multi_vector = first_heads(
        start, json.loads((start / "config.json").read_text())["hidden_size"], config.training_seed
    )
    with stage.replacing("model") as folder:
        link_tree(start, folder)
        write_heads(folder, sparse, multi_vector)
    return {}


def first_heads(folder: Path, hidden: int, seed: int) -> tuple[nn.Linear, nn.Linear]:
    """The heads of the model folder, else new ones as wide as the encoder."""
    if any((folder / name).is_file() for name in HEADS):
        found = read_heads(folder)
        return found.sparse, found.multi_vector
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "heads") % 2**63)
        return nn.Linear(hidden, 1), nn.Linear(hidden, hidden)

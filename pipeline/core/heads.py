"""bge-m3's sparse and multi-vector outputs: two linear heads on an encoder's last hidden state.

Sparse: a token gets the weight relu(w·h + b), a piece the maximum over its tokens, special tokens 0; score by dot
product. Multi-vector: every token but the first is projected and scaled to length 1; score by MaxSim. Source:
FlagEmbedding, `m3/modeling.py`.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from pipeline.core.artefact import file_sha256, json_sha256, read_json, write_json
from pipeline.core.errors import UserError, first_line
from pipeline.core.model_folder import (
    HEADS,
    HEADS_RECORD,
    RAISED_BY_FILES,
    TORCH_FILES,
    encoder_config,
    transformer_folder,
)
from pipeline.core.seeding import derived_seed

HYBRID_WEIGHTS = {"dense": 1.0, "sparse": 0.3, "multi_vector": 1.0}  # of the modes' scores, as bge-m3 was trained
FIRST_WEIGHT = 0.2  # of every token: about as large as those in the example of bge-m3's model card


class Heads(torch.nn.Module):
    """Two linear layers on the last hidden state: [1, hidden] and [width, hidden], with their biases.

    As the last module of a model in training they return their input. `fingerprint` is that of their files.
    """

    def __init__(self, sparse: torch.nn.Linear, multi_vector: torch.nn.Linear, fingerprint: str = "") -> None:
        super().__init__()
        self.sparse, self.multi_vector, self.fingerprint = sparse, multi_vector, fingerprint

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return features

    def weights(self, hidden: torch.Tensor) -> torch.Tensor:
        """Sparse weights (..., tokens), at least 0, of hidden states (..., tokens, hidden)."""
        return torch.relu(self.sparse(hidden)).squeeze(-1)

    def vectors(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unit vectors (..., tokens, width) of hidden states (..., tokens, hidden)."""
        return torch.nn.functional.normalize(self.multi_vector(hidden), dim=-1)


def read_heads(encoder: Path, *others: Path) -> Heads:
    """The heads for the model in the folder `encoder`: its own, or those of the first other folder that has any.

    Raises UserError if there are none, if only one of the two files is present (FlagEmbedding then initialises both,
    almost silently), or if they have another hidden size or were fitted to another encoder.
    """
    for folder in (encoder, *others):
        found = [name for name in HEADS if (folder / name).is_file()]
        if len(found) == 1:
            what = f"{found[0]} without {next(name for name in HEADS if name not in found)}"
            raise UserError(what, where=str(folder), remedy="add the other file, or remove this one")
        if found:
            return _heads_of(folder, encoder)
    what, where = f"no sparse and multi-vector heads ({', '.join(HEADS)})", ", ".join(map(str, (encoder, *others)))
    raise UserError(what, where=where, remedy="make heads, or add both files to the folder")


def own_heads(folder: Path) -> Heads | None:
    """The heads in the model folder, None if there are none; raises UserError as `read_heads` does."""
    return read_heads(folder) if any((folder / name).is_file() for name in HEADS) else None


def first_heads(folder: Path, hidden: int, seed: int) -> Heads:
    """The heads of the model folder, otherwise new ones as wide as the encoder, to be trained.

    A new sparse head gives every token the same weight: with a random one, relu would leave some texts without any
    weight, and thus without a gradient. A new multi-vector head is a rotation, which keeps the angles between hidden
    states.
    """
    if heads := own_heads(folder):
        return heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "heads") % 2**63)
        sparse, multi_vector = torch.nn.Linear(hidden, 1), torch.nn.Linear(hidden, hidden)
        torch.nn.init.orthogonal_(multi_vector.weight)
        torch.nn.init.zeros_(multi_vector.bias)
        torch.nn.init.zeros_(sparse.weight)
        torch.nn.init.constant_(sparse.bias, FIRST_WEIGHT)
        return Heads(sparse, multi_vector)


def translated(weights: Mapping[int, float], id_map: Path) -> dict[int, float]:
    """A sparse vector of the base in the ids of the model with the smaller vocabulary, by its `id_map.parquet`.

    Weights by id, as FlagEmbedding returns them; those of pieces that were not kept are left out. An index of the
    base's sparse vectors thus serves queries of the smaller model, provided texts are split into kept pieces.
    """
    columns = pq.read_table(id_map, columns=["old_id", "new_id"]).to_pydict()
    new = dict(zip(columns["old_id"], columns["new_id"], strict=True))
    return {new[int(piece)]: weight for piece, weight in weights.items() if int(piece) in new}


def write_heads(folder: Path, heads: Heads) -> None:
    """Write heads in FlagEmbedding's layout into the folder of the model to which they were fitted."""
    for name, layer in zip(HEADS, (heads.sparse, heads.multi_vector), strict=True):
        (folder / name).unlink(missing_ok=True)  # it may be a hard link to another model's file
        torch.save({key: value.detach().cpu().clone() for key, value in layer.state_dict().items()}, folder / name)
    write_json(folder / HEADS_RECORD, {"encoder": encoder_fingerprint(folder)})


def unused_ids(tokenizer: Any) -> list[int]:
    """Ids of <s>, </s>, <pad> and <unk>, or their equivalents in other families, whose sparse weights are zero."""
    ids = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id}
    return sorted((ids | {tokenizer.pad_token_id, tokenizer.unk_token_id}) - {None})


def encoder_fingerprint(folder: Path) -> str:
    """The sha256 of the weights of a model folder's encoder."""
    place = transformer_folder(folder)
    files = sorted(file for pattern in ("*.safetensors", TORCH_FILES) for file in place.glob(pattern))
    return json_sha256({file.name: file_sha256(file) for file in files})


def _heads_of(folder: Path, encoder: Path) -> Heads:
    sparse, multi_vector = (_linear(folder / name) for name in HEADS)
    fingerprint = hashlib.sha256(b"".join((folder / name).read_bytes() for name in HEADS)).hexdigest()
    place, remedy = str(folder), "take the heads of this model's own base, or fit new ones: make heads"
    if sparse.out_features != 1:
        raise UserError(f"{HEADS[0]} gives {sparse.out_features} weights a token, not one", where=place, remedy=remedy)
    inside = transformer_folder(encoder)
    hidden = encoder_config(inside).get("hidden_size") if (inside / "config.json").is_file() else None
    sizes = {sparse.in_features, multi_vector.in_features}
    if sizes != {hidden or sparse.in_features}:
        what = f"heads for width {' and '.join(map(str, sorted(sizes)))}, but the encoder has {hidden}"
        raise UserError(what, where=place, remedy=remedy)
    if (folder / HEADS_RECORD).is_file():
        fitted_to = read_json(folder / HEADS_RECORD).get("encoder")
        if fitted_to != encoder_fingerprint(encoder):
            what = f"the heads were fitted to another encoder than that of {encoder}"
            raise UserError(what, where=place, remedy=remedy)
    return Heads(sparse, multi_vector, fingerprint)


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

"""Sparse and multi-vector heads that sides trained with their encoders: merged by the very weights of the encoders."""

import copy
from collections.abc import Mapping
from pathlib import Path

from merging.interpolation import weighted_sum
from pipeline.core.errors import UserError
from pipeline.core.heads import Heads, read_heads, write_heads
from pipeline.core.model_folder import has_heads
from training.heads.layers import first_heads


def trained_heads(models: Mapping[str, Path], seed: int) -> dict[str, Heads]:
    """The heads of every model by name; where the first, the base, has none, those that sides start from.

    Raises UserError where a trained model has none, or heads of another encoder or width.
    """
    (base, folder), *others = models.items()
    for name, other in others:
        if not has_heads(other):
            what, remedy = f"{name} has no heads to be merged", "train it with heads=joint, or merge with heads=frozen"
            raise UserError(what, where=str(other), remedy=remedy)
    trained = {name: read_heads(other) for name, other in others}
    found = {base: first_heads(folder, next(iter(trained.values())).sparse.in_features, seed), **trained}
    widths = {name: heads.multi_vector.out_features for name, heads in found.items()}
    for name, width in widths.items():
        if width != widths[base]:
            what = f"the multi-vector head of {name} is {width} wide, and {widths[base]} that of {base}"
            raise UserError(what, where=str(models[name]), remedy="merge only models trained from the same init model")
    return found


def write_merged_heads(heads: Mapping[str, Heads], weights: Mapping[str, float], target: Path) -> None:
    """Write the weighted sum of the models' heads into the merged model's folder, whose encoder is there."""
    states = {name: model.state_dict() for name, model in heads.items() if weights[name]}
    merged = copy.deepcopy(next(iter(heads.values())))
    keys = merged.state_dict()
    merged.load_state_dict(
        {key: weighted_sum({name: state[key] for name, state in states.items()}, weights) for key in keys}
    )
    write_heads(target, merged)

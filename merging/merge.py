"""The stage `merge`: one model from the base and the trained sides, and records of how it was made."""

import copy
import csv
import gc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from configs.schema.config import Config
from configs.schema.merging import MergingConfig
from merging.choose import Comparison, compare
from merging.compatibility import require_compatible, write_model
from merging.interpolation import weighted_sum
from merging.mergekit import mergekit_merge, write_mergekit_model
from merging.models import merged_models, merged_weights
from merging.simplex import draw_simplex
from pipeline.core.artefact import StageFolder, write_json
from pipeline.core.console import show_table
from pipeline.core.errors import UserError
from pipeline.core.heads import Heads, first_heads, read_heads, write_heads
from pipeline.core.model_folder import has_heads

VERDICTS = {True: "yes", False: "no", None: "not guarded"}
TEMPERATURES = (5.0, 1.0, 0.2, 0.05)  # at which LM-Cocktail's weights are recorded as well


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Choose weights, write the model and the record of the choice; returns its metrics."""
    models = merged_models(config)
    settings = replace(config.merging, models=list(models), weights=merged_weights(config))
    config = replace(config, merging=settings)
    joint = config.training.heads.kind == "joint"
    require_compatible(models, heads_differ=joint)
    heads = trained_heads(models, config.seed) if joint else None
    comparison = compare(config, models, stage.inputs["data"])
    gc.collect()  # frees the blend, whose model has reference cycles: evaluate's processes need the device
    torch.cuda.empty_cache()
    with stage.replacing("model") as target:
        if comparison.weights is not None:
            write_model(models, comparison.weights, target, settings.dtype)
            if heads:
                write_merged_heads(heads, comparison.weights, target)
        else:
            merged = mergekit_merge(models, settings.method, settings.parameters, config.seed)
            write_mergekit_model(merged, models[settings.models[0]], target, settings.dtype)
    write_findings(comparison, settings, stage)
    show_comparison(comparison, settings)
    return metrics(comparison, settings)


def trained_heads(models: Mapping[str, Path], seed: int) -> dict[str, Heads]:
    """The heads of every model by name; a base (the first model) without heads gets those that sides start from.

    Raises UserError where a trained model has none, or heads for another encoder or of another width.
    """
    (base, folder), *others = models.items()
    for name, other in others:
        if not has_heads(other):
            what, remedy = f"{name} has no heads to merge", "train it with heads=joint, or merge with heads=frozen"
            raise UserError(what, where=str(other), remedy=remedy)
    trained = {name: read_heads(other) for name, other in others}
    found = {base: first_heads(folder, next(iter(trained.values())).sparse.in_features, seed), **trained}
    widths = {name: heads.multi_vector.out_features for name, heads in found.items()}
    for name, width in widths.items():
        if width != widths[base]:
            what = f"the multi-vector head of {name} is {width} wide, that of {base} {widths[base]}"
            raise UserError(what, where=str(models[name]), remedy="merge only models trained from the same init model")
    return found


def write_merged_heads(heads: Mapping[str, Heads], weights: Mapping[str, float], target: Path) -> None:
    """Write the weighted sum of the models' heads into the merged model's folder, which already has its encoder."""
    states = {name: model.state_dict() for name, model in heads.items() if weights[name]}
    merged = copy.deepcopy(next(iter(heads.values())))
    keys = merged.state_dict()
    merged.load_state_dict(
        {key: weighted_sum({name: state[key] for name, state in states.items()}, weights) for key in keys}
    )
    write_heads(target, merged)


def write_findings(comparison: Comparison, settings: MergingConfig, stage: StageFolder) -> None:
    """Write weights.json, search.csv and, where candidates were scored, simplex.svg."""
    write_json(stage.path / "weights.json", _findings(comparison, settings))
    rows = []
    for candidate in comparison.candidates:
        names = [name for name, other in comparison.compared.items() if other is candidate]
        rows.append({**candidate.row(), "compared_as": " ".join(names)})
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["origin"]
    with stage.replacing("search.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    if comparison.candidates:
        with stage.replacing("simplex.svg") as path:
            draw_simplex(path, settings.models, comparison.candidates, comparison.compared)


def show_comparison(comparison: Comparison, settings: MergingConfig) -> None:
    """Print a table of the models and the methods of weighting them."""
    if not comparison.compared:
        return
    sides = list(next(iter(comparison.compared.values())).dev.sides)
    rows = []
    for name, candidate in comparison.compared.items():
        weights = [candidate.weights[model] if candidate.weights else None for model in settings.models]
        gain = candidate.deciding_loss.as_gain if candidate.deciding_loss else None
        scores = [candidate.dev.score, *(candidate.dev.sides[side] for side in sides), gain]
        taken = f"{name} *" if name == settings.method else name
        rows.append([taken, *weights, *scores, VERDICTS[candidate.allowed]])
    heads = [*(f"weight of\n{name}" for name in settings.models), "dev", *(f"dev\n{side}" for side in sides)]
    columns = ["merge (* taken)", *heads, "guard: gain +, loss -", "allowed"]
    show_table("merges on dev rows", columns, rows)


def metrics(comparison: Comparison, settings: MergingConfig) -> dict[str, Any]:
    """The choice in figures, for the manifest."""
    weights = {f"weight_{name}": weight for name, weight in (comparison.weights or {}).items()}
    scores: dict[str, Any] = {}
    if chosen := comparison.compared.get(settings.method):
        scores = {"dev": chosen.dev.score, **{f"dev_{side}": score for side, score in chosen.dev.sides.items()}}
        loss = chosen.deciding_loss
        scores["guard_loss"] = loss.mean if loss else None
        scores["dev_under_guard"] = None if chosen.allowed is False else chosen.dev.score
    return {"method": settings.method, **weights, **scores, "candidates": len(comparison.candidates)}


def _findings(comparison: Comparison, settings: MergingConfig) -> dict[str, Any]:
    found: dict[str, Any] = {
        "method": settings.method,
        "models": settings.models,
        "weights": comparison.weights,
        "dtype": settings.dtype,
    }
    if cocktail := comparison.cocktail:
        temperatures = [settings.temperature, *TEMPERATURES]
        found["losses"] = cocktail.losses
        found["temperature"] = settings.temperature
        found["weights_by_temperature"] = {f"{value:g}": cocktail.weights_at(value) for value in temperatures}
    if comparison.compared:
        found["guard"] = {"limit": settings.guard, "sets": settings.guard_sources}
        found["compared"] = {name: candidate.row() for name, candidate in comparison.compared.items()}
    return found

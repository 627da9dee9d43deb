"""The stage `merge`: makes one model of the base and the trained sides."""

from pathlib import Path
from typing import Any

from configs.schema.config import Config
from merging.comparison import compare
from merging.compatibility import require_compatible
from merging.mergekit_methods import mergekit_merge, write_mergekit_model
from merging.write import metrics, show_comparison, write_findings, write_model
from pipeline.core.artefact import StageFolder


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Choose weights, write the model and how it was chosen; returns the metrics of the choice."""
    settings = config.merging
    models = {name: model_folder(stage.input(name)) for name in settings.models}
    require_compatible(models)
    comparison = compare(config, models, stage.input("data"))
    with stage.replacing("model") as target:
        if comparison.weights is not None:
            write_model(models, comparison.weights, target, settings.dtype)
        else:
            merged = mergekit_merge(models, settings.method, settings.parameters.get(settings.method, {}), config.seed)
            write_mergekit_model(merged, models[settings.models[0]], target, settings.dtype)
    write_findings(comparison, settings, stage)
    show_comparison(comparison, settings)
    return metrics(comparison)


def model_folder(artefact: Path) -> Path:
    """Where the sentence-transformers folder of an artefact stands: in `model`, or (init) at the top."""
    return artefact / "model" if (artefact / "model").is_dir() else artefact

"""The stage `heads`: sparse and multi-vector heads for the merged model, whose encoder is frozen."""

from pathlib import Path
from typing import Any

from configs.schema.config import Config
from pipeline.core.artefact import StageFolder, link_tree
from pipeline.core.console import quiet
from pipeline.core.device import autocast_dtype
from pipeline.core.heads import write_heads
from training.batches import MiniBatchCollator, PlannedDataset
from training.finetune import closing_metrics, finish, join_ranks, plan_run, train
from training.heads.loss import HeadsLoss, add_heads
from training.memory import encoding_budget
from training.model_files import choose_attention, load_model
from training.trainer import PlannedTrainer, training_arguments


@quiet()
def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Fit heads to the merged model; returns the manifest's metrics.

    Writes model/, which is the merged model with its heads, plan.json and metrics.jsonl, and keeps checkpoints/ until
    it is done. Under `accelerate launch` each process takes its slice of every planned global batch, as for the sides.
    """
    settings, start = config.training.heads, config.model_folder("merge")
    process = join_ranks(config, stage)
    model = load_model(start, config.base.attention, settings, f"training.{stage.name}").requires_grad_(False)
    choose_attention(model, config.base, autocast_dtype(config.precision) is not None, dropout=0.0)
    heads = add_heads(model, start, config.training_seed)
    sets, plan, report = plan_run(config, stage, model)
    budget = encoding_budget(settings, config.token_budget, process.device.type != "cpu")
    trainer = PlannedTrainer(
        config,
        stage,
        plan,
        model,
        training_arguments(config, stage, len(plan.batches), has_dev=False),
        PlannedDataset(sets.train.values(), angle_weight=0.0),
        HeadsLoss(model, settings.temperature, budget.tokens),
        MiniBatchCollator.of(model, budget),
    )
    train(config, stage, trainer)

    def write(folder: Path) -> None:
        link_tree(start, folder, without="README.md")
        write_heads(folder, heads)

    metrics = closing_metrics(trainer, report)
    finish(stage, write)
    return metrics

"""The stage `heads`: sparse and multi-vector heads for the merged model, whose encoder stays as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.schema.config import Config
from pipeline.core.artefact import StageFolder, link_tree
from pipeline.core.console import quiet
from pipeline.core.embedding import CPU_TOKENS, GPU_TOKENS
from pipeline.core.heads import read_heads, write_heads
from pipeline.core.models import HEADS
from pipeline.core.packed import first_position_of, is_packed
from pipeline.core.precision import autocast_type, uses_bfloat16
from pipeline.core.seeding import derived_seed
from training.batches import PIECES, MiniBatches, PlannedRows
from training.finetune import assembled, closing_metrics, finish, join_ranks, plan_run, train, training_arguments
from training.heads.loss import HeadLayers, HeadsLoss
from training.memory import GPU_OVERHEAD, Budget, planned_budget
from training.model_files import choose_attention, encoder_of, load_model
from training.trainer import PlannedTrainer, readable

FIRST_WEIGHT = 0.2  # of every token: about the size of those in the example of bge-m3's model card


class HeadsTrainer(PlannedTrainer):
    """Its checkpoints hold the heads alone."""

    @property
    def heads(self) -> HeadLayers:
        """The model's last module."""
        heads = self.model[-1]
        assert isinstance(heads, HeadLayers)
        return heads

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        Path(str(output_dir)).mkdir(parents=True, exist_ok=True)
        self.heads.save(str(output_dir))

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]
        with readable(checkpoint_path):
            HeadLayers.load_torch_weights(checkpoint_path, model=self.heads)


@quiet()
def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Fit heads to the merged model; returns the manifest's metrics.

    Writes model/, which is the merged model with its heads, plan.json and metrics.jsonl, and keeps checkpoints/ until
    then. Under `accelerate launch` each process takes its slice of every planned global batch, as the sides do.
    """
    settings, start = config.training.heads, config.model_folder("merge")
    process = join_ranks(config, stage)
    model = load_model(start, config.base.attention, settings, f"training.{stage.name}").requires_grad_(False)
    choose_attention(model, config.base, autocast_type(config.precision) is not None, dropout=0.0)
    heads = HeadLayers(*first_heads(start, encoder_of(model).config.hidden_size, config.training_seed))
    model.add_module("heads", heads)
    sets, plan, report = plan_run(config, stage, model)
    bfloat16 = uses_bfloat16(config.precision)
    budget = encoding_budget(config, process.device.type)
    trainer = assembled(
        HeadsTrainer,
        config,
        stage,
        plan,
        model=model,
        args=training_arguments(
            config, stage.name, stage.path / "checkpoints", len(plan.batches), bfloat16, has_dev=False
        ),
        train_dataset=PlannedRows(sets.train.values(), angle_weight=0.0),
        loss=HeadsLoss(model, settings.temperature, budget.tokens),
        data_collator=MiniBatches(
            model.tokenizer.pad_token_id, budget, first_position_of(model) if is_packed(model) else None
        ),
        dev_batches={},
    )
    train(config, stage, trainer)

    def write(folder: Path) -> None:
        link_tree(start, folder)
        write_heads(folder, heads.sparse, heads.multi_vector)

    metrics = closing_metrics(trainer, report)
    finish(stage, write)
    return metrics


def encoding_budget(config: Config, device: str) -> Budget:
    """How a batch is cut where no activations are kept: into passes as everywhere that texts are embedded."""
    settings, on_cpu = config.training.heads, device == "cpu"
    budget = planned_budget(settings)
    if settings.mini_batch_tokens == "auto":
        budget = replace(budget, tokens=PIECES * (config.token_budget or (CPU_TOKENS if on_cpu else GPU_TOKENS)))
    if settings.mini_batch_overhead == "auto" and not on_cpu:
        budget = replace(budget, overhead=GPU_OVERHEAD)
    return budget


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

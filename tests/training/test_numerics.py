"""Numbers: a gradient that is not finite stops training at its step; workers and budgets don't change the result."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file

from configs.schema.config import Config
from pipeline.chain import CHAIN
from pipeline.core.errors import UserError
from pipeline.core.packed import use_packed
from pipeline.stage import folder_and_manifest, run_stage
from tests.support.planned_sets import prepared_run, rows
from training.batch_plan import plan_batches
from training.finetune import make_trainer
from training.model_files import load_model
from training.sets import prepare_sets
from training.trainer import PlannedTrainer

SETS = {"symmetric/pairs": rows(64), "symmetric/scored": rows(64, seed=1, scored=True)}
SIDE = {"max_steps": 3, "angle_weight": 0.1, "learning_rate": 1e-3}


def trainer_of(config: Config, attention: str, packed: bool = False) -> PlannedTrainer:
    """The symmetric side's trainer, on one process's CPU."""
    PartialState(cpu=True)
    stage, side = folder_and_manifest(CHAIN["symmetric"], config)[0], config.training.symmetric
    stage.path.mkdir(parents=True)
    model = load_model(config.folder("init"), attention, side)
    if packed:
        use_packed(model)
    sets = prepare_sets("symmetric", side, model, config.folder("data"), stage.path / "tokens")
    plan = plan_batches([item.rows for item in sets.train.values()], side, config.seed)
    return make_trainer(config, stage, model, sets, plan)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_at_its_step_and_names_the_rows(tmp_path: Path, value: float) -> None:
    trainer = trainer_of(prepared_run(tmp_path, SETS, **SIDE), "eager")

    def plant(parameter: torch.Tensor) -> None:
        if trainer.state.global_step == 1 and parameter.grad is not None:
            parameter.grad.view(-1)[5] = value

    parameters = trainer.model.parameters()
    next(weight for weight in parameters if weight.requires_grad).register_post_accumulate_grad_hook(plant)
    message = rf"loss \d.*, gradient norm \w+ at step 2 \(set {trainer.batches[1].set}, rows \d"
    with pytest.raises(UserError, match=message):
        trainer.train()


def test_packed_texts_train_the_model_of_padded_ones_with_and_without_caching(tmp_path: Path) -> None:
    weights, losses = [], []
    for packed, budget in ((False, 10**6), (True, 10**6), (True, 64)):
        sets = {**SETS, "dev/pairs": rows(32, seed=5)}
        config = prepared_run(tmp_path / f"{packed} {budget}", sets, **SIDE, dev_steps=3, mini_batch_tokens=budget)
        trainer = trainer_of(config, "sdpa", packed)
        named = trainer.model.named_parameters()
        kept = [weight for name, weight in named if "key.bias" not in name]  # that is only rounding
        start = torch.cat([weight.detach().flatten() for weight in kept])
        trainer.train()
        weights.append(torch.cat([weight.detach().flatten() for weight in kept]))
        logged = trainer.state.log_history
        losses.append([line["loss"] for line in logged if "loss" in line])
        assert any("eval_pairs_loss" in line for line in logged) and any("eval_score" in line for line in logged)
        assert not packed or all(line["padding_share"] == 0 for line in logged if "padding_share" in line)
    assert (weights[0] - start).norm() > 0
    for found, of_packed in zip(losses[1:], weights[1:], strict=True):
        assert found == pytest.approx(losses[0], rel=1e-4)
        assert (weights[0] - of_packed).norm() < 1e-2 * (weights[0] - start).norm()


def trained(runs: Path, **side: Any) -> dict[str, torch.Tensor]:
    config: Config = prepared_run(runs, SETS, **{**SIDE, **side})
    run_stage(CHAIN["symmetric"], replace(config, seed=7))
    return load_file(config.folder("symmetric") / "model/model.safetensors")


def test_workers_change_nothing_and_mini_batch_budgets_only_rounding(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", mini_batch_tokens=10**6)
    workers = trained(tmp_path / "workers", mini_batch_tokens=10**6, arguments={"dataloader_num_workers": 2})
    assert all(torch.equal(workers[name], tensor) for name, tensor in whole.items())
    cut = trained(tmp_path / "cut", mini_batch_tokens=64)
    start = load_file(tmp_path / "whole/one/init/model.safetensors")
    # The keys' biases have no effect on attention: their gradient is only rounding, which AdamW makes large.
    names = [name for name in start if "key.bias" not in name and name in whole]
    moved = torch.cat([(whole[name] - start[name]).flatten() for name in names])
    apart = torch.cat([(whole[name] - cut[name]).flatten() for name in names])
    assert 0 < apart.norm() < 1e-2 * moved.norm()

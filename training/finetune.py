"""One fine-tuning run, from prepared sets to a saved model."""

import dataclasses
import gc
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from filelock import FileLock
from sentence_transformers import SentenceTransformer

from configs.schema.config import SIDES_READ, Config
from configs.schema.training import SideConfig
from data.artefact import read_dev_sets
from pipeline.core.artefact import StageFolder, read_json, remove, retired, write_json
from pipeline.core.console import log, quiet
from pipeline.core.device import PACKED, autocast_dtype, keep_freed_memory, require_devices, training_precision
from pipeline.core.errors import Stopped, UserError
from pipeline.core.heads import Heads, write_heads
from pipeline.core.machine import joined_ranks, usable_gpus
from pipeline.core.seeding import derived_seed
from training.batch_plan import BatchPlan, GlobalBatch, SetRows, has_angle, plan_batches, read_plan
from training.batches import (
    MiniBatchCollator,
    PlannedDataset,
    plan_report,
    text_lengths,
    warn_of_small_steps,
    warn_of_untried,
)
from training.callbacks import KeptMemory, MetricsLog, Snapshots, StepLines
from training.cost_model import shape_of, side_memory
from training.dev_scores import DevEvaluator, dev_figures
from training.heads.loss import JointLoss, add_heads, heads_of, held_bytes
from training.losses import PlannedLoss
from training.memory import GPU_OVERHEAD, measured_tokens, memory_explained, planned_budget
from training.model_files import choose_attention, encoder_of, load_mean, load_model, merge_adapter, save_model
from training.sets import PreparedSets, TokenisedSet, prepare_sets
from training.text_vectors import auxiliary_models_of
from training.trainer import PlannedTrainer, last_checkpoint, readable, training_arguments

REPORT = "plan.json"  # the plan in numbers; the last file to be prepared
KEPT_SHARE = 1.6  # times the largest batch's activations: with less, memory is freed and allocated every third step


@quiet()
def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Train the stage's side from init, or from another side's model; returns the manifest's metrics.

    Writes model/, plan.json and metrics.jsonl, and keeps checkpoints/ until it is done. Under `accelerate launch` each
    process takes its slice of every planned global batch; the result is the same.
    """
    process = join_ranks(config, stage)
    side, dtype = config.side(stage.name), autocast_dtype(config.precision)  # of this rank's device: once it has one
    start = config.model_folder(side.start)
    torch.manual_seed(derived_seed(config.training_seed, "adapter"))
    model = load_model(start, config.base.attention, side, f"training.{stage.name}")
    choose_attention(model, config.base, dtype is not None, side.dropout)
    heads = add_heads(model, start, config.seed) if config.training.heads.kind == "joint" else None
    sets, plan, report = plan_run(config, stage, model)
    trainer = make_trainer(config, stage, model, sets, plan)
    if process.device.type == "cpu":
        shape, most = shape_of(start), planned_budget(side).tokens
        tokens = report["largest_batch"] // process.num_processes
        memory = side_memory(config, stage.name, shape, most, dtype is not None, tokens=tokens)
        trainer.add_callback(KeptMemory(round(KEPT_SHARE * (memory["activations"] + memory["attention scores"]))))
    snapshots = Snapshots(stage.path / "checkpoints" / "averaged", averaged_steps(side, len(plan.batches), stage.name))
    trainer.add_callback(snapshots)
    train(config, stage, trainer)
    averaged = take_mean(trainer, [*snapshots.files.values()]) if snapshots.files else {}
    if side.adapter.rank is not None:
        merge_adapter(encoder_of(model))
    metrics = closing_metrics(trainer, report) | averaged

    def write(folder: Path) -> None:
        if heads:
            model.pop(-1)
        save_model(model, start, folder)
        if heads:
            write_heads(folder, heads)

    finish(stage, write)
    return metrics


def join_ranks(config: Config, stage: StageFolder) -> PartialState:
    """This process among a training stage's ranks; raises UserError where their number or devices don't fit."""
    process = joined_ranks(config.timeout(stage.name))
    require_even_shares(config, stage.name, process.num_processes)
    require_launcher(torch.cuda.device_count(), process.num_processes, config.launch.processes)
    precisions = sorted(set(gather_object([training_precision(config.precision)])))
    if len(precisions) > 1:  # auto on different devices; the last one, fp16 or fp32, runs on all of them
        what, remedy = f"some ranks would train in {', some in '.join(precisions)}", f"set precision={precisions[-1]}"
        raise UserError(what, where="config key precision", remedy=remedy)
    if process.device.type == "cpu":
        keep_freed_memory()
    elif autocast_dtype(config.precision) is None:
        torch.set_float32_matmul_precision("high")  # TF32
    return process


def plan_run(
    config: Config, stage: StageFolder, model: SentenceTransformer
) -> tuple[PreparedSets, BatchPlan, dict[str, Any]]:
    """(tokenised sets, batch plan, content of plan.json); writes plan.json into the stage's folder.

    Rank 0 prepares what was not prepared before the launch. The others poll for the file, so the process group's
    timeout does not apply.
    """
    folder, process, side = _prepared_folder(stage), PartialState(), config.training_of(stage.name)
    if process.is_main_process:
        alone = config.launch.config == "none" and process.num_processes == 1  # no command has called `prepare`
        _prepare(config, stage, model, again=config.force and alone)
    while not (folder / REPORT).exists():
        time.sleep(0.5)
    with readable(str(folder), "remove it: it is then prepared again", "the prepared data"):
        report, plan = read_json(folder / REPORT), read_plan(folder / "plan.npz")
        others = auxiliary_models_of(config, stage.name)
        sets = prepare_sets(stage.name, side, model, stage.inputs["data"], folder, others)
    if isinstance(side, SideConfig):
        warn_of_untried(stage.name, side, report["batches"], sum(weights.numel() for weights in model.parameters()))
    if process.device.type == "cuda":
        warn_of_small_steps(stage.name, report["tokens"], report["batches"], process.num_processes)
    if process.is_main_process:
        write_json(stage.path / REPORT, report)
    return sets, plan, report


def train(config: Config, stage: StageFolder, trainer: PlannedTrainer) -> None:
    """Train on the plan's batches, from the last checkpoint on where the stage resumes; raises Stopped on SIGTERM."""
    checkpoints = stage.path / "checkpoints"
    resume = last_checkpoint(checkpoints, trainer.run_digest) if stage.resuming else None
    torch.manual_seed(derived_seed(config.training_seed, "dropout", str(trainer.args.process_index)))
    trainer.args.eval_on_start = resume is None and trainer.evaluator is not None  # the model before training
    tokens, has_heads = trainer.loss.mini_batch_num_tokens, isinstance(trainer.model[-1], Heads)
    with memory_explained(f"training.{stage.name}", tokens, has_heads):  # steps, the optimizer's state and dev losses
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if trainer.state.global_step < len(trainer.batches):
        log.info("stopped at step %d; the same command resumes from there", trainer.state.global_step)
        raise Stopped(signal.SIGTERM)


def finish(stage: StageFolder, write: Callable[[Path], None]) -> None:
    """Have rank 0 `write` the folder model/, and remove the checkpoints."""
    process, checkpoints = PartialState(), stage.path / "checkpoints"
    process.wait_for_everyone()
    if process.is_main_process:
        with stage.replacing("model") as folder:
            write(folder)
        remove(checkpoints.rename(retired(checkpoints)))  # a kill meanwhile leaves no partial checkpoint to resume from
        remove(_prepared_folder(stage))
    process.wait_for_everyone()


@quiet()
def prepare(config: Config, stage: StageFolder) -> None:
    """Prepare what all ranks read, in the command that launches them; raises UserError where they would."""
    settings, key, devices = config.training_of(stage.name), f"training.{stage.name}", usable_gpus()
    require_even_shares(config, stage.name, config.ranks(devices))
    require_devices(devices, config.launch)
    if (_prepared_folder(stage) / REPORT).exists() and not config.force:
        return
    model = load_model(config.model_folder(settings.start), config.base.attention, settings, key, weights=False)
    if config.base.attention == PACKED or config.base.compile:
        choose_attention(model, config.base, autocast_dtype(config.precision) is not None, settings.dropout)
    _prepare(config, stage, model, again=config.force)


def _prepare(config: Config, stage: StageFolder, model: SentenceTransformer, again: bool) -> None:
    """Write the sets' tokens and other models' vectors, the plan, and its report: once, kept until the stage is made.

    Only the model's tokenizer and prompts are used. `again` first removes what a failed attempt left.
    """
    settings, folder, key = config.training_of(stage.name), _prepared_folder(stage), f"training.{stage.name}"
    for other in set(folder.parent.glob(f"{stage.name}-*")) - {folder}:
        remove(other)  # of other settings
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # commands of several machines may prepare at once
        for earlier in set(folder.iterdir()) - {folder / "lock"} if again else ():
            remove(earlier)
        if (folder / REPORT).exists():
            return
        data, others = stage.inputs["data"], auxiliary_models_of(config, stage.name)
        sets = prepare_sets(stage.name, settings, model, data, folder, others).train
        others.clear()
        gc.collect()  # other models, which are in reference cycles
        torch.cuda.empty_cache()
        plan = plan_batches([item.rows for item in sets.values()], settings, config.training_seed, key)
        report = plan_report(plan, sets, settings)
        if isinstance(settings, SideConfig):
            require_angle_batches(plan, sets, stage.name, settings)
            averaged_steps(settings, len(plan.batches), stage.name)
        plan.write(folder / "plan.npz")
        write_json(folder / REPORT, report)


def _prepared_folder(stage: StageFolder) -> Path:
    return stage.path.parent / ".prepared" / f"{stage.name}-{stage.fingerprint[:16]}"


def make_trainer(
    config: Config, stage: StageFolder, model: SentenceTransformer, sets: PreparedSets, plan: BatchPlan
) -> PlannedTrainer:
    """The trainer of one side, with its loss, dev scores and callbacks."""
    side = config.side(stage.name)
    dev_batches = plan_dev([item.rows for item in sets.dev.values()], side)
    texts = read_dev_sets(stage.inputs["data"], *SIDES_READ[stage.name]) if sets.dev else []
    texts = [pairs.spread(config.training.dev_rows) for pairs in texts]
    precision = training_precision(config.precision)
    evaluator = DevEvaluator(texts, model, config.training.dev_length, precision, config.token_budget)
    arguments = training_arguments(config, stage, len(plan.batches), bool(evaluator.sides))
    collate = MiniBatchCollator.of(model, planned_budget(side))
    has_heads = isinstance(model[-1], Heads)
    if arguments.device.type == "cuda":
        model.to(arguments.device)
        tokens = side.mini_batch_tokens
        if isinstance(tokens, str):  # auto
            held = _held_by_heads(heads_of(model), sets, plan, arguments.world_size) if has_heads else 0
            half, key = autocast_dtype(config.precision), f"training.{stage.name}"
            tokens = measured_tokens(model, collate.features, side, half, key, held)
        collate = dataclasses.replace(collate, budget=planned_budget(side, tokens, GPU_OVERHEAD))
    return PlannedTrainer(
        config,
        stage,
        plan,
        model,
        arguments,
        PlannedDataset(sets.train.values(), side.angle_weight),
        (JointLoss if has_heads else PlannedLoss)(model, side, collate.budget.tokens),
        collate,
        {name: (PlannedDataset([sets.dev[name]], side.angle_weight), own) for name, own in dev_batches.items()},
        evaluator if evaluator.sides else None,
    )


def _held_by_heads(heads: Heads, sets: PreparedSets, plan: BatchPlan, world_size: int) -> int:
    """The most bytes that jointly trained heads hold of a batch."""
    width = heads.multi_vector.out_features
    batches = ((text_lengths(sets.train[batch.set], batch), len(batch.rows)) for batch in plan.batches)
    return max(held_bytes(lengths, rows, width, world_size) for lengths, rows in batches)


def plan_dev(sets: list[SetRows], side: SideConfig) -> dict[str, list[GlobalBatch]]:
    """One pass over each dev set, for the dev loss; sets too small for a batch have none."""
    planned, small, once = {}, [], dataclasses.replace(side, epochs=1.0, max_steps=None)
    for rows in sets:
        try:
            planned[rows.name] = plan_batches([rows], once, seed=0).batches
        except UserError:
            small.append(rows.name)
    if small:
        log.info("no dev loss, since there are too few dev rows for a batch: %s", ", ".join(small))
    return planned


def require_even_shares(config: Config, name: str, processes: int) -> None:
    """Raise UserError where the smallest batch can't be shared out evenly."""
    if problem := config.uneven_shares(name, processes):
        where = f"config key training.{name}.batch_multiple"
        raise UserError(problem, where=where, remedy="change it, or set launch.processes")


def require_launcher(devices: int, processes: int, asked: int | None) -> None:
    """Raise UserError where one process without a launcher finds several GPUs, unless one process was `asked` for."""
    if devices > 1 and processes == 1 and asked != 1:
        start = f"accelerate launch --num_processes {devices} -m pipeline.run"
        remedy = f"leave it at auto, or start with {start}; launch.processes=1 uses one GPU"
        raise UserError(f"{devices} GPUs, but only one process", where="config key launch.config", remedy=remedy)


def require_angle_batches(plan: BatchPlan, sets: Mapping[str, TokenisedSet], name: str, side: SideConfig) -> None:
    """Raise UserError where AnglE is on and no batch of a symmetric set has pairs with different labels."""
    if side.angle_weight > 0 and not any(has_angle(sets[batch.set].rows, batch) for batch in plan.batches):
        what = "no batch of a symmetric set has pairs with different labels, so AnglE would do nothing"
        remedy = "set it to 0, or add symmetric sets with negatives or scores"
        raise UserError(what, where=f"config key training.{name}.angle_weight", remedy=remedy)


def averaged_steps(side: SideConfig, steps: int, name: str) -> list[int]:
    """The steps of the last evaluations whose weights are averaged; raises UserError where there are too few."""
    if side.average is None or side.dev_steps is None:
        return []
    evaluated = sorted({*range(side.dev_steps, steps + 1, side.dev_steps), steps})
    if len(evaluated) < side.average:
        what = f"{steps} steps have {len(evaluated)} evaluation(s), one every {side.dev_steps} steps"
        raise UserError(what, where=f"config key training.{name}.average", remedy="lower it, or dev_steps")
    return evaluated[-side.average :]


def take_mean(trainer: PlannedTrainer, files: list[Path]) -> dict[str, Any]:
    """Load the average of the weights in `files`, unless keep_best is set and a single checkpoint scored higher.

    Returns metrics for the manifest: `weights` (mean or best) and, where they are known, `mean_dev_score` and
    `best_dev_score`.
    """
    trainer.remove_callback(MetricsLog)  # the curves already have the last step's scores, and the mean has no step
    trainer.accelerator.wait_for_everyone()
    with readable(trainer.args.output_dir):
        load_mean(trainer.model, files)
    mean, single = dev_metrics(trainer).get("eval_score"), trainer.state.best_metric
    if mean is None:
        return {"weights": "mean"}
    scores = {"mean_dev_score": mean} | ({} if single is None else {"best_dev_score": single})
    is_worse = trainer.args.load_best_model_at_end and single is not None and single > mean
    if is_worse:
        trainer._load_best_model()
    best = "" if single is None else f", the best evaluation's {single:.4f}"
    log.info("dev score of the mean of %d evaluations' weights: %.4f%s", len(files), mean, best)
    return {"weights": "best" if is_worse else "mean", **scores}


def dev_metrics(trainer: PlannedTrainer) -> dict[str, float]:
    """Dev scores and losses of the model's weights; none without dev rows."""
    trainer.is_in_train = True  # otherwise the library would score all dev sets once for each of them
    return trainer.evaluate() if trainer.evaluator is not None else {}


def closing_metrics(trainer: PlannedTrainer, report: dict[str, Any]) -> dict[str, Any]:
    """Metrics for the manifest: sizes, precision, the last loss, and dev scores of the saved weights."""
    if trainer.state.best_model_checkpoint:
        trainer.remove_callback(MetricsLog)  # the curves already have these weights' scores, at their own step
        trainer.remove_callback(StepLines)
    dev = dev_metrics(trainer)
    if trainer.state.best_model_checkpoint:
        log.info("dev score of the saved weights: %.4f", dev["eval_score"])
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {
        "steps": trainer.state.global_step,
        "rows": report["rows_seen"],
        "tokens": report["tokens"],
        "padding_share": report["padding_share"] if trainer.data_collator.first_position is None else 0.0,
        "precision": "bf16" if trainer.args.bf16 else "fp16" if trainer.args.fp16 else "fp32",
        "loss": losses[-1] if losses else None,
        **dev_figures(dev),
    }

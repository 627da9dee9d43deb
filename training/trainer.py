"""The library's trainer and arguments, plus what it lacks: planned batches, marked checkpoints, a stop at NaN."""

import contextlib
import dataclasses
import hashlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import BadZipFile

import torch
from accelerate.utils import send_to_device
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.evaluation import BaseEvaluator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState

from configs.schema.config import Config
from configs.schema.training import SideConfig
from pipeline.core.artefact import StageFolder, read_json, remove, write_json
from pipeline.core.console import console
from pipeline.core.device import training_precision
from pipeline.core.errors import UserError, first_line
from pipeline.core.model_folder import RAISED_BY_FILES
from training.batch_plan import BatchPlan, GlobalBatch
from training.batches import MiniBatchCollator, PlannedDataset
from training.callbacks import Checkpoints, MetricsLog, Preemption, StepBar, StepLines
from training.losses import BatchLoss
from training.model_files import trained_weights

MARK = "complete.json"  # in a checkpoint folder whose files are all written
TRAINED_WEIGHTS = "trained.safetensors"  # there: what training changes; the rest of the model is loaded anyway
NOT_FREE = {  # arguments of the library that the pipeline sets or ignores
    *("max_steps", "num_train_epochs", "gradient_accumulation_steps", "output_dir", "bf16", "fp16", "seed"),
    # Without effect, since the plan decides, and the loader is made here.
    *("per_device_train_batch_size", "per_device_eval_batch_size", "batch_sampler", "warmup_ratio"),
    *("dataloader_prefetch_factor", "dataloader_persistent_workers"),
    "auto_find_batch_size",  # it would train again from the weights at which memory ran out
    *("ignore_data_skip", "save_only_model"),  # a resumed run would end in another model
    *("eval_strategy", "eval_steps", "save_strategy", "save_steps"),  # the best weights must have a checkpoint
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),  # keep_best, by the dev score
    "logging_strategy",  # without logging there are no curves
    *("fsdp", "fsdp_config", "deepspeed", "parallelism_config"),  # every rank has the whole model
    "push_to_hub",  # it would upload checkpoints; the stage publish uploads the model
    # For other models and losses, or for texts that are not tokenised: without effect here, or a crash.
    *("neftune_noise_alpha", "label_smoothing_factor", "use_liger_kernel", "prompts", "router_mapping", "label_names"),
    *("multi_dataset_batch_sampler", "train_sampling_strategy", "dataloader_drop_last", "data_seed"),
}


def _start_worker(worker: int) -> None:
    """Have a data loader's worker, a fork of its rank, send tensors by its pipe, and obey only SIGTERM from this rank.

    In shared memory, of which a container often has 64 MB, a batch that doesn't fit is dropped and the rank waits for
    it forever. A scheduler's SIGTERM reaches the worker as well as its rank, which needs it until the checkpoint. The
    rank sends its own where it ends in an error; it then waits for its workers.
    """
    ForkingPickler.register(torch.Tensor, lambda tensor: (torch.from_numpy, (tensor.numpy(),)))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(rank: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != rank:
        pass
    os._exit(0)


class PlannedTrainer(SentenceTransformerTrainer):
    """Trains on the plan's global batches, one per optimizer step, with metrics.jsonl, checkpoints and progress.

    Args:
        dev_sets: dev set -> its rows, and the batches on which its loss is measured.
        evaluator: of the dev score; None: there is none.
    """

    loss: BatchLoss  # type: ignore[assignment]
    train_dataset: PlannedDataset
    data_collator: MiniBatchCollator  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        stage: StageFolder,
        plan: BatchPlan,
        model: SentenceTransformer,
        arguments: SentenceTransformerTrainingArguments,
        rows: PlannedDataset,
        loss: BatchLoss,
        collator: MiniBatchCollator,
        dev_sets: Mapping[str, tuple[PlannedDataset, list[GlobalBatch]]] = MappingProxyType({}),
        evaluator: BaseEvaluator | None = None,
    ) -> None:
        self.batches, self.dev_sets = plan.batches, dev_sets
        # Identifies the run in its checkpoints: those of others are refused.
        self.run_digest = hashlib.sha256(f"{stage.fingerprint} {plan.digest}".encode()).hexdigest()
        own: Any = {  # of types that the library doesn't declare
            "train_dataset": rows,
            "eval_dataset": {name: dataset for name, (dataset, _) in dev_sets.items()} or None,
            "data_collator": collator,
        }
        super().__init__(
            model,
            arguments,
            **own,
            loss=loss,
            evaluator=evaluator,
            callbacks=[
                MetricsLog(stage.path / "metrics.jsonl", plan.batches, stage.track),
                Checkpoints(config.training_of(stage.name).checkpoint_steps),
                Preemption(),
            ],
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(StepBar() if console.is_terminal else StepLines())

    def preprocess_dataset(self, dataset: Any = None, dataset_name: str | None = None) -> Any:
        return dataset  # already tokens

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave out the library's model card."""

    def get_train_dataloader(self) -> DataLoader:
        return self._planned(self.train_dataset, self.batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        if self.eval_dataset is None:  # no dev set fills a batch: there are scores, but no losses
            return super().get_eval_dataloader()
        return self._planned(*self.dev_sets[eval_dataset])

    def _planned(self, rows: Any, batches: Sequence[GlobalBatch]) -> DataLoader:
        own: Any = [batch.slice(self.args.process_index, self.args.world_size) for batch in batches]
        collate: Any = self.data_collator.collate
        workers = self.args.dataloader_num_workers if batches is self.batches else 0  # dev sets are small
        on_linux: dict[str, Any] = {"multiprocessing_context": "fork", "worker_init_fn": _start_worker}
        with named_argument("dataloader_num_workers"):
            return DataLoader(  # not prepared by Accelerate, which would split these slices again
                rows,
                batch_sampler=own,
                collate_fn=collate,
                num_workers=workers,
                pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
                **(on_linux if workers and sys.platform == "linux" else {}),
            )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        with named_argument("optim, optim_args or learning_rate_mapping"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with named_argument("lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        on_device = send_to_device(inputs, self.args.device, non_blocking=True)  # the library would wait for each
        return self.data_collator.to_model_inputs(on_device)

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> Any:
        # One context around all mini-batches: weights are cast once a step instead of once a mini-batch.
        half = self.args.bf16 or self.args.fp16
        return self.accelerator.autocast() if half else contextlib.nullcontext()

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        padded = sum(value.numel() for name, value in inputs.items() if name.endswith("input_ids"))
        tokens = inputs["label"]["tokens"]
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        parts = self.loss.parts
        if self.train_dataset.angle_weight > 0:  # for all sets: the library logs a part only from its first value on
            parts = {"angle": torch.zeros_like(tokens), **parts}
        self.track_loss_components({**parts, "tokens": tokens, "padding_share": 1 - tokens / padded})
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        is_logged = (self.state.global_step + 1) % self.state.logging_steps == 0
        self.loss.measures = is_logged and self.train_dataset.angle_weight > 0
        self.last_loss = super().training_step(*args, **kwargs)
        return self.last_loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (share := self.loss.angle_gradient_share) is not None:
            logs = {**logs, "angle_gradient_share": share.item()}
        super().log(logs, start_time)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        if not (torch.isfinite(self.last_loss) & torch.isfinite(torch.as_tensor(norm))):  # waits for the GPU once
            scaler = self.accelerator.scaler
            if scaler is not None and scaler.get_scale() > 1 and torch.isfinite(self.last_loss):
                return norm  # beyond float16: the scaler skips the step and halves its factor
            batch = self.batches[self.state.global_step]
            what = f"loss {self.last_loss.item():g}, gradient norm {float(norm):g} at step {self.state.global_step + 1}"
            where = f"set {batch.set}, rows {' '.join(map(str, batch.rows.tolist()))}"
            remedy = f"check these rows of data/<side>/{batch.set}.parquet, counted from 0, lower the learning rate, "
            raise UserError(what, where=where, remedy=remedy + "or use precision=fp32")
        return norm

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(str(output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_weights(self.model), folder / TRAINED_WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                write_json(folder / MARK, {"run": self.run_digest})
        except BaseException:
            if self.is_world_process_zero():
                remove(folder)  # a partial one would keep a full disk full
            raise
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]
        with readable(checkpoint_path):
            self._load_weights(checkpoint_path)

    def _load_best_model(self) -> None:
        # The library would only log an error where it can't be read, and keep the last weights.
        best = str(self.state.best_model_checkpoint)
        with readable(best, f"remove {self.args.output_dir}: training then starts over"):  # no other has these weights
            self._load_weights(best)

    def _load_weights(self, checkpoint: str) -> None:
        self.model.load_state_dict(load_file(Path(checkpoint) / TRAINED_WEIGHTS), strict=False)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with readable(checkpoint):
            super()._load_rng_state(checkpoint)


@contextlib.contextmanager
def named_argument(name: str) -> Iterator[None]:
    """Raise UserError where the library's argument `name` needs a package or another argument that is missing."""
    try:
        yield
    except (ImportError, AttributeError, TypeError, ValueError, re.error) as error:
        where, remedy = f"config key training.arguments.{name}", "correct it, or install what it needs"
        raise UserError(first_line(error), where=where, remedy=remedy) from error


@contextlib.contextmanager
def readable(
    checkpoint: str | None,
    remedy: str = "remove it: training resumes from the checkpoint before it, or starts over",
    what: str = "the checkpoint",
) -> Iterator[None]:
    """Raise UserError where files of `what` are damaged or foreign; nothing in them is ever executed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise  # a RuntimeError too, but `memory_explained` says what to do
    except (*RAISED_BY_FILES, SafetensorError, BadZipFile) as error:
        problem = f"{what} can't be read: {first_line(error).partition('. ')[0]}"
        raise UserError(problem, where=str(checkpoint), remedy=remedy) from error


def last_checkpoint(folder: Path, run_digest: str) -> Path | None:
    """The last complete checkpoint of `folder`; raises UserError where it is another run's."""
    marks = folder.glob(f"checkpoint-*/{MARK}")
    latest = max(marks, key=lambda mark: int(mark.parent.name.split("-")[1]), default=None)
    if latest is None:
        return None
    with readable(str(latest.parent)):
        if read_json(latest)["run"] != run_digest:
            what = "the checkpoint belongs to another configuration or other data"
            remedy = f"go back to the settings and data it was made with, or remove {folder}"
            raise UserError(what, where=str(latest.parent), remedy=remedy)
        TrainerState.load_from_json(str(latest.parent / TRAINER_STATE_NAME))  # the library's error would be a traceback
    return latest.parent


def training_arguments(
    config: Config, stage: StageFolder, steps: int, has_dev: bool
) -> SentenceTransformerTrainingArguments:
    """The library's arguments from the stage's config; its `arguments` override what the plan doesn't determine."""
    side, precision = config.training_of(stage.name), training_precision(config.precision)
    heads, dev_steps, keep_best = config.training.heads, None, False
    if has_dev and isinstance(side, SideConfig):
        dev_steps, keep_best = side.dev_steps, side.dev_steps is not None and side.keep_best
    values: dict[str, Any] = {
        "output_dir": str(stage.path / "checkpoints"),
        "max_steps": steps,
        "per_device_train_batch_size": side.batch_size,
        "learning_rate": side.learning_rate,
        "warmup_steps": round(side.warmup * steps),
        "lr_scheduler_type": side.schedule,
        "weight_decay": side.weight_decay,
        "max_grad_norm": side.max_grad_norm,
        "seed": config.training_seed % 2**32,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "logging_steps": side.logging_steps,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": dev_steps if keep_best else side.checkpoint_steps,
        "save_total_limit": 2,
        "eval_strategy": "steps" if dev_steps else "no",
        "eval_steps": dev_steps,
        "load_best_model_at_end": keep_best,
        "metric_for_best_model": "score" if keep_best else None,
        "greater_is_better": True,
        "ddp_find_unused_parameters": False,
        "report_to": [],  # the tracker gets the lines of metrics.jsonl
        "dataloader_num_workers": 2 if torch.cuda.is_available() else 0,
    }
    extra = {**config.training.arguments, **side.arguments}
    made = _library_arguments(values, extra, f"config key training.{stage.name}.arguments")
    if heads.kind == "joint":
        further: Any = made.learning_rate_mapping
        with named_argument("learning_rate_mapping"):
            made.learning_rate_mapping = {r"\.heads\.": heads.learning_rate, **further}
    return made


def _library_arguments(
    values: dict[str, Any], extra: dict[str, Any], place: str
) -> SentenceTransformerTrainingArguments:
    """The values, overridden by the `extra` ones; raises UserError where one of these can't be set."""
    for key in sorted(NOT_FREE & extra.keys()):
        what = f"{key} can't be set: the pipeline sets or ignores it"
        raise UserError(what, where=f"{place}.{key}", remedy="remove it")
    known = dataclasses.fields(SentenceTransformerTrainingArguments)
    numbers = {field.name for field in known if isinstance(field.default, int | float) and field.type in (int, float)}
    for key in sorted(numbers & {key for key, value in extra.items() if isinstance(value, str)}):
        what = f"{key} must be a number, not {extra[key]}"
        raise UserError(what, where=f"{place}.{key}", remedy="write it as 0.001")
    try:
        made = SentenceTransformerTrainingArguments(**{**values, **extra})
    except (TypeError, ValueError) as error:
        what = str(error).removeprefix("SentenceTransformerTrainingArguments.__init__() ")
        remedy = "use arguments of SentenceTransformerTrainingArguments"
        raise UserError(what, where=place, remedy=remedy) from error
    trackers = {str(tracker) for tracker in made.report_to or ()}
    for tracker in trackers - {*get_available_reporting_integrations()} if trackers else ():  # it imports them all
        what, remedy = f"no tracker {tracker} is installed", "install it, or use tracking=wandb"
        raise UserError(what, where=f"{place}.report_to", remedy=remedy)
    made._n_gpu = min(made.n_gpu, 1)  # one process, one GPU: never nn.DataParallel
    return made

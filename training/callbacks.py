"""Callbacks of the trainer: metrics.jsonl, checkpoints, memory, progress, and a clean stop on SIGTERM."""

import json
import math
import signal
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import ProgressCallback

from pipeline.core.artefact import replacing
from pipeline.core.console import log
from pipeline.core.device import kept_memory
from training.batch_plan import GlobalBatch
from training.dev_scores import dev_figures
from training.model_files import trained_weights

PARTS = (
    *("contrastive", "angle", "angle_gradient_share"),  # of a side's loss
    *("ensemble", "sparse", "multi_vector", "distillation", "all_zero"),  # of the heads' loss; the 4th of a side's too
    "self_distillation",  # of a side with heads
)


class MetricsLog(TrainerCallback):
    """Writes metrics.jsonl on rank 0, one line per step that is logged or evaluated.

    A line has the step. A logged step adds loss, its parts, AnglE's share of the two gradients' norms at the step's
    embeddings or the share of texts whose sparse vector is all zero, grad_norm, learning_rate, tokens_per_second,
    padding_share and set (null where the line covers several steps); an evaluated one adds dev scores and dev losses.
    Step 0 is the model before training. A resumed run first drops the lines after its checkpoint. `track` gets all
    values as they come.
    """

    def __init__(self, path: Path, batches: Sequence[GlobalBatch], track: Callable[[dict[str, Any]], None]) -> None:
        self.path, self.batches, self.track = path, batches, track
        self.last: dict[str, Any] = {}  # the file's last line, which starts at the byte `place`

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.since, self.at = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
            kept = [line for line in lines if _step(line) <= state.global_step]
            self.last = json.loads(kept[-1]) if kept else {}
            whole = [f"{line}\n".encode() for line in kept]
            with replacing(self.path) as path:
                path.write_bytes(b"".join(whole))
            self.place = sum(map(len, whole[:-1]))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            now = time.monotonic()
            tokens = logs["tokens"] * (state.global_step - self.at) * args.world_size
            line: dict[str, Any] = {
                "step": state.global_step,
                "loss": logs["loss"],
                **{name: logs[name] for name in PARTS if name in logs},
                "grad_norm": logs["grad_norm"] if math.isfinite(logs["grad_norm"]) else None,  # fp16 overflows
                "learning_rate": logs["learning_rate"],
                "tokens_per_second": round(tokens / (now - self.since), 1),
                "padding_share": logs["padding_share"],
                "set": self.batches[state.global_step - 1].set if state.global_step == self.at + 1 else None,
            }
            self.since, self.at = now, state.global_step
            self._write(line, state)
        elif dev := dev_figures(logs):
            self._write({"step": state.global_step, **dev}, state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.since = time.monotonic()

    def _write(self, line: dict[str, Any], state: TrainerState) -> None:
        """Append the line, or merge it into the last one where that is of the same step; no other line is rewritten.

        A run that was killed after its last step scores these weights again, which changes nothing.
        """
        if not state.is_world_process_zero:
            return
        if line["step"] == self.last.get("step"):
            self.last |= line
        else:
            self.last, self.place = dict(line), self.path.stat().st_size
        with self.path.open("r+b") as file:
            file.seek(self.place)
            file.write(f"{json.dumps(self.last, ensure_ascii=False)}\n".encode())
            file.truncate()
        self.track(line)


def _step(line: str) -> float:
    """The step of a line; infinite for one that a kill truncated."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class Preemption(TrainerCallback):
    """On SIGTERM to any rank, all ranks save a checkpoint after the same step and stop.

    With several ranks the flag is all-reduced at every step. That waits for the device, but so did the check of the
    gradient norm just before.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.previous = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        asked = self.asked
        if args.world_size > 1:  # a signal that arrives meanwhile is shared with all ranks at the next step
            of_all = torch.tensor(int(asked), device=args.device)
            torch.distributed.all_reduce(of_all, op=torch.distributed.ReduceOp.MAX)
            asked = bool(of_all.item())
        if asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, self.previous)


class Checkpoints(TrainerCallback):
    """Saves a checkpoint every `steps` steps, also where the library saves only at evaluations, to keep the best."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.best_global_step:  # next to the others, even if the folder has been moved since
            state.best_model_checkpoint = str(Path(args.output_dir, f"checkpoint-{state.best_global_step}"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= state.global_step % self.steps == 0


class Snapshots(TrainerCallback):
    """Saves the trained weights at these steps as `<step>.safetensors` in a folder, on rank 0.

    Each is written before its step's checkpoint, so a run that resumes from a checkpoint has all earlier ones.
    """

    def __init__(self, folder: Path, steps: Collection[int]) -> None:
        self.files = {step: folder / f"{step}.safetensors" for step in steps}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self.files and state.is_world_process_zero:
            with replacing(self.files[state.global_step]) as path:
                save_file(trained_weights(model), path)


class KeptMemory(TrainerCallback):
    """Limits the freed memory that a process on a CPU keeps from step to step to `most` bytes.

    Batches of changing shapes fragment it; without a limit it grows to twice what a step needs.
    """

    def __init__(self, most: int) -> None:
        self.most = most

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.before, self.within = kept_memory(), 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        resident = psutil.Process().memory_info().rss
        if resident <= self.within:
            return  # the same amount is allocated after every step, so a resident size once within the limit still is
        kept = kept_memory() - self.before
        if kept > self.most:
            psutil.heap_trim()
        else:
            self.within = resident + self.most - kept


class StepBar(ProgressCallback):
    """The library's progress bar, with loss and dev score at its end instead of a line per step."""

    shown: ClassVar = {"loss": "loss", "eval_score": "dev"}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        self.latest: dict[str, str] = {}

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None:
            self.latest |= {name: f"{logs[key]:.3f}" for key, name in self.shown.items() if key in logs}
            self.training_bar.set_postfix(self.latest)


class StepLines(TrainerCallback):
    """Progress without a terminal: about ten lines per run, and one per evaluation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        every = max(1, state.max_steps // 10)
        if not logs or not state.is_world_process_zero:
            return
        if "loss" in logs and state.global_step % every < state.logging_steps:  # the first line after each tenth
            log.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, logs["loss"])
        if "eval_score" in logs:
            log.info("step %d of %d: dev score %.4f", state.global_step, state.max_steps, logs["eval_score"])

"""What happens beside the training steps: metrics.jsonl, progress, and a clean end on SIGTERM."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from pipeline.core.artefact import replacing
from pipeline.core.console import log
from training.batch_plan import GlobalBatch


class MetricsLog(TrainerCallback):
    """Appends one line a logging step to metrics.jsonl, and one an evaluation, on rank 0.

    A training line has step, loss, its parts, grad_norm, learning_rate, tokens_per_second, padding_share and set
    (null where the line covers several steps). A resumed run first drops the lines after its checkpoint.
    `track` gets every line too.
    """

    def __init__(
        self, path: Path, batches: Sequence[GlobalBatch], track: Callable[[dict[str, Any]], None] = lambda line: None
    ) -> None:
        self.path, self.batches, self.track = path, batches, track

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.since, self.at = time.monotonic(), state.global_step
        if state.is_world_process_zero:
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.exists() else []
            kept = [line for line in lines if _step(line) <= state.global_step]
            with replacing(self.path) as path:
                path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        assert logs is not None
        if "loss" in logs:
            now = time.monotonic()
            tokens = logs["tokens"] * (state.global_step - self.at) * args.world_size
            line: dict[str, Any] = {
                "step": state.global_step,
                "loss": logs["loss"],
                **{name: logs[name] for name in ("contrastive", "angle") if name in logs},
                **{name: logs[name] for name in ("grad_norm", "learning_rate")},
                "tokens_per_second": round(tokens / (now - self.since), 1),
                "padding_share": logs["padding_share"],
                "set": self.batches[state.global_step - 1].set if state.global_step == self.at + 1 else None,
            }
            self.since, self.at = now, state.global_step
            self._write(line, state)
        elif dev := {
            f"dev_{name.removeprefix('eval_')}": value
            for name, value in logs.items()
            if name.startswith("eval_") and name.endswith(("_loss", "_score"))
        }:
            line = {"step": state.global_step, **dev}
            if not self._stands(line):  # a run that was killed after its last step scores these weights once more
                self._write(line, state)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.since = time.monotonic()

    def _stands(self, line: dict[str, Any]) -> bool:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return json.dumps(line, ensure_ascii=False) in lines

    def _write(self, line: dict[str, Any], state: TrainerState) -> None:
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.track(line)


def _step(line: str) -> float:
    """The step of a line; infinite for one that a kill cut off."""
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")


class Preemption(TrainerCallback):
    """On SIGTERM to any rank, all ranks save a checkpoint after the same step and stop.

    On a GPU they look every 10 steps: each look waits for the device.
    """

    def __init__(self) -> None:
        self.asked = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.previous = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_: Any) -> None:
        self.asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.device.type == "cuda" and state.global_step % 10:
            return
        asked = torch.tensor(int(self.asked), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        self.asked = bool(asked.item())
        if self.asked and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        signal.signal(signal.SIGTERM, self.previous)


class Checkpoints(TrainerCallback):
    """Saves a checkpoint every so many steps, also where the library, to keep the best, saves at evaluations alone."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        control.should_save |= state.global_step % self.steps == 0


class StepBar(ProgressCallback):
    """The library's bar with the loss at its end instead of a line a step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


class StepLines(TrainerCallback):
    """Where there is no terminal: about ten lines a run."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        every = max(1, state.max_steps // 10)
        if logs and "loss" in logs and state.global_step % every == 0 and state.is_world_process_zero:
            log.info("step %d of %d: loss %.4f", state.global_step, state.max_steps, logs["loss"])

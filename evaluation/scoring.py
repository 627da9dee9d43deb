"""Scores models: each is loaded when a task first needs it, and each task's predictions are kept.

One model on one task is a unit. Units are shared between devices, processes and machines: whichever is free claims the
next unclaimed one and writes its record.
"""

import dataclasses
import gc
import logging
import logging.handlers
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from configs.schema.config import Config
from evaluation.encoder import Encoder
from evaluation.metrics import whole
from evaluation.models import ScoredModel, heads_fingerprint
from evaluation.outcome import SCORE_VERSION
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder, json_sha256, result_settings, untracked
from pipeline.core.console import LOGGED_EVERY, log
from pipeline.core.embedding import EmbeddingCache
from pipeline.core.errors import Stopped, UserError
from pipeline.core.heads import Heads, own_heads, read_heads
from pipeline.core.machine import cores, usable_gpus

AGREEMENT = 1e-6  # between a score and the statistic behind its interval

Errors = dict[str, UserError]  # by unit name
Find = Callable[[Config, StageFolder], list[Task]]


class Scorer(AbstractContextManager["Scorer"]):
    """One model while it is scored, and what tasks use of it; as a context manager it frees the device."""

    def __init__(self, model: ScoredModel, config: Config, device: str | None = None) -> None:
        self.model, self.config, self.settings, self.device = model, config, config.evaluation, device
        self.begun: set[str] = set()  # suites

    def __exit__(self, *raised: object) -> None:
        for kept in ("encoder", "heads", "own_heads"):
            self.__dict__.pop(kept, None)
        gc.collect()  # transformers' models contain reference cycles
        torch.cuda.empty_cache()

    def score(self, task: Task, folder: Path) -> dict[str, Any]:
        """Score the model on `task` and write its predictions below `folder`; returns what the tables need.

        Raises UserError for a score that is NaN or infinite.
        """
        if task.suite not in self.begun:
            self.begun.add(task.suite)
            log.info("evaluate: %s on %s", self.model.name, task.suite)
        started = time.monotonic()
        outcome = task.score(self)
        if (seconds := time.monotonic() - started) > LOGGED_EVERY:
            log.info("evaluate: %s on %s took %.1f minutes", self.model.name, task.key, seconds / 60)
        where = f"model {self.model.name}, task {task.key}"
        if undefined := [measure.metric for measure in outcome.measures if not math.isfinite(measure.score)]:
            remedy = "check that its embeddings differ between texts"
            raise UserError(f"{', '.join(undefined)} is not a finite number", where=where, remedy=remedy)
        for measure in outcome.measures:  # else its interval would be of another quantity
            from_items = whole(measure, outcome)
            if abs(from_items - measure.score) > AGREEMENT:
                what = f"{measure.metric} is {measure.score:.6f}, but its items give {from_items:.6f}"
                remedy = "leave the task out: this is a bug in this repository"
                raise UserError(what, where=where, remedy=remedy)
        path = Path("predictions", self.model.name, f"{task.key}.parquet")
        outcome.write(folder / path)
        return {
            "predictions": path.as_posix(),
            "items": outcome.items,
            "seconds": round(seconds, 3),
            "measures": [dataclasses.asdict(measure) for measure in outcome.measures],
            "notes": outcome.notes,
        }

    @property
    def key(self) -> str:
        """Identifies what embeddings depend on: the model's contents and the precision."""
        return f"{self.model.fingerprint}-{self.settings.precision}"

    @property
    def workers(self) -> int:
        """Number of processes for classifiers."""
        return self.settings.workers or max(1, cores() // len(device_names(self.config)))

    @cached_property
    def encoder(self) -> Encoder:
        """The loaded model."""
        settings = self.settings
        return Encoder(
            self.model.folder,
            precision=settings.precision,
            device=self.device,
            token_budget=self.config.token_budget,
            cache=EmbeddingCache(Path(settings.embeddings, self.key) if settings.embeddings else None),
        )

    @cached_property
    def heads(self) -> Heads:
        """bge-m3's two heads: the model's own, or the base's."""
        return read_heads(self.model.folder, self.config.folder("base"))

    @cached_property
    def own_heads(self) -> Heads | None:
        """The model's own heads, None if there are none."""
        return own_heads(self.model.folder)


def device_names(config: Config) -> list[str]:
    """The configured devices, else every GPU of the machine, else its CPU."""
    return list(config.evaluation.devices) or [f"cuda:{number}" for number in range(usable_gpus())] or ["cpu"]


def score_units(
    config: Config, stage: StageFolder, models: Sequence[ScoredModel], find: Find, first: int = 0
) -> Errors:
    """Score every unclaimed unit, on all devices of this machine, starting with the model `first`.

    Raises UserError if a process was killed; errors of single units are returned.
    """
    devices = device_names(config)
    if len(devices) == 1:
        return _on_one(config, stage, models, find, devices[0], first)
    context = multiprocessing.get_context("spawn")  # a child forked after CUDA was used can't use it
    records = context.Queue()
    listener = logging.handlers.QueueListener(records, *logging.getLogger().handlers, respect_handler_level=True)
    portable = dataclasses.replace(stage, track=untracked, inputs=dict(stage.inputs))
    shares = [(first + number * len(models) // len(devices)) % len(models) for number in range(len(devices))]
    listener.start()
    try:
        with ProcessPoolExecutor(len(devices), context, _start, (records, len(devices))) as pool:
            share = partial(_on_one, config, portable, models, find)
            try:
                return {name: error for found in pool.map(share, devices, shares) for name, error in found.items()}
            except (Stopped, KeyboardInterrupt):  # the pool would wait for all scoring to finish
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    except BrokenProcessPool:
        remedy = "give it more memory, or set a smaller token_budget; finished scores are kept"
        raise UserError("a process that scored models was killed", where=", ".join(devices), remedy=remedy) from None
    finally:
        listener.stop()


def score_unit(stage: StageFolder, scorer: Scorer, task: Task) -> dict[str, Any]:
    """The unit's result, computed here unless it exists; raises UserError if that fails."""
    made = unit_fingerprint(scorer.model, task, scorer.config)
    return stage.unit(unit_name(scorer.model, task), made, partial(scorer.score, task))


def unit_name(model: ScoredModel, task: Task) -> str:
    """The name of a unit and of its record."""
    return f"{model.name}/{task.key}"


def unit_fingerprint(model: ScoredModel, task: Task, config: Config) -> str:
    """What one score depends on: the model's contents, the task's settings and data, and the precision."""
    folders = [model.folder] if task.needs_heads or task.takes_heads else []
    folders += [config.folder("base")] if task.needs_heads else []
    of_task = [task.key, result_settings(task.settings), heads_fingerprint(folders)]
    return json_sha256([SCORE_VERSION, model.fingerprint, config.evaluation.precision, *of_task])


def _on_one(
    config: Config, stage: StageFolder, models: Sequence[ScoredModel], find: Find, device: str, first: int
) -> Errors:
    """Score unclaimed units on one device, with one model in memory at a time."""
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")  # TF32, as in training
    tasks, errors = find(config, stage), Errors()
    for model in [*models[first:], *models[:first]]:
        with Scorer(model, config, device) as scorer:
            for task in tasks:
                with stage.claim(unit_name(model, task), wait=False) as free:
                    if not free:
                        continue
                    try:
                        score_unit(stage, scorer, task)
                    except UserError as error:
                        errors[unit_name(model, task)] = error
    return errors


def _start(records: Any, processes: int) -> None:
    """Forward log records to the parent process, and use only this process's share of the cores."""
    root = logging.getLogger()
    root.handlers, root.level = [logging.handlers.QueueHandler(records)], logging.INFO
    for noisy in ("accelerate", "datasets", "httpx", "mteb", "sentence_transformers", "torch", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    threads = max(1, cores() // processes)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries loaded later, such as scikit-learn
    threadpool_limits(threads)
    torch.set_num_threads(threads)

"""Scoring one model: it is loaded when the first task needs it, and each task leaves its predictions."""

import math
import os
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.schema.config import Config
from evaluation.encoder import Encoder
from evaluation.models import ScoredModel, chain_model, head_folders
from evaluation.suites.heads import Heads, read_heads
from evaluation.suites.task import Task
from pipeline.core.console import log
from pipeline.core.embedding import EmbeddingCache
from pipeline.core.errors import UserError


class Scorer:
    """One model while it is scored on task after task, and what they use of it."""

    def __init__(self, model: ScoredModel, config: Config) -> None:
        self.model, self.config, self.settings = model, config, config.evaluation

    def score(self, task: Task, folder: Path) -> dict[str, Any]:
        """Score the model on `task` and write its predictions below `folder`; returns what the tables need.

        Raises UserError for a score that is NaN or infinite.
        """
        log.info("evaluate: %s on %s", self.model.name, task.key)
        started = time.monotonic()
        outcome = task.score(self)
        seconds = time.monotonic() - started
        if undefined := [measure.metric for measure in outcome.measures if not math.isfinite(measure.score)]:
            where = f"model {self.model.name}, task {task.key}"
            remedy = "see whether its embeddings differ from text to text"
            raise UserError(f"{', '.join(undefined)} is no finite number", where=where, remedy=remedy)
        path = Path("predictions", self.model.name, f"{task.key}.parquet")
        outcome.write(folder / path)
        return {
            "predictions": path.as_posix(),
            "items": outcome.items,
            "seconds": round(seconds, 3),
            "measures": [asdict(measure) for measure in outcome.measures],
            "notes": outcome.notes,
        }

    @property
    def key(self) -> str:
        """Names what embeddings depend on: the model's contents and the precision."""
        return f"{self.model.fingerprint}-{self.settings.precision}"

    @property
    def workers(self) -> int:
        """Processes for classifiers."""
        return self.settings.workers or os.cpu_count() or 1

    @cached_property
    def encoder(self) -> Encoder:
        """The loaded model."""
        settings = self.settings
        return Encoder(
            self.model.folder,
            precision=settings.precision,
            device=settings.devices[0] if settings.devices else None,
            token_budget=self.config.token_budget,
            cache=EmbeddingCache(Path(settings.embeddings, self.key) if settings.embeddings else None),
        )

    @cached_property
    def heads(self) -> Heads:
        """bge-m3's two heads: the model's own, or those that are configured, or the base's."""
        return read_heads(*head_folders(self.config, self.model.folder))

    def base(self) -> "Scorer":
        """The same of this run's base; raises UserError where it is not made."""
        if model := chain_model(self.config, "base"):
            return Scorer(model, self.config)
        place = str(self.config.folder("base"))
        raise UserError("drift is measured against the base", where=place, remedy="make init")

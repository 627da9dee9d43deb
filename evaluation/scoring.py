"""Scoring one model: it is loaded when the first task needs it, and each task leaves its predictions."""

import os
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.embedding import Embedder
from evaluation.embedding_cache import EmbeddingCache
from evaluation.models import ScoredModel
from evaluation.suites import Resources, Task
from pipeline.config import Config
from pipeline.console import log


class Scorer:
    """One model while it is scored on task after task."""

    def __init__(self, model: ScoredModel, config: Config) -> None:
        self.model, self.config, self.settings = model, config, config.evaluation

    def score(self, task: Task, folder: Path) -> dict[str, Any]:
        """Score the model on `task` and write its predictions below `folder`; returns what the tables need."""
        log.info("evaluate: %s on %s", self.model.name, task.key)
        started = time.monotonic()
        outcome = task.run(self.resources)
        seconds = time.monotonic() - started
        path = Path("predictions", self.model.name, f"{task.key}.parquet")
        outcome.write(folder / path)
        return {
            "predictions": path.as_posix(),
            "items": outcome.items,
            "seconds": round(seconds, 3),
            "measures": [asdict(measure) for measure in outcome.measures],
            "notes": outcome.notes,
        }

    @cached_property
    def embedder(self) -> Embedder:
        """The loaded model."""
        settings = self.settings
        place = Path(settings.embeddings, self.key) if settings.embeddings else None
        return Embedder(
            self.model.folder,
            precision=settings.precision,
            device=settings.devices[0] if settings.devices else None,
            batch_tokens=settings.batch_tokens,
            cache=EmbeddingCache(place),
        )

    @property
    def key(self) -> str:
        """Names what embeddings depend on: the model's contents and the precision."""
        return f"{self.model.fingerprint}-{self.settings.precision}"

    @cached_property
    def resources(self) -> Resources:
        """What tasks may use; nothing of it is loaded yet."""
        devices = self.settings.devices
        return Resources(
            embedder=lambda: self.embedder,
            mteb_encoder=self.mteb_encoder,
            mteb_folder=self.mteb_folder,
            encode={"device": list(devices)} if len(devices) > 1 else {},
            workers=self.settings.workers or os.cpu_count() or 1,
        )

    @cached_property
    def mteb_folder(self) -> Path:
        """Kept across runs, one folder for each version of mteb, whose scores are not comparable."""
        from importlib.metadata import version

        return Path(self.config.runs, "cache", "mteb", version("mteb"))

    def mteb_encoder(self, kind: str) -> Any:
        """The model for mteb, by its dense vectors."""
        from evaluation.mteb_model import CheckedEncoder

        return CheckedEncoder(self.embedder, self.key)

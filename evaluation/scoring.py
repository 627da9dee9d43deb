"""Scoring one model: it is loaded when the first task needs it, and each task leaves its predictions."""

import math
import os
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from configs.schema.config import Config
from evaluation.embedding import Embedder
from evaluation.embedding_cache import EmbeddingCache
from evaluation.heads import Heads, read_heads
from evaluation.models import ScoredModel, chain_model, head_folders
from evaluation.result_files import mteb_folder
from evaluation.suites import Resources, Task
from pipeline.core.console import log
from pipeline.core.errors import UserError


class Scorer:
    """One model while it is scored on task after task."""

    def __init__(self, model: ScoredModel, config: Config) -> None:
        self.model, self.config, self.settings = model, config, config.evaluation

    def score(self, task: Task, folder: Path) -> dict[str, Any]:
        """Score the model on `task` and write its predictions below `folder`; returns what the tables need.

        Raises UserError for a score that is NaN or infinite.
        """
        log.info("evaluate: %s on %s", self.model.name, task.key)
        started = time.monotonic()
        outcome = task.run(self.resources)
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

    @cached_property
    def embedder(self) -> Embedder:
        """The loaded model."""
        return self._load(self.model.folder, self.key)

    @cached_property
    def heads(self) -> Heads:
        """bge-m3's two heads: the model's own, or those that are configured, or the base's."""
        return read_heads(*head_folders(self.config, self.model.folder))

    def reference(self) -> tuple[Embedder, Heads]:
        """The base and its heads; raises UserError where it is not made."""
        base = chain_model(self.config, "base")
        if base is None:
            raise UserError(
                "drift is measured against the base", where=str(self.config.folder("base")), remedy="make init"
            )
        embedder = self._load(base.folder, f"{base.fingerprint}-{self.settings.precision}")
        return embedder, read_heads(*head_folders(self.config, base.folder))

    def _load(self, folder: Path, key: str) -> Embedder:
        settings = self.settings
        place = Path(settings.embeddings, key) if settings.embeddings else None
        return Embedder(
            folder,
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
            mteb_folder=mteb_folder(self.config),
            heads=lambda: self.heads,
            reference=self.reference,
            encode={"device": list(devices)} if len(devices) > 1 else {},
            workers=self.settings.workers or os.cpu_count() or 1,
        )

    def mteb_encoder(self, kind: str) -> Any:
        """The model for mteb, by its dense, sparse or multi-vector output."""
        from evaluation.mteb_model import CheckedEncoder, multi_vector_model, sparse_model

        if kind == "dense":
            return CheckedEncoder(self.embedder, self.key)
        make = sparse_model if kind == "sparse" else multi_vector_model
        return make(self.embedder, self.heads, self.key)

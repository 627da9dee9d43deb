"""The ten tasks: which files and columns they read, and which predictor scores them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema.config import Config
from evaluation.encoder import QUERY, Embedder
from evaluation.outcome import Outcome
from evaluation.scoring import Scorer
from evaluation.suites.encodechka.files import COMMIT, DataFiles
from evaluation.suites.encodechka.predictors import (
    Variants,
    accuracy_task,
    auc_task,
    inference_task,
    normalised_too,
    similarity_task,
)
from evaluation.suites.encodechka.words import entity_task
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder


def tasks(suite: str, config: Config, stage: StageFolder) -> list[Task]:
    """The ten tasks; their data are looked for when they are scored."""
    files = DataFiles(config.evaluation.encodechka_folder, Path(config.runs, "cache", "encodechka"))
    return [EncodechkaTask(suite, name, config.evaluation.suite[suite].protocol, files) for name in TASKS]


class EncodechkaTask(Task):
    """One of TASKS by the suite's protocol."""

    def __init__(self, suite: str, name: str, protocol: str, files: DataFiles) -> None:
        super().__init__(suite, name, {"data": COMMIT, "protocol": protocol})
        self.protocol, self.files = protocol, files

    def score(self, scorer: Scorer) -> Outcome:
        return TASKS[self.name](self.files, Vectors(scorer.embedder, self.protocol, scorer.workers))


@dataclass(frozen=True)
class Vectors:
    """What the protocol takes of a model: candidates of sentence vectors, and word vectors."""

    embedder: Embedder
    protocol: str  # leaderboard or model
    workers: int = 1

    def sentences(self, texts: Sequence[str]) -> Variants:
        """Every pooled variant, raw and of length 1; or the model's own embedding with its query prompt."""
        if self.protocol == "leaderboard":
            return normalised_too(self.embedder.variants(texts))
        return {"own": self.embedder.sentences(texts, QUERY)}


Run = Callable[[DataFiles, Vectors], Outcome]
Label = Callable[[str], Any]


def _similarity(file: str, first: str, second: str, gold: str) -> Run:
    def run(files: DataFiles, vectors: Vectors) -> Outcome:
        rows = files.csv(file)
        one, two = ([row[column] for row in rows] for column in (first, second))
        return similarity_task(vectors.sentences(one), vectors.sentences(two), _labels(rows, gold, float))

    return run


def _inference(file: str) -> Run:
    def run(files: DataFiles, vectors: Vectors) -> Outcome:
        rows = files.csv(file)
        one, two = ([row[column] for row in rows] for column in ("sentence1", "sentence2"))
        return inference_task(vectors.sentences(one), vectors.sentences(two), _labels(rows, "gold_label", str))

    return run


def _classified(score: Callable[..., Outcome], stem: str, label: str, kind: Label, train_text: str = "text") -> Run:
    def run(files: DataFiles, vectors: Vectors) -> Outcome:
        train, test = files.csv(f"{stem}_train.csv"), files.csv(f"{stem}_test.csv")
        return score(
            vectors.sentences([row[train_text] for row in train]),
            _labels(train, label, kind),
            vectors.sentences([row["text"] for row in test]),
            _labels(test, label, kind),
            vectors.workers,
        )

    return run


def _entities(file: str) -> Run:
    def run(files: DataFiles, vectors: Vectors) -> Outcome:
        data = files.json(file)
        return entity_task(data["texts"], data["labels"], vectors.embedder.words)

    return run


def _labels(rows: list[dict[str, str]], column: str, kind: Label) -> np.ndarray:
    return np.array([kind(row[column]) for row in rows])


TASKS: dict[str, Run] = {
    "STS": _similarity("stsb_dev.csv", "sentence1", "sentence2", "similarity_score"),
    "PI": _similarity("para_gold.csv", "text_1", "text_2", "class"),
    "NLI": _inference("xnli_ru.csv"),
    "SA": _classified(accuracy_task, "SentiRuEval2016_small", "answer", int),
    "TI": _classified(auc_task, "toxic", "toxic", int),
    "IA": _classified(auc_task, "inappropriate", "y", lambda text: int(float(text))),
    "IC": _classified(accuracy_task, "intents", "label", str),
    "ICX": _classified(accuracy_task, "intents", "label", str, train_text="answer"),
    "NE1": _entities("factru.json"),
    "NE2": _entities("rudrec.json"),
}

"""The ten tasks: which files and columns they read, and which predictor scores them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema.config import Config
from evaluation.encoder import Encoder
from evaluation.outcome import ITEM, Outcome
from evaluation.scoring import Scorer
from evaluation.suites.encodechka.files import COMMIT, data_files, file_name
from evaluation.suites.encodechka.predictors import Variants, accuracy_task, auc_task, inference_task, similarity_task
from evaluation.suites.encodechka.words import entity_task
from evaluation.suites.task import Task
from evaluation.suites.text_pairs import items_of_pairs
from pipeline.core.artefact import StageFolder
from pipeline.core.embedding import l2_normalize, text_key


def tasks(suite: str, config: Config, stage: StageFolder) -> list[Task]:
    """The ten tasks; their data are read when they are scored."""
    files = data_files(config)
    protocol = config.evaluation.suite[suite].protocol
    settings = {"data": COMMIT, "protocol": protocol}
    return [EncodechkaTask(suite, name, settings, procedure, files, protocol) for name, procedure in TASKS.items()]


class EncodechkaTask(Task):
    """A task scored by encodechka's protocol, on its own files or others of the same format."""

    def __init__(
        self, suite: str, name: str, settings: Any, procedure: "Procedure", files: "Files", protocol: str
    ) -> None:
        super().__init__(suite, name, settings)
        self.procedure, self.files, self.protocol = procedure, files, protocol

    def score(self, scorer: Scorer) -> Outcome:
        return self.procedure.score(self.files, EncodechkaVectors(scorer.encoder, self.protocol, scorer.workers))


@dataclass(frozen=True)
class EncodechkaVectors:
    """What the protocol uses of a model: candidates of sentence vectors, and word vectors."""

    encoder: Encoder
    protocol: str  # leaderboard or model
    workers: int = 1

    def sentences(self, texts: Sequence[str]) -> Variants:
        """Every pooled variant, raw and scaled to length 1; or the model's own embedding with its query prompt."""
        if self.protocol == "leaderboard":
            raw = self.encoder.variants(texts)
            return raw | {f"{name}_norm": l2_normalize(vectors) for name, vectors in raw.items()}
        return {"own": self.encoder.sentences(texts)}


Files = Callable[[str], Any]  # file name -> its rows
Label = Callable[[Any], Any]


@dataclass(frozen=True)
class Procedure:
    """How a task is scored, and the columns of the file with its test texts."""

    file: str
    columns: tuple[str, ...]
    score: Callable[[Files, EncodechkaVectors], Outcome]


def paired(score: Callable[..., Outcome], file: str, first: str, second: str, gold: str, kind: Label) -> Procedure:
    """Scores the similarities of two columns' texts against gold labels."""

    def scored(files: Files, vectors: EncodechkaVectors) -> Outcome:
        rows = files(file)
        texts = [[row[column] for row in rows] for column in (first, second)]
        outcome = score(*map(vectors.sentences, texts), _labels(rows, gold, kind))
        outcome.columns[ITEM] = items_of_pairs(*texts)
        return outcome

    return Procedure(file, (first, second), scored)


def classified(
    score: Callable[..., Outcome], stem: str, label: str, kind: Label, train_text: str = "text"
) -> Procedure:
    """Fits a classifier on `<stem>_train` and scores it on `<stem>_test`."""

    def scored(files: Files, vectors: EncodechkaVectors) -> Outcome:
        train, test = files(f"{stem}_train"), files(f"{stem}_test")
        texts = [row["text"] for row in test]
        outcome = score(
            vectors.sentences([row[train_text] for row in train]),
            _labels(train, label, kind),
            vectors.sentences(texts),
            _labels(test, label, kind),
            vectors.workers,
        )
        outcome.columns[ITEM] = np.array([text_key(text) for text in texts], dtype=object)
        return outcome

    return Procedure(f"{stem}_test", tuple(dict.fromkeys(["text", train_text])), scored)


def entities(file: str) -> Procedure:
    """Predicts tags of named entities from word vectors."""

    def scored(files: Files, vectors: EncodechkaVectors) -> Outcome:
        data = files(file)
        return entity_task(data["texts"], data["labels"], vectors.encoder.words)

    return Procedure(file, ("texts",), scored)


def _labels(rows: list[dict[str, Any]], column: str, kind: Label) -> np.ndarray:
    return np.array([kind(row[column]) for row in rows])


TASKS: dict[str, Procedure] = {
    "STS": paired(similarity_task, "stsb_dev", "sentence1", "sentence2", "similarity_score", float),
    "PI": paired(similarity_task, "para_gold", "text_1", "text_2", "class", float),
    "NLI": paired(inference_task, "xnli_ru", "sentence1", "sentence2", "gold_label", str),
    "SA": classified(accuracy_task, "SentiRuEval2016_small", "answer", int),
    "TI": classified(auc_task, "toxic", "toxic", int),
    "IA": classified(auc_task, "inappropriate", "y", lambda text: int(float(text))),
    "IC": classified(accuracy_task, "intents", "label", str),
    "ICX": classified(accuracy_task, "intents", "label", str, train_text="answer"),
    "NE1": entities("factru.json"),
    "NE2": entities("rudrec.json"),
}


def scored_columns() -> dict[str, tuple[str, ...]]:
    """File -> columns with test texts, over all tasks: texts to keep out of training."""
    found: dict[str, tuple[str, ...]] = {}
    for task in TASKS.values():
        name = file_name(task.file)
        found[name] = tuple(dict.fromkeys([*found.get(name, ()), *task.columns]))
    return found

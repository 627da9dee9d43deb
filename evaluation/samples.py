"""The bundled samples: small Russian sets, written for this project, through encodechka's and mteb's code."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.embedding import QUERY, Embedder
from evaluation.encodechka import predictors
from evaluation.outcome import Outcome
from pipeline.core.errors import UserError

FOLDER = Path(__file__).parent / "samples"
Rows = list[dict[str, Any]]


def sts(rows: dict[str, Rows], embedder: Embedder) -> Outcome:
    """Graded similarity of two sentences; encodechka's STS."""
    first, second, gold = _pairs(rows["sts"], "sentence1", "sentence2", "score")
    return predictors.similarity_task(_own(embedder, first), _own(embedder, second), gold.astype(np.float64))


def paraphrase(rows: dict[str, Rows], embedder: Embedder) -> Outcome:
    """Paraphrase (1), near (0) or not (-1); encodechka's PI."""
    first, second, gold = _pairs(rows["paraphrase"], "text_1", "text_2", "label")
    return predictors.similarity_task(_own(embedder, first), _own(embedder, second), gold.astype(np.int64))


def nli(rows: dict[str, Rows], embedder: Embedder) -> Outcome:
    """Entailment, neutral or contradiction from one similarity; encodechka's NLI."""
    first, second, labels = _pairs(rows["nli"], "premise", "hypothesis", "label")
    return predictors.inference_task(_own(embedder, first), _own(embedder, second), labels)


def topics(rows: dict[str, Rows], embedder: Embedder) -> Outcome:
    """Topics from vectors; encodechka's SA, IC."""
    train, test = rows["classification_train"], rows["classification_test"]
    vectors = [_own(embedder, [row["text"] for row in part]) for part in (train, test)]
    labels = [np.array([row["label"] for row in part]) for part in (train, test)]
    return predictors.accuracy_task(vectors[0], labels[0], vectors[1], labels[1])


ENCODECHKA_SAMPLES: dict[str, tuple[Callable[[dict[str, Rows], Embedder], Outcome], tuple[str, ...]]] = {
    "sts": (sts, ("sts",)),
    "paraphrase": (paraphrase, ("paraphrase",)),
    "nli": (nli, ("nli",)),
    "topics": (topics, ("classification_train", "classification_test")),
}


def read_samples(names: tuple[str, ...], folder: Path = FOLDER) -> dict[str, Rows]:
    """Rows of bundled sample files by name; raises UserError where one is missing or malformed."""
    found = {}
    for name in names:
        path = folder / f"{name}.jsonl"
        try:
            found[name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"can't read samples: {error}", where=str(path), remedy="restore the file") from error
    return found


def _pairs(rows: Rows, first: str, second: str, label: str) -> tuple[list[str], list[str], np.ndarray]:
    return [row[first] for row in rows], [row[second] for row in rows], np.array([row[label] for row in rows])


def _own(embedder: Embedder, texts: list[str]) -> predictors.Variants:
    return {"own": embedder.sentences(texts, QUERY)}

"""encodechka's predictors on vectors: similarities, logistic regression and nearest neighbours, and their metrics.

A task tries candidates (pooled variants of the vectors, times classifiers if it has two) and keeps the best on the test
data, as the leaderboard does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import Parallel, delayed, parallel_config
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from evaluation.outcome import Measure, Outcome

Variants = dict[str, np.ndarray]  # variant -> vectors [texts, width]

LOGISTIC = LogisticRegression(max_iter=10000)
CLASSIFIERS = {
    "logistic regression": LOGISTIC,
    "nearest neighbours": KNeighborsClassifier(n_neighbors=3, weights="distance"),
}
PARALLEL_FROM = 500_000  # entries of a training matrix; below this, processes cost more than they save


@dataclass(frozen=True)
class Variant:
    """One variant (and classifier): its score and per-item columns."""

    name: str
    score: float
    columns: dict[str, np.ndarray]


def similarity_task(first: Variants, second: Variants, gold: np.ndarray) -> Outcome:
    """Spearman correlation of the two texts' dot product with gold (STS, PI)."""
    candidates = []
    for name in first:
        predictions = _dots(first[name], second[name])
        columns = {"prediction": predictions, "gold": gold}
        candidates.append(Variant(name, float(spearmanr(predictions, gold).statistic), columns))
    return _best(candidates, "spearman", "spearman", ("prediction", "gold"))


def inference_task(first: Variants, second: Variants, labels: np.ndarray) -> Outcome:
    """Accuracy of three-fold logistic regression on the dot product alone (NLI)."""
    candidates = []
    for name in first:
        feature = _dots(first[name], second[name])[:, None]
        folds = KFold(3, shuffle=True, random_state=1)
        predicted = cross_val_predict(LOGISTIC, feature, labels, cv=folds)
        candidates.append(_accuracy(name, predicted, labels))
    return _best(candidates, "accuracy", "mean", ("correct",))


def accuracy_task(
    train: Variants, train_labels: np.ndarray, test: Variants, test_labels: np.ndarray, workers: int = 1
) -> Outcome:
    """Accuracy of the better of logistic regression and three nearest neighbours (SA, IC, ICX)."""
    names = [(name, kind) for name in train for kind in CLASSIFIERS]
    jobs = [(CLASSIFIERS[kind], "predict", train[name], train_labels, test[name]) for name, kind in names]
    fitted = zip(names, _in_parallel(jobs, workers), strict=True)
    candidates = [_accuracy(", ".join(of), predicted, test_labels) for of, predicted in fitted]
    return _best(candidates, "accuracy", "mean", ("correct",))


def auc_task(
    train: Variants, train_labels: np.ndarray, test: Variants, test_labels: np.ndarray, workers: int = 1
) -> Outcome:
    """Area under the ROC curve of logistic regression's probability of label 1 (TI, IA)."""
    jobs = [(LOGISTIC, "predict_proba", train[name], train_labels, test[name]) for name in train]
    fitted = zip(train, (classes[:, 1] for classes in _in_parallel(jobs, workers)), strict=True)
    candidates = [
        Variant(name, float(roc_auc_score(test_labels, p)), {"prediction": p, "gold": test_labels.astype(np.int64)})
        for name, p in fitted
    ]
    return _best(candidates, "roc_auc", "roc_auc", ("prediction", "gold"))


def _dots(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", first, second)


def _accuracy(name: str, predicted: np.ndarray, labels: np.ndarray) -> Variant:
    columns = {"predicted": predicted.astype(str), "gold": labels.astype(str), "correct": predicted == labels}
    return Variant(name, float(accuracy_score(labels, predicted)), columns)


def _predicted(classifier: Any, method: str, train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    return getattr(clone(classifier).fit(train, labels), method)(test)


def _in_parallel(jobs: Sequence[tuple[Any, ...]], workers: int) -> list[np.ndarray]:
    """`_predicted` for each tuple of arguments; one thread each, so that results don't depend on `workers`."""
    if workers == 1 or jobs[0][2].size < PARALLEL_FROM:
        with threadpool_limits(1):
            return [_predicted(*job) for job in jobs]
    with parallel_config("loky", inner_max_num_threads=1):
        return list(Parallel(n_jobs=min(workers, len(jobs)))(delayed(_predicted)(*job) for job in jobs))


def _best(candidates: list[Variant], metric: str, statistic: str, columns: tuple[str, ...]) -> Outcome:
    best = max(candidates, key=lambda candidate: np.nan_to_num(candidate.score, nan=-np.inf))
    notes = {"best": best.name, "candidates": {candidate.name: candidate.score for candidate in candidates}}
    return Outcome(best.columns, (Measure(metric, best.score, statistic, columns),), notes)

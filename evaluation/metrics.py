"""Metrics as statistics of per-item columns, on the items themselves or on all resamples at once.

A statistic takes per-item columns of length n and a matrix `counts` [resamples, n] of how often an item occurs in each
resample (all ones: the data themselves), and returns one float64 value per resample. Counting instead of copying items
lets all resamples be ranked at once. Where a statistic is undefined (only one class, no spread), its value is NaN.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from evaluation.outcome import PART, Measure, Outcome

FIXED = "mean_of_draws"  # not over items: neither interval nor test
Counts = np.ndarray  # [resamples, n]
Draw = Callable[[int], Counts]  # size of a second dimension -> its own counts, one row per resample


def statistic(measure: Measure, outcome: Outcome, counts: np.ndarray, draw: Draw | None = None) -> np.ndarray:
    """The metric on each resample [resamples]; for a task in parts, the mean over the parts.

    `draw` resamples the second dimension of values that have one.
    """
    function = STATISTICS[measure.statistic]
    columns = [outcome.columns[name] for name in measure.columns]
    if draw and function is mean_of_experiments:
        function = partial(mean_of_experiments, weights=draw(columns[0].shape[1]))
    labels = outcome.columns.get(PART)
    if labels is None:
        return function(counts, *columns)
    masks = [labels == label for label in dict.fromkeys(labels.tolist())]
    return np.mean([function(counts[:, mask], *(c[mask] for c in columns)) for mask in masks], axis=0)


def whole(measure: Measure, outcome: Outcome) -> float:
    """The metric on the items themselves."""
    return float(statistic(measure, outcome, np.ones((1, outcome.items)))[0])


def f1(hits: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Mean over tags of 2·hits / (predicted + gold), all [resamples, tags]; a tag without words gets 0."""
    together = predicted + gold
    return np.where(together > 0, 2 * hits / np.maximum(together, 1), 0.0).mean(axis=1)


def mean(counts: Counts, values: np.ndarray) -> np.ndarray:
    """Mean of per-item values [n]: accuracy, recall, reciprocal rank, nDCG."""
    return counts @ values.astype(np.float64) / counts.sum(axis=1)


def mean_of_draws(counts: Counts, values: np.ndarray) -> np.ndarray:
    """Mean of values [n] of random draws within one evaluation; not being test items, they aren't resampled."""
    return np.full(len(counts), values.mean())


def mean_of_experiments(counts: Counts, values: np.ndarray, weights: Counts | None = None) -> np.ndarray:
    """Mean of values [n, experiments]; `weights` resample the experiments, which are a sample as the items are."""
    per_experiment = counts @ values.astype(np.float64) / counts.sum(axis=1, keepdims=True)
    return np.average(per_experiment, axis=1, weights=weights)


def pearson(counts: Counts, predictions: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Pearson correlation of predictions [n] and gold [n]."""
    return _weighted_correlation(counts, predictions.astype(np.float64), gold.astype(np.float64))


def spearman(counts: Counts, predictions: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Spearman correlation: Pearson correlation of the mid-ranks within each resample."""
    return _weighted_correlation(counts, mid_ranks(counts, predictions), mid_ranks(counts, gold))


def roc_auc(counts: Counts, predictions: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for gold 0/1, by the rank sum of the positives (ties count half)."""
    positive = counts * gold.astype(np.float64)
    positives = positive.sum(axis=1)
    negatives = counts.sum(axis=1) - positives
    rank_sum = (positive * mid_ranks(counts, predictions)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def average_precision(counts: Counts, predictions: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Average precision for gold 0/1 as scikit-learn defines it: precision at each threshold times recall gained."""
    order = np.argsort(-predictions, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(predictions[order]) != 0, True))  # last item of each group of ties
    taken = np.cumsum(counts[:, order], axis=1)[:, ends]
    found = np.cumsum(counts[:, order] * gold[order].astype(np.float64), axis=1)[:, ends]
    gained = np.diff(found, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(taken > 0, found / taken, 0.0)
        return (precision * gained).sum(axis=1) / found[:, -1]


def macro_f1(counts: Counts, hits: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Mean over tags of 2·hits / (predicted + gold); arguments [n, tags] count a text's words by tag.

    A tag without words gets 0, as in scikit-learn.
    """
    return f1(*(counts @ column.astype(np.float64) for column in (hits, predicted, gold)))


STATISTICS: dict[str, Callable[..., np.ndarray]] = {
    function.__name__: function
    for function in (mean, mean_of_draws, mean_of_experiments, pearson, spearman, roc_auc, average_precision, macro_f1)
}


def mid_ranks(counts: Counts, values: np.ndarray) -> np.ndarray:
    """Ranks from 1 [resamples, n] of `values` [n] within each resample, ties sharing their mean rank."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    sizes = np.add.reduceat(counts[:, order], starts, axis=1, dtype=np.float64)
    ranks = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
    return ranks[:, group]


def _weighted_correlation(counts: Counts, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    total = counts.sum(axis=1, keepdims=True, dtype=np.float64)
    x = x - (counts * x).sum(axis=1, keepdims=True) / total
    y = y - (counts * y).sum(axis=1, keepdims=True) / total
    weighted = counts * x
    spread = (weighted * x).sum(axis=1) * (counts * y * y).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, (weighted * y).sum(axis=1) / np.sqrt(spread), np.nan)

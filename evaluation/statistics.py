"""Metrics as functions of resampled items.

Every function takes per-item columns of length n and a matrix `counts` [resamples, n] that says how often an item
stands in each resample (all ones: the data themselves), and returns one float64 value a resample. Counting instead of
copying items lets all resamples be ranked at once. A resample on which a metric is not defined (one class only, no
spread) gives NaN.
"""

from collections.abc import Callable

import numpy as np

Counts = np.ndarray  # [resamples, n]
Draw = Callable[[int], Counts]  # size of a second dimension -> its own counts, one row a resample


def mean(counts: Counts, draw: Draw, values: np.ndarray) -> np.ndarray:
    """Mean of per-item values [n]: accuracy, recall, reciprocal rank, nDCG."""
    return counts @ values.astype(np.float64) / counts.sum(axis=1)


def mean_where(counts: Counts, draw: Draw, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of per-item values [n] over the items that are chosen [n] (0 or 1)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (counts @ (values * chosen).astype(np.float64)) / (counts @ chosen.astype(np.float64))


def mean_of_experiments(counts: Counts, draw: Draw, values: np.ndarray) -> np.ndarray:
    """Mean of values [n, experiments]; items and experiments are both resampled, as both are samples."""
    per_experiment = counts @ values.astype(np.float64) / counts.sum(axis=1, keepdims=True)
    weights = draw(values.shape[1])
    return (per_experiment * weights).sum(axis=1) / weights.sum(axis=1)


def pearson(counts: Counts, draw: Draw, predictions: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Pearson correlation of predictions [n] and gold [n]."""
    shape = counts.shape
    return _weighted_correlation(
        counts,
        np.broadcast_to(predictions.astype(np.float64), shape),
        np.broadcast_to(gold.astype(np.float64), shape),
    )


def spearman(counts: Counts, draw: Draw, predictions: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Spearman correlation: Pearson correlation of the mid-ranks within each resample."""
    return _weighted_correlation(counts, mid_ranks(counts, predictions), mid_ranks(counts, gold))


def roc_auc(counts: Counts, draw: Draw, predictions: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for gold 0/1, by the rank sum of the positives (ties count half)."""
    positive = counts * gold.astype(np.float64)
    positives = positive.sum(axis=1)
    negatives = counts.sum(axis=1) - positives
    rank_sum = (positive * mid_ranks(counts, predictions)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def average_precision(counts: Counts, draw: Draw, predictions: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Average precision for gold 0/1 as scikit-learn defines it: precision at each threshold times recall gained."""
    order = np.argsort(-predictions, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(predictions[order]) != 0, True))  # last item of each group of ties
    taken = np.cumsum(counts[:, order], axis=1)[:, ends]
    found = np.cumsum(counts[:, order] * gold[order].astype(np.float64), axis=1)[:, ends]
    gained = np.diff(found, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(taken > 0, found / taken, 0.0)
        return (precision * gained).sum(axis=1) / found[:, -1]


def macro_f1(counts: Counts, draw: Draw, hits: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Mean over tags of 2·hits / (predicted + gold); arguments [n, tags] count a text's words by tag.

    A tag without any word gives 0, as in scikit-learn.
    """
    together = counts @ (predicted + gold).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(together > 0, 2 * (counts @ hits.astype(np.float64)) / together, 0.0)
    return f1.mean(axis=1)


STATISTICS: dict[str, Callable[..., np.ndarray]] = {
    function.__name__: function
    for function in (mean, mean_where, mean_of_experiments, pearson, spearman, roc_auc, average_precision, macro_f1)
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

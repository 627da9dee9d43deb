"""Metrics of resampled items are the libraries'."""

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from evaluation.metrics import STATISTICS, macro_f1, mean_of_experiments, mid_ranks, roc_auc, spearman

ITEMS = 40
RNG = np.random.default_rng(5)
COUNTS = np.concatenate([np.ones((1, ITEMS)), RNG.multinomial(ITEMS, np.full(ITEMS, 1 / ITEMS), size=20)]).astype(float)
GRADES = RNG.integers(0, 5, ITEMS).astype(float)
LABELS = RNG.integers(0, 2, ITEMS)
PREDICTIONS = np.round(GRADES / 5 + RNG.normal(0, 0.4, ITEMS), 1)  # rounded: many ties


def copies(counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.repeat(values, counts.astype(int), axis=0)


@pytest.mark.parametrize(
    ("name", "gold", "oracle"),
    [
        ("spearman", GRADES, lambda p, g: spearmanr(p, g).statistic),
        ("pearson", GRADES, lambda p, g: pearsonr(p, g).statistic),
        ("roc_auc", LABELS, lambda p, g: roc_auc_score(g, p)),
        ("average_precision", 1 - LABELS, lambda p, g: average_precision_score(g, p)),
    ],
)
def test_a_metric_of_predictions_equals_the_library_on_copied_items(name: str, gold: np.ndarray, oracle) -> None:
    ours = STATISTICS[name](COUNTS, PREDICTIONS, gold)
    theirs = [oracle(copies(counts, PREDICTIONS), copies(counts, gold)) for counts in COUNTS]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_mid_ranks_are_scipys() -> None:
    ranks = mid_ranks(COUNTS, PREDICTIONS)
    for counts, row in zip(COUNTS, ranks, strict=True):
        np.testing.assert_allclose(copies(counts, row), rankdata(copies(counts, PREDICTIONS)))


def test_macro_f1_equals_scikit_learn_on_copied_texts() -> None:
    tags, sizes = ["a", "b", "c"], RNG.integers(1, 9, ITEMS)
    gold = [RNG.choice([*tags, "O"], size) for size in sizes]
    predicted = [np.where(RNG.random(len(row)) < 0.5, row, RNG.choice([*tags, "O"], len(row))) for row in gold]
    columns = [
        np.array([[np.sum(part == tag) for tag in tags] for part in parts])
        for parts in (
            [np.where(p == g, g, "O") for p, g in zip(predicted, gold, strict=True)],
            predicted,
            gold,
        )
    ]
    ours = macro_f1(COUNTS, *columns)
    for counts, value in zip(COUNTS, ours, strict=True):
        chosen = np.repeat(np.arange(ITEMS), counts.astype(int))
        truth = np.concatenate([gold[index] for index in chosen])
        guess = np.concatenate([predicted[index] for index in chosen])
        assert value == pytest.approx(f1_score(truth, guess, average="macro", labels=tags, zero_division=0.0))


def test_experiments_are_resampled_as_well_as_items() -> None:
    values = RNG.integers(0, 2, (ITEMS, 10)).astype(float)
    second = RNG.multinomial(10, np.full(10, 0.1), size=len(COUNTS)).astype(float)
    ours = mean_of_experiments(COUNTS, values, second)
    for counts, weights, value in zip(COUNTS, second, ours, strict=True):
        assert value == pytest.approx(copies(weights, copies(counts, values).T).mean())


def test_a_resample_without_both_classes_has_no_value() -> None:
    only_first = np.zeros((1, ITEMS))
    only_first[0, np.flatnonzero(LABELS == 1)] = 1
    assert np.isnan(roc_auc(only_first, PREDICTIONS, LABELS)).all()
    assert np.isnan(spearman(only_first, np.ones(ITEMS), GRADES)).all()

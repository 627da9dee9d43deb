"""Error bars and paired comparisons: bootstrap over items, permutation test, Holm's correction over tasks.

Items are resampled jointly: a resample holds the same items for every model, so what makes an item hard for all models
leaves the difference. Recipe after Ihemelandu and Ekstrand 2023 (arXiv 2305.02461).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.outcome import Measure, Outcome
from evaluation.statistics import STATISTICS
from pipeline.errors import UserError
from pipeline.seeding import generator

CHUNK = 4_000_000  # entries of a matrix of counts that are held at once
EXCHANGEABLE = ("mean", "mean_of_experiments", "macro_f1")  # an item's values of two models may be swapped


@dataclass(frozen=True)
class Difference:
    """One row of comparison.csv: `model` minus `against` on one metric of one task."""

    model: str
    against: str
    suite: str
    task: str
    metric: str
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    test: str  # permutation or bootstrap
    items: int
    main: bool  # the task's own score; these form one family for Holm's correction, further metrics another
    p_holm: float = float("nan")


@dataclass(frozen=True)
class Plan:
    """How much is resampled, and from which seed."""

    resamples: int = 10_000
    confidence: float = 0.95
    seed: int = 42

    @property
    def tails(self) -> list[float]:
        """The two percentiles that bound an interval."""
        return [50 * (1 - self.confidence), 50 * (1 + self.confidence)]


def replicates(measure: Measure, outcomes: Sequence[Outcome], plan: Plan, *names: str) -> np.ndarray:
    """The metric on bootstrap resamples of the items [models, resamples], the same resamples for all models.

    Args:
        measure: the metric; every outcome holds its columns.
        outcomes: one a model, over the same items.
        plan: number of resamples and seed.
        names: suite and task, which choose the stream of random numbers.
    """
    n = outcomes[0].items
    items, second = generator(plan.seed, "bootstrap", *names), generator(plan.seed, "experiments", *names)
    parts = []
    for rows in _chunks(plan.resamples, n):
        counts = _counts(items, rows, n)
        drawn: dict[int, np.ndarray] = {}

        def draw(size: int, rows: int = rows, drawn: dict[int, np.ndarray] = drawn) -> np.ndarray:
            if size not in drawn:
                drawn[size] = _counts(second, rows, size)
            return drawn[size]

        parts.append([_statistic(measure, outcome, counts, draw) for outcome in outcomes])
    return np.concatenate([np.asarray(part) for part in parts], axis=1)


def interval(values: np.ndarray, plan: Plan) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates; resamples without a value are left out."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, plan.tails)
    return float(low), float(high)


def bootstrap_p_value(differences: np.ndarray) -> float:
    """Two-sided: twice the smaller share of replicates on one side of zero, counting the data themselves."""
    defined = differences[np.isfinite(differences)]
    side = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(defined) + 1))


def permutation_p_value(measure: Measure, one: Outcome, other: Outcome, plan: Plan, *names: str) -> float:
    """Two-sided: how often swapping the two models' results on random items gives so large a difference.

    The difference is that of the metric on the two sets of swapped items; for means that is a sign flip of the
    items' differences. Raises KeyError for metrics whose items are not exchangeable.
    """
    n, rng = one.items, generator(plan.seed, "permutation", *names)
    ones = [one.columns[name].astype(np.float64) for name in measure.columns]
    others = [other.columns[name].astype(np.float64) for name in measure.columns]
    at_least = 0
    observed = abs(_swapped_difference(measure.statistic, ones, others, np.zeros((1, n)))[0])
    for rows in _chunks(plan.resamples, n):
        swaps = np.unpackbits(rng.integers(0, 256, size=(rows, -(-n // 8)), dtype=np.uint8), axis=1, count=n)
        differences = _swapped_difference(measure.statistic, ones, others, swaps.astype(np.float64))
        at_least += int((np.abs(differences) >= observed - 1e-12).sum())
    return (at_least + 1) / (plan.resamples + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; missing values (NaN) stay and don't count (Holm 1979)."""
    values = np.asarray(p_values, dtype=np.float64)
    corrected = values.copy()
    order = [index for index in np.argsort(values, kind="stable") if np.isfinite(values[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (len(order) - rank)))
        corrected[index] = largest
    return [float(value) for value in corrected]


def compare(
    measure: Measure, outcomes: dict[str, Outcome], values: np.ndarray, plan: Plan, suite: str, task: str, main: bool
) -> Iterator[Difference]:
    """Every later model minus every earlier one on one metric, from the models' joint replicates `values`."""
    names = list(outcomes)
    scores = {name: _score(outcome, measure.metric) for name, outcome in outcomes.items()}
    for later in range(1, len(names)):
        for earlier in range(later):
            model, against = names[later], names[earlier]
            differences = values[later] - values[earlier]
            exact = measure.statistic in EXCHANGEABLE
            p_value = (
                permutation_p_value(measure, outcomes[model], outcomes[against], plan, suite, task)
                if exact
                else bootstrap_p_value(differences)
            )
            yield Difference(
                model, against, suite, task, measure.metric, scores[model] - scores[against],
                *interval(differences, plan), p_value, "permutation" if exact else "bootstrap",
                outcomes[model].items, main,
            )  # fmt: skip


def same_items(outcomes: dict[str, Outcome], where: str) -> None:
    """Raise UserError unless all outcomes are over equally many items, which pairing needs."""
    if len({outcome.items for outcome in outcomes.values()}) > 1:
        counts = ", ".join(f"{name} {outcome.items}" for name, outcome in outcomes.items())
        raise UserError(f"models were scored on different items: {counts}", where=where, remedy="evaluate them anew")


def _score(outcome: Outcome, metric: str) -> float:
    return next(measure.score for measure in outcome.measures if measure.metric == metric)


def _statistic(measure: Measure, outcome: Outcome, counts: np.ndarray, draw: object) -> np.ndarray:
    return STATISTICS[measure.statistic](counts, draw, *(outcome.columns[name] for name in measure.columns))


def _chunks(resamples: int, n: int) -> Iterator[int]:
    size = max(1, CHUNK // max(n, 1))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _counts(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """How often each of n items is drawn in n draws with replacement [rows, n], float64."""
    drawn = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _swapped_difference(
    statistic: str, ones: list[np.ndarray], others: list[np.ndarray], swaps: np.ndarray
) -> np.ndarray:
    """Differences [rows] of the metric after swapping items where `swaps` [rows, n] is 1."""
    if statistic in ("mean", "mean_of_experiments"):
        difference = ones[0] - others[0]
        per_item = difference if difference.ndim == 1 else difference.mean(axis=1)
        return (1 - 2 * swaps) @ per_item / len(per_item)
    if statistic != "macro_f1":
        raise KeyError(statistic)
    moved = [swaps @ (other - one) for one, other in zip(ones, others, strict=True)]
    first = [one.sum(axis=0) + move for one, move in zip(ones, moved, strict=True)]
    second = [other.sum(axis=0) - move for other, move in zip(others, moved, strict=True)]
    return _f1(*first) - _f1(*second)


def _f1(hits: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
    together = predicted + gold
    return np.where(together > 0, 2 * hits / np.maximum(together, 1), 0.0).mean(axis=1)

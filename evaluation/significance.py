"""Error bars and paired comparisons: bootstrap over items, permutation test, Holm's correction over tasks.

Items are resampled jointly: a resample holds the same items for every model, so what makes an item hard for all models
cancels in the difference. Items with the same text, in parts of a task or in tasks over the same texts, are also drawn
together, or a mean would count each as new evidence. Method of Ihemelandu and Ekstrand 2023 (arXiv 2305.02461).
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import combinations

import numpy as np

from evaluation.metrics import FIXED, f1, statistic
from evaluation.outcome import ITEM, PART, Outcome
from evaluation.published_scores import Rows, parts_of
from evaluation.results import MEAN, Difference, Score
from pipeline.core.errors import UserError
from pipeline.core.seeding import generator

CONFIDENCE = 0.95  # of the intervals
CHUNK = 4_000_000  # entries of a `counts` matrix in memory at once
# Statistics for which two models' values of an item may be swapped. Not those where one classifier predicts all items
# of an experiment: a lucky draw of its training texts would count as evidence on every item.
EXCHANGEABLE = ("mean", "macro_f1")


@dataclass(frozen=True)
class Resampling:
    """The number of resamples and their seed."""

    resamples: int = 10_000
    seed: int = 42


@dataclass(frozen=True)
class Measured:
    """All models' scores by one metric on a task or a mean over tasks; each mode of a model counts as a model."""

    suite: str
    task: str
    metric: str
    models: list[str]
    scores: np.ndarray  # [models]
    replicates: np.ndarray  # [models, resamples], the same resamples for all models
    items: int  # 0: the replicates are the scores themselves; 1: there is no interval either
    seconds: np.ndarray  # [models]
    main: bool
    pairs: list[tuple[int, int]]  # compared models, the earlier one first
    permuted: dict[tuple[int, int], float] = field(default_factory=dict)  # p-values of pairs
    stream: tuple[str, ...] = ()  # of random numbers; the same for tasks over the same texts

    def rows(self) -> Iterator[Score]:
        """One row per model, with its interval."""
        for model, score, own, took in zip(self.models, self.scores, self.replicates, self.seconds, strict=True):
            low, high = self._interval(own)
            yield Score(model, self.suite, self.task, self.metric, float(score), low, high, self.items, float(took))

    def differences(self) -> Iterator[Difference]:
        """The later model of each pair minus the earlier one."""
        for earlier, later in self.pairs:
            values = self.replicates[later] - self.replicates[earlier]
            if not self.items:
                test, p_value = "none", float("nan")
            elif (earlier, later) in self.permuted:
                test, p_value = "permutation", self.permuted[earlier, later]
            else:
                # Without any difference, all of few items may agree: a resample of them then tells nothing.
                test, p_value = "bootstrap", max(bootstrap_p_value(values), 2.0 ** (1 - self.items))
            difference = float(self.scores[later] - self.scores[earlier])
            low, high = self._interval(values)
            yield Difference(
                model=self.models[later],
                against=self.models[earlier],
                suite=self.suite,
                task=self.task,
                metric=self.metric,
                difference=difference,
                ci_low=low,
                ci_high=high,
                p_value=p_value,
                p_holm=float("nan"),
                test=test,
                items=self.items,
                main=self.main,
            )

    def _interval(self, values: np.ndarray) -> tuple[float, float]:
        return interval(values) if self.items > 1 else (float("nan"), float("nan"))


def replicates(outcomes: Sequence[Outcome], resampling: Resampling, *names: str) -> np.ndarray:
    """The first measure on bootstrap resamples of the items [models, resamples], the same resamples for all models.

    `outcomes` has one entry per model, over the same items. `names`, suite and task, select the stream of random
    numbers, unless the items have names, which then select it.
    """
    n, index, stream = _sampled(outcomes[0], *names)
    items, second = generator(resampling.seed, "bootstrap", *stream), generator(resampling.seed, "experiments", *names)
    parts = []
    for rows in _chunks(resampling.resamples, outcomes[0].items):
        counts = _counts(items, rows, n)[:, index]
        draw = cache(partial(_counts, second, rows))  # cached: a second dimension's counts are the same for all models
        parts.append([statistic(outcome.measures[0], outcome, counts, draw) for outcome in outcomes])
    return np.concatenate([np.asarray(part) for part in parts], axis=1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates, ignoring undefined ones; NaN if there are too many of these."""
    defined = values[np.isfinite(values)]
    if len(defined) < CONFIDENCE * len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def bootstrap_p_value(differences: np.ndarray) -> float:
    """Two-sided: twice the smaller share of replicates on one side of zero, counting the data themselves.

    An undefined one counts on both sides: with two items half are undefined, and the others always agree.
    """
    side = len(differences) - max(int((differences > 0).sum()), int((differences < 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(differences) + 1))


def permutation_p_values(pairs: Sequence[tuple[Outcome, Outcome]], resampling: Resampling, *names: str) -> list[float]:
    """Two-sided, per pair: how often swapping two models' results on random items gives as large a difference.

    The difference is that of the metric on the two sets of swapped items; for means, a swap flips the sign of an
    item's difference. Only for measures whose statistic is in EXCHANGEABLE. All pairs are over the same items and get
    the same swaps.
    """
    if not pairs:
        return []
    first = pairs[0][0]
    rng = generator(resampling.seed, "permutation", *names)
    n, index, _ = _sampled(first, *names)
    differences = _swapped_differences(pairs, _item_weights(first))
    observed = np.abs(differences(np.zeros((1, first.items)))[0])
    at_least = np.zeros(len(pairs), dtype=np.int64)
    for rows in _chunks(resampling.resamples, first.items):
        bits = rng.integers(0, 256, size=(rows, -(-n // 8)), dtype=np.uint8)
        swaps = np.unpackbits(bits, axis=1, count=n)[:, index].astype(np.float64)
        at_least += (np.abs(differences(swaps)) >= observed - 1e-12).sum(axis=0)
    return [(int(count) + 1) / (resampling.resamples + 1) for count in at_least]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction; missing values (NaN) stay and don't count (Holm 1979)."""
    values = np.array(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")[: np.isfinite(values).sum()]  # NaN sorts last
    steps = values[order] * np.arange(len(order), 0, -1)
    values[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return values.tolist()


def corrected(differences: Iterable[Difference]) -> list[Difference]:
    """The differences with Holm's correction over a suite's tasks, for each pair of models.

    A suite's main scores, its further metrics and its means over tasks are separate families.
    """
    families: dict[tuple[str, str, str, bool, bool], list[Difference]] = {}
    for row in differences:
        key = (row.model, row.against, row.suite, row.main, row.metric == MEAN)
        families.setdefault(key, []).append(row)
    found = []
    for family in families.values():
        values = holm([row.p_value for row in family])
        found += [replace(row, p_holm=value) for row, value in zip(family, values, strict=True)]
    return found


def measured(
    outcomes: dict[str, Outcome],
    seconds: Sequence[float],
    resampling: Resampling,
    suite: str,
    task: str,
    main: bool = True,
    permuted: bool = True,
    compared: Callable[[str, str], bool] = lambda one, other: True,
) -> Measured:
    """All models by their first measure of a task, with a permutation test if its statistic allows one.

    `main` says whether it is the task's main score, and `compared` which models are compared. Without `permuted` the
    test uses the bootstrap, whose resamples are drawn anyway. Raises UserError if the numbers of items differ.
    """
    _require_same_items(outcomes, f"{suite}/{task}")
    names, found = list(outcomes), list(outcomes.values())
    measure, scores = found[0].measures[0], np.array([outcome.measures[0].score for outcome in found])
    pairs = [(one, two) for one, two in combinations(range(len(found)), 2) if compared(names[one], names[two])]
    tested = pairs if permuted and measure.statistic in EXCHANGEABLE else []
    p_values = permutation_p_values([(found[two], found[one]) for one, two in tested], resampling, suite, task)
    texts, _, stream = _sampled(found[0], suite, task)
    if measure.statistic == FIXED:
        texts, resampled = 0, np.tile(scores[:, None], resampling.resamples)
    else:
        resampled = replicates(found, resampling, suite, task)
    return Measured(
        suite=suite,
        task=task,
        metric=measure.metric,
        models=names,
        scores=scores,
        replicates=resampled,
        items=texts,
        seconds=np.array(seconds),
        main=main,
        pairs=pairs,
        permuted=dict(zip(tested, p_values, strict=True)),
        stream=stream,
    )


def _require_same_items(outcomes: dict[str, Outcome], where: str) -> None:
    if len({outcome.items for outcome in outcomes.values()}) > 1:
        what = ", ".join(f"{name} {outcome.items}" for name, outcome in outcomes.items())
        raise UserError(f"models were scored on different items: {what}", where=where, remedy="evaluate them again")


def mean_over_tasks(name: str, parts: Sequence[Measured]) -> Measured:
    """The mean over tasks, for models scored on all of them.

    Items are resampled within their task: together with those of tasks over the same texts, independently of others.
    A task without items contributes its plain score.
    """
    first = parts[0].models
    models = [model for model in first if all(model in part.models for part in parts)]
    places = {first.index(model): place for place, model in enumerate(models)}
    pairs = [(part, [part.models.index(model) for model in models]) for part in parts]
    return Measured(
        suite=parts[0].suite,
        task=name,
        metric=MEAN,
        models=models,
        scores=np.mean([part.scores[index] for part, index in pairs], axis=0),
        replicates=np.mean([part.replicates[index] for part, index in pairs], axis=0),
        items=sum({part.stream: part.items for part in parts}.values()),
        seconds=np.sum([part.seconds[index] for part, index in pairs], axis=0),
        main=True,
        pairs=[(places[one], places[two]) for one, two in parts[0].pairs if {one, two} <= places.keys()],
    )


def means_of(rows: Rows, parts: Sequence[Measured]) -> Iterator[Measured]:
    """The named means over some tasks of a suite; a mean with an unscored task is left out."""
    known = {(part.task, part.metric): part for part in parts}
    for name, row in rows.items():
        if found := parts_of(row, lambda task, metric: known.get((task, metric))):
            yield mean_over_tasks(name, found)


def _sampled(outcome: Outcome, *names: str) -> tuple[int, np.ndarray, tuple[str, ...]]:
    """What is drawn: the number of texts, each item's text [items], and the names of the stream of random numbers.

    If items are named, their texts select the stream: tasks over the same texts get the same draws.
    """
    if ITEM not in outcome.columns:
        return outcome.items, np.arange(outcome.items), names
    texts, index = np.unique(outcome.columns[ITEM].astype(str), return_inverse=True)
    return len(texts), index, (hashlib.sha256("\n".join(texts).encode()).hexdigest(),)


def _chunks(resamples: int, n: int) -> Iterator[int]:
    size = max(1, CHUNK // max(n, 1))
    for start in range(0, resamples, size):
        yield min(size, resamples - start)


def _counts(rng: np.random.Generator, rows: int, n: int) -> np.ndarray:
    """How often each of n items is drawn in n draws with replacement [rows, n], float64."""
    drawn = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
    return np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _item_weights(outcome: Outcome) -> np.ndarray:
    """Weights [items] that make a sum over items the mean of the parts' means."""
    labels = outcome.columns.get(PART, np.zeros(outcome.items))
    _, part, sizes = np.unique(labels.astype(str), return_inverse=True, return_counts=True)
    return 1 / (len(sizes) * sizes[part])


def _swapped_differences(
    pairs: Sequence[tuple[Outcome, Outcome]], weights: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function from swaps [rows, n] of 0 and 1 to the pairs' differences [rows, pairs] of the metric."""
    columns = [  # by measure: modes of a model share an outcome, with columns for each mode
        tuple([of.columns[name].astype(np.float64) for name in of.measures[0].columns] for of in pair) for pair in pairs
    ]
    if pairs[0][0].measures[0].statistic != "macro_f1":
        per_item = np.stack([one[0] - other[0] for one, other in columns], axis=1)
        return lambda swaps: (1 - 2 * swaps) @ (per_item * weights[:, None])

    def of_f1(swaps: np.ndarray) -> np.ndarray:
        found = []
        for ones, others in columns:
            moved = [swaps @ (other - one) for one, other in zip(ones, others, strict=True)]
            first = [one.sum(axis=0) + move for one, move in zip(ones, moved, strict=True)]
            second = [other.sum(axis=0) - move for other, move in zip(others, moved, strict=True)]
            found.append(f1(*first) - f1(*second))
        return np.stack(found, axis=1)

    return of_f1

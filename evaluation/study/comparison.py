"""Compares a study's arms over seeds: each one's mean and spread, and its differences from the reference arms.

An interval covers the variation over seeds and over test items. Items are resampled, the same ones for all arms; seeds
are too few for that, so their part is the variance of their mean, and Student's t accounts for how poorly a few seeds
estimate it (Welch's degrees of freedom; Satterthwaite 1946). If all seeds have the same model, such as their soup, the
interval is over items alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from evaluation.outcome import Outcome
from evaluation.published_scores import ENCODECHKA_MEANS
from evaluation.results import TableRow
from evaluation.significance import CONFIDENCE, Measured, Resampling, holm, means_of, measured

REFERENCES = ("base", "joint", "heads_frozen")  # the arms with which all others are compared
RETRIEVAL_METRIC = "ndcg_at_10"  # used if a task has it, as dev scores and guards do; else its main metric
NAN = float("nan")
TINY = np.finfo(np.float64).tiny
Outcomes = Mapping[tuple[str, int], Mapping[str, Outcome]]  # (arm, seed) -> `<suite>/<task>` -> outcome


@dataclass(frozen=True)
class ArmScore(TableRow):
    """One row of study.csv: an arm's score on a task, or its difference from the arm `against`."""

    arm: str
    against: str  # empty: the score itself
    suite: str
    task: str
    metric: str
    seeds: int
    score: float  # mean over the seeds, of the score or of the difference
    spread: float  # standard deviation over the seeds
    ci_low: float = NAN
    ci_high: float = NAN
    p_holm: float = NAN  # of a difference, corrected over the arms


def compare_arms(outcomes: Outcomes, resampling: Resampling) -> list[ArmScore]:
    """Scores of all arms, then their differences from each reference arm, on the tasks that all arms have.

    Raises UserError if an arm was scored on other items.
    """
    arms = list(dict.fromkeys(arm for arm, _ in outcomes))
    seeds = sorted({seed for _, seed in outcomes})
    first, *others = outcomes.values()
    shared = [key for key in first if all(key in other for other in others)]
    models = {f"{arm}, seed {seed}": outcomes[arm, seed] for arm in arms for seed in seeds}
    tasks = [_scored(key, {name: found[key] for name, found in models.items()}, resampling) for key in shared]
    for suite in dict.fromkeys(task.suite for task in tasks):
        tasks += means_of(ENCODECHKA_MEANS, [task for task in tasks if task.suite == suite])
    rows = [row for task in tasks for row in _rows(task, arms)]
    return sorted(rows, key=lambda row: row.against != "")


def _scored(key: str, outcomes: dict[str, Outcome], resampling: Resampling) -> Measured:
    suite, _, task = key.partition("/")
    taken = {
        name: replace(outcome, measures=tuple(sorted(outcome.measures, key=lambda m: m.metric != RETRIEVAL_METRIC)))
        for name, outcome in outcomes.items()
    }
    return measured(taken, [0.0] * len(taken), resampling, suite, task, compared=lambda one, other: False)


def _rows(task: Measured, arms: Sequence[str]) -> Iterator[ArmScore]:
    """The rows of one task, whose models are all seeds of the first arm, then of the next, and so on."""
    by_arm = task.scores.reshape(len(arms), -1)  # [arms, seeds]
    resampled = task.replicates.reshape(*by_arm.shape, -1).mean(axis=1)  # [arms, resamples]
    for arm, scores, values in zip(arms, by_arm, resampled, strict=True):
        yield _row(task, arm, "", scores, values)
    for against in (name for name in REFERENCES if name in arms):
        other = arms.index(against)
        rows = [
            _row(task, arm, against, by_arm[place] - by_arm[other], resampled[place] - resampled[other])
            for place, arm in enumerate(arms)
            if place != other
        ]
        yield from (replace(row, p_holm=p) for row, p in zip(rows, holm([row.p_holm for row in rows]), strict=True))


def _row(task: Measured, arm: str, against: str, scores: np.ndarray, values: np.ndarray) -> ArmScore:
    """A row with its interval, and for a difference the p-value before Holm's correction.

    `scores` has one entry per seed, `values` [resamples] their mean on resampled items.
    """
    seeds, mean = len(scores), float(scores.mean())
    spread = float(scores.std(ddof=1)) if seeds > 1 else NAN
    of_seeds = np.nan_to_num(spread) ** 2 / seeds
    variance = np.nanvar(values) + of_seeds
    degrees = (seeds - 1) * (variance / of_seeds) ** 2 if of_seeds else np.inf
    error, t = np.sqrt(variance), stats.t(degrees)
    half = float(error * t.ppf((1 + CONFIDENCE) / 2))
    p_value = 2 * float(t.sf(abs(mean) / max(error, TINY))) if against else NAN
    return ArmScore(
        arm, against, task.suite, task.task, task.metric, seeds, mean, spread, mean - half, mean + half, p_value
    )

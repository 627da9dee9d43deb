"""Arms of a study over seeds: each one's mean and spread, and its differences from the reference arms.

A resample draws seeds and, inside each task, items, both with replacement and the same ones for all arms: an interval
covers what another seed and other test items would change (a hierarchical bootstrap; Davison and Hinkley 1997, 3.8).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.outcome import Outcome
from evaluation.published import ENCODECHKA_MEANS, parts_of
from evaluation.results import MEAN, TableRow
from evaluation.significance import Plan, bootstrap_p_value, holm, interval, replicates, same_items
from pipeline.core.seeding import generator

REFERENCES = ("base", "joint", "heads_frozen")  # the arms that every other is compared with
RETRIEVAL = "ndcg_at_10"  # taken where a task has it, as dev scores and guards do; elsewhere its main metric
Outcomes = Mapping[tuple[str, int], Mapping[str, Outcome]]  # (arm, seed) -> `<suite>/<task>` -> what the model did


@dataclass(frozen=True)
class ArmScore(TableRow):
    """One row of study.csv: an arm on a task's main score, or against an arm where `against` names one."""

    arm: str
    against: str  # empty: the score itself
    suite: str
    task: str
    metric: str
    seeds: int
    score: float  # mean over the seeds, of the score or of the difference
    spread: float  # standard deviation over the seeds
    ci_low: float
    ci_high: float
    p_holm: float  # of a difference, corrected over the arms


@dataclass(frozen=True)
class _Task:
    """All arms and seeds on one metric."""

    suite: str
    task: str
    metric: str
    scores: np.ndarray  # [arms, seeds]
    replicates: np.ndarray  # [arms, seeds, resamples], of the same items for all


def compare_arms(outcomes: Outcomes, plan: Plan) -> list[ArmScore]:
    """Scores of all arms, then their differences from each reference arm; only tasks that all arms have.

    Raises UserError: an arm was scored on other items.
    """
    arms = list(dict.fromkeys(arm for arm, _ in outcomes))
    seeds = sorted({seed for _, seed in outcomes})
    first, *others = outcomes.values()
    shared = [key for key in first if all(key in other for other in others)]
    tasks = [_scored(key, outcomes, arms, seeds, plan) for key in shared]
    tasks += [mean for suite in dict.fromkeys(task.suite for task in tasks) for mean in _means(tasks, suite)]
    drawn = generator(plan.seed, "study", "seeds").integers(0, len(seeds), (plan.resamples, len(seeds)))
    rows = [row for task in tasks for row in _rows(task, arms, drawn, plan)]
    return sorted(rows, key=lambda row: row.against != "")


def _scored(key: str, outcomes: Outcomes, arms: Sequence[str], seeds: Sequence[int], plan: Plan) -> _Task:
    found = {f"{arm}, seed {seed}": outcomes[arm, seed][key] for arm in arms for seed in seeds}
    same_items(found, key)
    suite, _, task = key.partition("/")
    models, shape = list(found.values()), (len(arms), len(seeds))
    metrics = [measure.metric for measure in models[0].measures]
    taken = metrics.index(RETRIEVAL) if RETRIEVAL in metrics else 0
    scores = np.array([outcome.measures[taken].score for outcome in models]).reshape(shape)
    values = replicates(taken, models, plan, suite, task).reshape(*shape, -1)
    return _Task(suite, task, metrics[taken], scores, values)


def _means(tasks: Sequence[_Task], suite: str) -> Iterator[_Task]:
    """encodechka's two means, where the suite has all of their tasks."""
    known = {(task.task, task.metric): task for task in tasks if task.suite == suite}
    for name, row in ENCODECHKA_MEANS.items():
        if parts := parts_of(row, lambda task, metric: known.get((task, metric))):
            scores = np.mean([part.scores for part in parts], axis=0)
            yield _Task(suite, name, MEAN, scores, np.mean([part.replicates for part in parts], axis=0))


def _rows(task: _Task, arms: Sequence[str], drawn: np.ndarray, plan: Plan) -> Iterator[ArmScore]:
    every = np.arange(len(drawn))[:, None]
    resampled = np.stack([own.T[every, drawn].mean(axis=1) for own in task.replicates])  # [arms, resamples]
    for arm, scores, values in zip(arms, task.scores, resampled, strict=True):
        yield _row(task, arm, "", scores, values, plan)
    for against in (name for name in REFERENCES if name in arms):
        other = arms.index(against)
        rows, p_values = [], []
        for place in (place for place in range(len(arms)) if place != other):
            scores, values = task.scores[place] - task.scores[other], resampled[place] - resampled[other]
            rows.append(_row(task, arms[place], against, scores, values, plan))
            p_values.append(bootstrap_p_value(values))
        yield from (replace(row, p_holm=p) for row, p in zip(rows, holm(p_values), strict=True))


def _row(task: _Task, arm: str, against: str, scores: np.ndarray, values: np.ndarray, plan: Plan) -> ArmScore:
    spread = float(scores.std(ddof=1)) if len(scores) > 1 else float("nan")
    low, high = interval(values, plan)
    seeds, mean = len(scores), float(scores.mean())
    return ArmScore(arm, against, task.suite, task.task, task.metric, seeds, mean, spread, low, high, float("nan"))

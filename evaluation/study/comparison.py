"""Arms of a study over seeds: each one's mean and spread, and its differences from the reference arms.

A resample draws seeds and, inside each task, items, both with replacement and the same ones for all arms: an interval
covers what another seed and other test items would change (a hierarchical bootstrap; Davison and Hinkley 1997, 3.8).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evaluation.outcome import Outcome
from evaluation.published import ENCODECHKA_MEANS
from evaluation.results import TableRow
from evaluation.significance import Measured, Plan, bootstrap_p_value, holm, interval, means_of, measured, same_items
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


def compare_arms(outcomes: Outcomes, plan: Plan) -> list[ArmScore]:
    """Scores of all arms, then their differences from each reference arm; only tasks that all arms have.

    Raises UserError: an arm was scored on other items.
    """
    arms = list(dict.fromkeys(arm for arm, _ in outcomes))
    seeds = sorted({seed for _, seed in outcomes})
    first, *others = outcomes.values()
    shared = [key for key in first if all(key in other for other in others)]
    models = {f"{arm}, seed {seed}": outcomes[arm, seed] for arm in arms for seed in seeds}
    tasks = [_scored(key, {name: found[key] for name, found in models.items()}, plan) for key in shared]
    for suite in dict.fromkeys(task.suite for task in tasks):
        tasks += means_of(ENCODECHKA_MEANS, [task for task in tasks if task.suite == suite])
    drawn = generator(plan.seed, "study", "seeds").integers(0, len(seeds), (plan.resamples, len(seeds)))
    rows = [row for task in tasks for row in _rows(task, arms, drawn, plan)]
    return sorted(rows, key=lambda row: row.against != "")


def _scored(key: str, outcomes: dict[str, Outcome], plan: Plan) -> Measured:
    same_items(outcomes, key)
    suite, _, task = key.partition("/")
    metrics = [measure.metric for measure in next(iter(outcomes.values())).measures]
    taken = metrics.index(RETRIEVAL) if RETRIEVAL in metrics else 0
    return measured(taken, outcomes, [0.0] * len(outcomes), plan, suite, task, compared=lambda one, other: False)


def _rows(task: Measured, arms: Sequence[str], drawn: np.ndarray, plan: Plan) -> Iterator[ArmScore]:
    """The rows of one task, whose models are all seeds of the first arm, then those of the next one."""
    every, by_arm = np.arange(len(drawn))[:, None], task.scores.reshape(len(arms), -1)  # [arms, seeds]
    replicates = task.replicates.reshape(*by_arm.shape, -1)
    resampled = np.stack([own.T[every, drawn].mean(axis=1) for own in replicates])  # [arms, resamples]
    for arm, scores, values in zip(arms, by_arm, resampled, strict=True):
        yield _row(task, arm, "", scores, values, plan)
    for against in (name for name in REFERENCES if name in arms):
        other = arms.index(against)
        rows, p_values = [], []
        for place in (place for place in range(len(arms)) if place != other):
            scores, values = by_arm[place] - by_arm[other], resampled[place] - resampled[other]
            rows.append(_row(task, arms[place], against, scores, values, plan))
            p_values.append(bootstrap_p_value(values))
        yield from (replace(row, p_holm=p) for row, p in zip(rows, holm(p_values), strict=True))


def _row(task: Measured, arm: str, against: str, scores: np.ndarray, values: np.ndarray, plan: Plan) -> ArmScore:
    spread = float(scores.std(ddof=1)) if len(scores) > 1 else float("nan")
    low, high = interval(values, plan)
    seeds, mean = len(scores), float(scores.mean())
    return ArmScore(arm, against, task.suite, task.task, task.metric, seeds, mean, spread, low, high, float("nan"))

"""scores.csv and comparison.csv out of the predictions of all models, and the table that is shown."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.schema.config import Config
from evaluation.outcome import read_outcome
from evaluation.published import CARD_MTEB, CARD_SUITE, ENCODECHKA_MEANS, parts_of
from evaluation.results import MEAN, Difference, Score
from evaluation.significance import Plan, compare, corrected, difference_of_means, interval, replicates, same_items
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder
from pipeline.core.console import progress, show_table

Results = dict[str, dict[str, dict[str, Any]]]  # task's key -> model -> what Scorer.score returned


@dataclass(frozen=True)
class Measured:
    """All models' scores by one metric of a task, with their joint replicates [models, resamples]."""

    task: Task
    metric: str
    models: list[str]
    scores: np.ndarray
    replicates: np.ndarray
    items: int
    seconds: np.ndarray


def write_tables(config: Config, stage: StageFolder, tasks: Sequence[Task], results: Results) -> list[Score]:
    """Write scores.csv and comparison.csv over all tasks that were scored; returns the rows of scores.csv."""
    plan = Plan(config.evaluation.resamples, config.evaluation.confidence, config.seed)
    rows: list[Score] = []
    differences: list[Difference] = []
    suites: dict[str, list[list[Measured]]] = {}  # of each task its metrics, the main one first
    for task in progress([task for task in tasks if task.key in results], "resampling"):
        measured, task_rows, task_differences = _task_tables(task, results[task.key], stage, plan)
        suites.setdefault(task.suite, []).append(measured)
        rows += task_rows
        differences += task_differences
    for suite, scored in suites.items():
        for name, parts in _means(suite, config.evaluation.suite[suite].kind, scored).items():
            mean_rows, mean_differences = _mean_tables(name, parts, plan)
            rows += mean_rows
            differences += mean_differences
    order = {model: position for position, model in enumerate(config.evaluation.chain)}
    rows.sort(key=lambda row: order.get(row.model, len(order)))
    with stage.replacing("scores.csv") as path:
        Score.write(path, rows)
    with stage.replacing("comparison.csv") as path:
        Difference.write(path, corrected(differences))
    return rows


def _task_tables(
    task: Task, found: dict[str, dict[str, Any]], stage: StageFolder, plan: Plan
) -> tuple[list[Measured], list[Score], list[Difference]]:
    outcomes = {model: read_outcome(stage.path / result["predictions"]) for model, result in found.items()}
    same_items(outcomes, task.key)
    items, seconds = next(iter(outcomes.values())).items, np.array([result["seconds"] for result in found.values()])
    rows: list[Score] = []
    differences: list[Difference] = []
    measured: list[Measured] = []
    for position, measure in enumerate(next(iter(outcomes.values())).measures):
        values = replicates(position, list(outcomes.values()), plan, task.suite, task.name)
        scores = np.array([outcome.measures[position].score for outcome in outcomes.values()])
        measured.append(Measured(task, measure.metric, list(outcomes), scores, values, items, seconds))
        rows += _rows(measured[-1], task.name, plan)
        differences += compare(position, outcomes, values, plan, task.suite, task.name)
    return measured, rows, differences


def _rows(measured: Measured, name: str, plan: Plan) -> list[Score]:
    columns = zip(measured.models, measured.scores, measured.replicates, measured.seconds, strict=True)
    return [
        Score(model, measured.task.suite, name, measured.metric, float(score), *interval(own, plan), measured.items,
              float(seconds))
        for model, score, own, seconds in columns
    ]  # fmt: skip


def _means(suite: str, kind: str, scored: Sequence[Sequence[Measured]]) -> dict[str, list[Measured]]:
    """What each of the suite's means is the mean of; a mean of which a task was not scored is left out."""
    known = {(measured.task.name, measured.metric): measured for metrics in scored for measured in metrics}
    dense = [metrics[0] for metrics in scored if not metrics[0].task.needs_heads]
    means = {"Mean": dense} if kind == "mteb" and len(dense) > 1 else {}
    fixed = ENCODECHKA_MEANS if kind == "encodechka" else CARD_MTEB if suite == CARD_SUITE else {}
    for name, row in fixed.items():
        if parts := parts_of(row, lambda task, metric: known.get((task, metric))):
            means[name] = parts
    return means


def _mean_tables(name: str, parts: Sequence[Measured], plan: Plan) -> tuple[list[Score], list[Difference]]:
    """The mean over tasks for models that have all of them; items are resampled within their task, independently."""
    models = [model for model in parts[0].models if all(model in part.models for part in parts)]
    pairs = [(part, [part.models.index(model) for model in models]) for part in parts]
    mean = Measured(
        parts[0].task,
        MEAN,
        models,
        np.mean([part.scores[index] for part, index in pairs], axis=0),
        np.mean([part.replicates[index] for part, index in pairs], axis=0),
        sum(part.items for part in parts),
        np.sum([part.seconds[index] for part, index in pairs], axis=0),
    )
    suite = parts[0].task.suite
    differences = difference_of_means(models, mean.scores, mean.replicates, plan, suite, name, mean.items)
    return _rows(mean, name, plan), list(differences)


def show_scores(rows: Sequence[Score], models: Sequence[str]) -> None:
    """The closing tables, one a suite: a row a model, a column a task's score with half its interval's width."""
    columns = list(dict.fromkeys((row.suite, row.task, row.metric) for row in rows))
    cells = {(row.model, row.suite, row.task, row.metric): _with_bars(row) for row in rows}
    for suite in dict.fromkeys(column[0] for column in columns):
        heads = [column for column in columns if column[0] == suite]
        lines = [[model, *(cells.get((model, *head)) for head in heads)] for model in models]
        show_table(f"scores on {suite}", ["model", *(f"{task}\n{metric}" for _, task, metric in heads)], lines)


def _with_bars(row: Score) -> str:
    half = (row.ci_high - row.ci_low) / 2
    return f"{row.score:.3f} ±{half:.3f}" if half == half else f"{row.score:.3f}"

"""scores.csv and comparison.csv out of the predictions of all models, and the table that is shown."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluation.comparison import (
    MEAN,
    Difference,
    Plan,
    compare,
    corrected,
    difference_of_means,
    interval,
    replicates,
    same_items,
)
from evaluation.encodechka import SENTENCE_TASKS, WORD_TASKS
from evaluation.outcome import read_outcome
from evaluation.suites import Task
from pipeline.config import Config
from pipeline.console import progress, show_table
from pipeline.stage import StageFolder

SCORES = ("model", "suite", "task", "metric", "score", "ci_low", "ci_high", "items", "seconds")
COMPARISON = (
    "model", "against", "suite", "task", "metric",
    "difference", "ci_low", "ci_high", "p_value", "p_holm", "test", "items",
)  # fmt: skip
Row = dict[str, Any]
Results = dict[str, dict[str, dict[str, Any]]]  # task's key -> model -> what Scorer.score returned


@dataclass(frozen=True)
class MainScores:
    """The main scores of all models on one task, with their joint replicates [models, resamples]."""

    task: Task
    models: list[str]
    scores: np.ndarray
    replicates: np.ndarray
    items: int
    seconds: np.ndarray


def write_tables(config: Config, stage: StageFolder, tasks: Sequence[Task], results: Results) -> list[Row]:
    """Write scores.csv and comparison.csv over all tasks that were scored; returns the rows of scores.csv."""
    plan = Plan(config.evaluation.resamples, config.evaluation.confidence, config.seed)
    rows: list[Row] = []
    differences: list[Difference] = []
    mains: list[MainScores] = []
    for task in progress([task for task in tasks if task.key in results], "resampling"):
        main, task_rows, task_differences = _task_tables(task, results[task.key], stage, plan)
        mains.append(main)
        rows += task_rows
        differences += task_differences
    for suite in dict.fromkeys(main.task.suite for main in mains):
        kind = config.evaluation.suite[suite].kind
        mean_rows, mean_differences = _means(kind, [main for main in mains if main.task.suite == suite], plan)
        rows += mean_rows
        differences += mean_differences
    order = {model: position for position, model in enumerate(config.evaluation.chain)}
    rows.sort(key=lambda row: order.get(row["model"], len(order)))
    _write(stage, "scores.csv", SCORES, rows)
    _write(stage, "comparison.csv", COMPARISON, (vars(row) for row in corrected(differences)))
    return rows


def _task_tables(
    task: Task, found: dict[str, dict[str, Any]], stage: StageFolder, plan: Plan
) -> tuple[MainScores, list[Row], list[Difference]]:
    outcomes = {model: read_outcome(stage.path / result["predictions"]) for model, result in found.items()}
    same_items(outcomes, task.key)
    items, seconds = next(iter(outcomes.values())).items, np.array([result["seconds"] for result in found.values()])
    rows: list[Row] = []
    differences: list[Difference] = []
    mains: list[MainScores] = []
    for position, measure in enumerate(next(iter(outcomes.values())).measures):
        values = replicates(position, list(outcomes.values()), plan, task.suite, task.name)
        scores = np.array([outcome.measures[position].score for outcome in outcomes.values()])
        mains.append(MainScores(task, list(outcomes), scores, values, items, seconds))
        rows += _rows(mains[-1], task.suite, task.name, measure.metric, plan)
        differences += compare(position, outcomes, values, plan, task.suite, task.name)
    return mains[0], rows, differences


def _rows(main: MainScores, suite: str, task: str, metric: str, plan: Plan) -> list[Row]:
    columns = zip(main.models, main.scores, main.replicates, main.seconds, strict=True)
    return [
        dict(zip(SCORES, (model, suite, task, metric, float(score), *interval(own, plan), main.items, float(seconds)),
                 strict=True))
        for model, score, own, seconds in columns
    ]  # fmt: skip


def _means(kind: str, mains: list[MainScores], plan: Plan) -> tuple[list[Row], list[Difference]]:
    """Means over a suite's tasks for models that have all of them; their items are resampled task by task."""
    groups = {"Mean": tuple(main.task.name for main in mains)} if kind == "mteb" and len(mains) > 1 else {}
    if kind == "encodechka":
        groups = {"Mean S": SENTENCE_TASKS, "Mean S+W": SENTENCE_TASKS + WORD_TASKS}
    by_name = {main.task.name: main for main in mains}
    rows: list[Row] = []
    differences: list[Difference] = []
    for name, tasks in groups.items():
        chosen = [by_name[task] for task in tasks if task in by_name]
        if len(chosen) < len(tasks):
            continue
        models = [model for model in chosen[0].models if all(model in main.models for main in chosen)]
        picked = [[main.models.index(model) for model in models] for main in chosen]
        pairs = list(zip(chosen, picked, strict=True))
        mean = MainScores(
            chosen[0].task,
            models,
            np.mean([main.scores[index] for main, index in pairs], axis=0),
            np.mean([main.replicates[index] for main, index in pairs], axis=0),
            sum(main.items for main in chosen),
            np.sum([main.seconds[index] for main, index in pairs], axis=0),
        )
        suite = chosen[0].task.suite
        rows += _rows(mean, suite, name, MEAN, plan)
        differences += difference_of_means(models, mean.scores, mean.replicates, plan, suite, name, mean.items)
    return rows, differences


def _write(stage: StageFolder, name: str, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with stage.replacing(name) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _figure(key, row[key]) for key in columns})


def _figure(column: str, value: Any) -> Any:
    if not isinstance(value, float):
        return value
    if value != value:
        return ""
    return f"{value:.3f}" if column == "seconds" else f"{value:.6f}"


def show_scores(rows: Sequence[Row], models: Sequence[str]) -> None:
    """The closing tables, one a suite: a row a model, a column a task's score with half its interval's width."""
    columns = list(dict.fromkeys((row["suite"], row["task"], row["metric"]) for row in rows))
    cells = {(row["model"], row["suite"], row["task"], row["metric"]): _with_bars(row) for row in rows}
    for suite in dict.fromkeys(column[0] for column in columns):
        heads = [column for column in columns if column[0] == suite]
        lines = [[model, *(cells.get((model, *head)) for head in heads)] for model in models]
        show_table(f"scores on {suite}", ["model", *(f"{task}\n{metric}" for _, task, metric in heads)], lines)


def _with_bars(row: Row) -> str:
    half = (row["ci_high"] - row["ci_low"]) / 2
    return f"{row['score']:.3f} ±{half:.3f}" if half == half else f"{row['score']:.3f}"

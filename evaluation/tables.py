"""scores.csv and comparison.csv out of the predictions of all models, and the table that is shown."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evaluation.comparison import Difference, Plan, compare, holm, interval, replicates, same_items
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


def write_tables(config: Config, stage: StageFolder, tasks: Sequence[Task], results: Results) -> list[Row]:
    """Write scores.csv and comparison.csv over all tasks that were scored; returns the rows of scores.csv."""
    plan = Plan(config.evaluation.resamples, config.evaluation.confidence, config.seed)
    scored = [task for task in tasks if task.key in results]
    rows: list[Row] = []
    differences: list[Difference] = []
    for task in progress(scored, "resampling"):
        found = results[task.key]
        task_rows, task_differences = _task_tables(task, found, stage.path, plan)
        rows += task_rows
        differences += task_differences
    order = {model: position for position, model in enumerate(config.evaluation.chain + config.evaluation.models)}
    rows.sort(key=lambda row: order.get(row["model"], len(order)))
    _write(stage, "scores.csv", SCORES, rows)
    _write(stage, "comparison.csv", COMPARISON, (vars(row) for row in corrected(differences)))
    return rows


def corrected(differences: Iterable[Difference]) -> list[Difference]:
    """With Holm's correction over the tasks of a suite, for each pair of models; main scores are a family."""
    families: dict[tuple[str, str, str, bool], list[Difference]] = {}
    for row in differences:
        families.setdefault((row.model, row.against, row.suite, row.main), []).append(row)
    found = []
    for family in families.values():
        values = holm([row.p_value for row in family])
        found += [replace(row, p_holm=value) for row, value in zip(family, values, strict=True)]
    return found


def _task_tables(
    task: Task, found: dict[str, dict[str, Any]], folder: Path, plan: Plan
) -> tuple[list[Row], list[Difference]]:
    outcomes = {model: read_outcome(folder / result["predictions"]) for model, result in found.items()}
    same_items(outcomes, task.key)
    rows: list[Row] = []
    differences: list[Difference] = []
    for position, measure in enumerate(next(iter(outcomes.values())).measures):
        values = replicates(measure, list(outcomes.values()), plan, task.suite, task.name)
        for (model, outcome), own in zip(outcomes.items(), values, strict=True):
            low, high = interval(own, plan)
            score = outcome.measures[position].score
            numbers = (score, low, high, outcome.items, found[model]["seconds"])
            rows.append(dict(zip(SCORES, (model, task.suite, task.name, measure.metric, *numbers), strict=True)))
        differences += compare(measure, outcomes, values, plan, task.suite, task.name, position == 0)
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
    """The closing table: a row a model, a column a task's score with half the width of its interval."""
    columns = list(dict.fromkeys((row["suite"], row["task"], row["metric"]) for row in rows))
    cells = {(row["model"], row["suite"], row["task"], row["metric"]): _with_bars(row) for row in rows}
    for suite in dict.fromkeys(column[0] for column in columns):
        heads = [column for column in columns if column[0] == suite]
        lines = [[model, *(cells.get((model, *head)) for head in heads)] for model in models]
        show_table(f"scores on {suite}", ["model", *(f"{task}\n{metric}" for _, task, metric in heads)], lines)


def _with_bars(row: Row) -> str:
    half = (row["ci_high"] - row["ci_low"]) / 2
    return f"{row['score']:.3f} ±{half:.3f}" if half == half else f"{row['score']:.3f}"

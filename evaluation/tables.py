"""scores.csv and comparison.csv from the predictions of all models, and the printed tables."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from configs.schema.config import Config
from evaluation.outcome import Outcome, read_outcome
from evaluation.published_scores import CARD_MTEB, CARD_SUITE, ENCODECHKA_MEANS
from evaluation.results import ACTIVE_IDS, BM25, BYTES, Difference, Score
from evaluation.significance import Measured, Resampling, corrected, mean_over_tasks, means_of, measured
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder
from pipeline.core.console import progress, show_table

WIDE = 10  # tasks in a row of a table, at most
COUNTS = (ACTIVE_IDS, BYTES)  # metrics that are no shares
Results = dict[str, dict[str, dict[str, Any]]]  # task's key -> model -> what Scorer.score returned


def write_tables(config: Config, stage: StageFolder, tasks: Sequence[Task], results: Results) -> list[Score]:
    """Write scores.csv and comparison.csv for all scored tasks; returns the rows of scores.csv."""
    resampling = Resampling(config.evaluation.resamples, config.seed)
    scored = [task for task in tasks if task.key in results]
    found = [part for task in progress(scored, "resampling") for part in _measured(task, results, stage, resampling)]
    for suite in dict.fromkeys(task.suite for task in scored):
        parts, kind = [part for part in found if part.suite == suite], config.evaluation.suite[suite].kind
        own = [part for part in parts if part.main]
        found += [mean_over_tasks("Mean", own)] if kind == "mteb" and len(own) > 1 else []
        fixed = ENCODECHKA_MEANS if kind == "encodechka" else CARD_MTEB if suite == CARD_SUITE else {}
        found += means_of(fixed, parts)
    last = len(config.evaluation.chain)
    order = {model: position for position, model in enumerate(config.evaluation.chain)} | {BM25: last + 1}
    rows = [row for part in found for row in part.rows()]
    rows.sort(key=lambda row: order.get(row.model, order.get(row.model.rpartition(".")[0], last)))
    with stage.replacing("scores.csv") as path:
        Score.write(path, rows)
    compared = [*found, *_against(scored, found)]
    with stage.replacing("comparison.csv") as path:
        Difference.write(path, corrected(row for part in compared for row in part.differences()))
    return rows


def _measured(task: Task, results: Results, stage: StageFolder, resampling: Resampling) -> list[Measured]:
    """A task's metrics, the main one first; each mode of a model has its own row.

    Models are compared in the same mode, a model's modes with each other, and all with scores that have no model.
    """
    made = results[task.key]
    metrics: dict[str, dict[str, Outcome]] = {}
    owners: dict[str, tuple[str, str]] = {}
    for model, result in made.items():
        outcome = read_outcome(stage.path / result["predictions"])
        for measure in outcome.measures:
            name = measure.by.format(model)
            if owners.setdefault(name, (model, measure.by))[0] == model:  # a score of no model is taken once
                metrics.setdefault(measure.metric, {})[name] = replace(outcome, measures=(measure,))

    def of_no_model(name: str) -> bool:
        return name == owners[name][1]

    def compared(one: str, other: str) -> bool:
        shared = any(mine == theirs for mine, theirs in zip(owners[one], owners[other], strict=True))
        return shared or of_no_model(one) or of_no_model(other)

    found = []
    permuted = task.against is None  # the many forms of vectors are compared with full ones by the bootstrap
    for place, systems in enumerate(metrics.values()):
        ordered = dict(sorted(systems.items(), key=lambda system: not of_no_model(system[0])))  # subtracted from others
        seconds = [float("nan") if of_no_model(name) else made[owners[name][0]]["seconds"] for name in ordered]
        found.append(measured(ordered, seconds, resampling, task.suite, task.name, place == 0, permuted, compared))
    return found


def _against(tasks: Sequence[Task], parts: Sequence[Measured]) -> Iterator[Measured]:
    """Each model on a task, paired with itself on the task to compare with.

    Both are over items with the same names, and thus have the same resamples.
    """
    known = {(part.suite, part.task, part.metric): part for part in parts}
    wanted = {(task.suite, task.name): task.against for task in tasks}
    for part in parts:
        other = known.get((part.suite, wanted.get((part.suite, part.task)) or "", part.metric))
        if other is None:
            continue
        for model in (model for model in part.models if model in other.models):
            pair = [(other, other.models.index(model)), (part, part.models.index(model))]
            yield replace(
                part,
                models=[f"{model} on {other.task}", model],
                scores=np.array([of.scores[place] for of, place in pair]),
                replicates=np.stack([of.replicates[place] for of, place in pair]),
                pairs=[(0, 1)],
                permuted={},
            )


def show_scores(rows: Sequence[Score]) -> None:
    """Print a table per suite: a row per model, a column per task, each score with half its interval's width.

    If a suite has many tasks, these are the rows; if it has few, with several metrics, each has its own table.
    """
    columns = list(dict.fromkeys((row.suite, row.task, row.metric) for row in rows))
    cells = {(row.model, row.suite, row.task, row.metric): _shown(row) for row in rows}
    for suite in dict.fromkeys(column[0] for column in columns):
        headers = [column for column in columns if column[0] == suite]
        models = list(dict.fromkeys(row.model for row in rows if row.suite == suite))
        tasks = list(dict.fromkeys(task for _, task, _ in headers))
        if len(tasks) > WIDE:
            lines = [[*header[1:], *(cells.get((model, *header)) for model in models)] for header in headers]
            show_table(f"scores on {suite}", ["task", "metric", *models], lines)
        elif len(headers) > len(tasks):
            for task in tasks:
                shown = [header for header in headers if header[1] == task]
                lines = [[model, *(cells.get((model, *header)) for header in shown)] for model in models]
                show_table(f"scores on {suite}, {task}", ["model", *(metric for _, _, metric in shown)], lines)
        else:
            lines = [[model, *(cells.get((model, *header)) for header in headers)] for model in models]
            show_table(f"scores on {suite}", ["model", *(f"{task}\n{metric}" for _, task, metric in headers)], lines)


def _shown(row: Score) -> str:
    if row.metric in COUNTS:
        return f"{row.score:,.0f}"
    half = (row.ci_high - row.ci_low) / 2
    return f"{row.score:.3f} ±{half:.3f}" if half == half else f"{row.score:.3f}"

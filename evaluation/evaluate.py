"""The stage `evaluate`: every model on every task of the configured suites, with error bars and paired comparisons."""

from collections.abc import Callable
from typing import Any

from configs.schema.config import Config
from configs.schema.evaluation import SuiteConfig
from evaluation.models import scored_models
from evaluation.scoring import Scorer, device_names, score_unit, score_units, unit_name
from evaluation.suites import mteb_tasks, retrieval, samples, vectors
from evaluation.suites.encodechka import tasks as encodechka
from evaluation.suites.task import Task
from evaluation.tables import show_scores, write_tables
from pipeline.core.artefact import StageFolder
from pipeline.core.errors import UserError

SUITE_KINDS = {  # kind of suite -> function that returns its tasks
    "retrieval": retrieval.tasks,
    "samples": samples.tasks,
    "encodechka": encodechka.tasks,
    "mteb": mteb_tasks.tasks,
    "vectors": vectors.tasks,
}

# Task names of suites whose tasks need the stage `data`.
NAMES_BEFORE_DATA: dict[str, Callable[[SuiteConfig], list[str]]] = {
    "retrieval": lambda suite: list(suite.sets),
    "vectors": vectors.task_names,
}


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Score every model on every task, compare them, and show the table.

    Raises UserError if any task failed; the other scores are written first and kept.
    """
    models = scored_models(config)
    tasks = chosen_tasks(config, stage)
    errors = score_units(config, stage, models, chosen_tasks)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for model in models:
        with Scorer(model, config, device_names(config)[0]) as scorer:
            for task in tasks:
                name = unit_name(model, task)
                if name in errors:
                    continue
                try:
                    with stage.claim(name):  # waits for a unit that another machine scores
                        results.setdefault(task.key, {})[model.name] = score_unit(stage, scorer, task)
                except UserError as error:
                    errors[name] = error
    written = write_tables(config, stage, tasks, results)
    show_scores(written)
    if errors:
        first = next(errors[name] for model in models for task in tasks if (name := unit_name(model, task)) in errors)
        what = f"{len(errors)} of {len(models) * len(tasks)} scores failed: {first.what}"
        raise UserError(what, where=first.where, remedy=f"{first.remedy}; the other scores are kept")
    revisions = {model.name: model.revision for model in models if model.revision}
    return {"models": len(models), "tasks": len(tasks), "scores": len(written), "revisions": revisions}


def assist(config: Config, stage: StageFolder) -> None:
    """Score unclaimed units of a stage that another machine of the same launch builds."""
    models = scored_models(config)
    score_units(config, stage, models, chosen_tasks, first=len(models) // 2)  # far from where the other one starts


def chosen_tasks(config: Config, stage: StageFolder) -> list[Task]:
    """The tasks of the configured suites: those of `evaluation.tasks`, if given, minus `evaluation.without`."""
    settings = config.evaluation
    kinds = {name: settings.suite[name].kind for name in settings.suites}
    found = [task for name, kind in kinds.items() for task in SUITE_KINDS[kind](name, config, stage)]
    names = {task.name for task in found}
    for key, wanted in (("tasks", settings.tasks), ("without", settings.without)):
        for name in set(wanted) - names:
            what, remedy = f"no chosen suite has the task {name}", f"choose among {', '.join(sorted(names))}"
            raise UserError(what, where=f"config key evaluation.{key}", remedy=remedy)
    kept = (set(settings.tasks) or names) - set(settings.without)
    return [task for task in found if task.name in kept]


def task_names(config: Config) -> dict[str, list[str]]:
    """The task names of every configured suite, whether or not its data exist."""
    nowhere, from_data = StageFolder("evaluate", config.folder("evaluate"), "", {}), NAMES_BEFORE_DATA
    return {
        name: from_data[suite.kind](suite)
        if suite.kind in from_data
        else [task.name for task in SUITE_KINDS[suite.kind](name, config, nowhere)]
        for name, suite in config.evaluation.suite.items()
    }

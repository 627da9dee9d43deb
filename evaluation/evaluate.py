"""The stage `evaluate`: every model on every task of the configured suites, with error bars and paired comparisons."""

import hashlib
import json
from functools import partial
from typing import Any

from configs.schema.config import Config
from evaluation.models import ScoredModel, head_folders, heads_fingerprint, scored_models
from evaluation.outcome import SCORE_VERSION
from evaluation.scoring import Scorer
from evaluation.suites import mteb_tasks, retrieval, samples
from evaluation.suites.encodechka import tasks as encodechka
from evaluation.suites.task import Task
from evaluation.tables import show_scores, write_tables
from pipeline.core.artefact import StageFolder, result_settings
from pipeline.core.errors import UserError

TASKS = {  # kind of suite -> what gives its tasks
    "retrieval": retrieval.tasks,
    "samples": samples.tasks,
    "encodechka": encodechka.tasks,
    "mteb": mteb_tasks.tasks,
}


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Score every model on every task, compare them, and show the table.

    Raises UserError when tasks failed; what the others gave is written before and kept.
    """
    models = scored_models(config)
    tasks = chosen_tasks(config, stage)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    failures: list[UserError] = []
    for model in models:
        scorer = Scorer(model, config)
        for task in tasks:
            try:
                made = unit_fingerprint(model, task, config)
                result = stage.unit(f"{model.name}/{task.key}", made, partial(scorer.score, task))
                results.setdefault(task.key, {})[model.name] = result
            except UserError as error:
                failures.append(error)
    written = write_tables(config, stage, tasks, results)
    show_scores(written, [model.name for model in models])
    if failures:
        first = failures[0]
        what = f"{len(failures)} of {len(models) * len(tasks)} scores failed: {first.what}"
        raise UserError(what, where=first.where, remedy=f"{first.remedy}; the other scores are kept")
    revisions = {model.name: model.revision for model in models if model.revision}
    return {"models": len(models), "tasks": len(tasks), "scores": len(written), "revisions": revisions}


def chosen_tasks(config: Config, stage: StageFolder) -> list[Task]:
    """The tasks of the configured suites, narrowed to `evaluation.tasks` where that is given."""
    kinds = {name: config.evaluation.suite[name].kind for name in config.evaluation.suites}
    found = [task for name, kind in kinds.items() for task in TASKS[kind](name, config, stage)]
    wanted = config.evaluation.tasks
    names = {task.name for task in found}
    for name in wanted:
        if name not in names:
            raise UserError(
                f"no suite that is run has the task {name}",
                where="config key evaluation.tasks",
                remedy=f"choose among {', '.join(sorted(names))}",
            )
    return [task for task in found if not wanted or task.name in wanted]


def task_names(config: Config) -> dict[str, list[str]]:
    """The tasks of every suite that can be asked for, made or not."""
    nowhere = StageFolder("evaluate", config.folder("evaluate"), "", {})
    return {
        name: list(suite.sets)
        if suite.kind == "retrieval"
        else [task.name for task in TASKS[suite.kind](name, config, nowhere)]
        for name, suite in config.evaluation.suite.items()
    }


def unit_fingerprint(model: ScoredModel, task: Task, config: Config) -> str:
    """What one score depends on: the model's contents, the task's settings and data, and the precision."""
    heads = heads_fingerprint(head_folders(config, model.folder)) if task.needs_heads else None
    content = [
        SCORE_VERSION,
        model.fingerprint,
        task.key,
        result_settings(task.settings),
        config.evaluation.precision,
        heads,
    ]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, default=str).encode()).hexdigest()

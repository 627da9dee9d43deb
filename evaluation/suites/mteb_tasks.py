"""Suites of mteb's tasks, listed singly or by benchmark, restricted to a suite's choice."""

import mteb
from mteb.abstasks import AbsTask

from configs.schema.config import Config
from configs.schema.evaluation import MtebTaskConfig, SuiteConfig
from evaluation.results import DENSE
from evaluation.suites.mteb_run import MtebTask, renewed
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder, folder_state, json_sha256
from pipeline.core.errors import UserError
from pipeline.core.hub import mirrored


def tasks(suite: str, config: Config, stage: StageFolder) -> list[Task]:
    """A suite's tasks; raises UserError for an unknown benchmark, task, split or subset."""
    settings = config.evaluation.suite[suite]
    found: list[Task] = []
    for name, special in suite_tasks(settings).items():
        task, modes = hub_task(name, settings, special, config.mirror), settings.representations
        chosen = {"splits": list(task.eval_splits), "subsets": list(task.hf_subsets), "metrics": special.metrics}
        depends_on = {**chosen, "data": task.metadata.dataset, **({"modes": modes} if modes != [DENSE] else {})}
        found.append(MtebTask(suite, name, depends_on, task, special.metrics, modes))
    return found


def suite_tasks(suite: SuiteConfig) -> dict[str, MtebTaskConfig]:
    """Names of a suite's tasks with their own settings; raises UserError for an unknown benchmark."""
    if suite.benchmark is None:
        return dict(suite.tasks)
    try:
        names = [task.metadata.name for task in mteb.get_benchmark(suite.benchmark).tasks]
    except KeyError:
        what = f"mteb has no benchmark {suite.benchmark}"
        raise UserError(what, where="config key evaluation.suite", remedy="correct its name") from None
    return {name: suite.tasks.get(name, MtebTaskConfig()) for name in [*names, *suite.tasks]}


def hub_task(name: str, suite: SuiteConfig, config: MtebTaskConfig, mirror: str | None) -> AbsTask:
    """A task of mteb restricted to the suite's subsets and splits; its data come from the mirror if it has them.

    Raises UserError for an unknown task, split or subset.
    """
    try:
        # A benchmark's own objects carry its choice of subsets and splits; mteb returns the same ones to every caller.
        own = mteb.get_benchmark(suite.benchmark).tasks if suite.benchmark else []
        listed = next((task for task in own if task.metadata.name == name), None)
        task = renewed(listed) if listed else mteb.get_task(name)
        task.filter_languages(suite.languages or None, hf_subsets=config.subsets or task.hf_subsets)
    except (KeyError, ValueError) as error:
        what = str(error).strip("'\"").splitlines()[0]
        raise UserError(f"mteb has no such task: {what}", where=name, remedy="correct the suite's tasks") from None
    if config.splits:
        task._eval_splits = list(config.splits)
    for split in set(task.eval_splits) - set(task.metadata.eval_splits):
        raise UserError(f"the task has no split {split}", where=name, remedy="correct the suite's splits")
    for subset in set(config.subsets) - set(task.hf_subsets):
        raise UserError(f"the task has no subset {subset}", where=name, remedy="correct the suite's subsets")
    if folder := mirrored(task.metadata.dataset["path"], mirror):
        dataset = {**task.metadata.dataset, "path": str(folder), "revision": json_sha256(folder_state(folder))}
        task.metadata = task.metadata.model_copy(update={"dataset": dataset})
    return task

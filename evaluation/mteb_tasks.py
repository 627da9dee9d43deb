"""mteb's task objects for a suite: from mteb's own list or benchmarks, or made of the bundled samples."""

import hashlib
import json
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset, DatasetDict
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks.task_metadata import TaskMetadata

from configs.schema.evaluation import MtebTaskConfig, SuiteConfig
from evaluation.samples import read_samples
from pipeline.core.artefact import describe_outputs, files_under
from pipeline.core.errors import UserError


def suite_tasks(suite: SuiteConfig) -> dict[str, MtebTaskConfig]:
    """Names of a suite's tasks with what is special about them; raises UserError for an unknown benchmark."""
    if suite.benchmark is None:
        return dict(suite.tasks)
    try:
        names = [task.metadata.name for task in mteb.get_benchmark(suite.benchmark).tasks]
    except KeyError:
        raise UserError(
            f"mteb has no benchmark {suite.benchmark}", where="config key evaluation.suite", remedy="mend its name"
        ) from None
    return {name: suite.tasks.get(name, MtebTaskConfig()) for name in [*names, *suite.tasks]}


def hub_task(name: str, suite: SuiteConfig, config: MtebTaskConfig, mirror: str | None) -> AbsTask:
    """A task of mteb restricted to the suite's subsets and splits; its data come from the mirror where it has them.

    Raises UserError for an unknown task, split or subset.
    """
    try:
        task = _benchmark_task(name, suite) or mteb.get_task(
            name,
            languages=suite.languages or None,
            hf_subsets=config.subsets or None,
            eval_splits=config.splits or None,
        )
    except (KeyError, ValueError) as error:
        what = str(error).strip("'\"").splitlines()[0]
        raise UserError(f"mteb has no such task: {what}", where=name, remedy="mend the suite's tasks") from None
    if config.splits:
        task._eval_splits = list(config.splits)
    for split in set(task.eval_splits) - set(task.metadata.eval_splits):
        raise UserError(f"the task has no split {split}", where=name, remedy="mend the suite's splits")
    if mirror:
        _read_from(task, Path(mirror))
    return task


def _benchmark_task(name: str, suite: SuiteConfig) -> AbsTask | None:
    """The benchmark's own object, which carries its choice of subsets and splits."""
    if suite.benchmark is None:
        return None
    return next((task for task in mteb.get_benchmark(suite.benchmark).tasks if task.metadata.name == name), None)


def _read_from(task: AbsTask, mirror: Path) -> None:
    """Let the task read the mirror's folder of its data set; the revision is then that of the folder's contents."""
    folder = mirror / task.metadata.dataset["path"]
    if folder.is_dir():
        contents = json.dumps(describe_outputs(folder, files_under(folder)))
        revision = hashlib.sha256(contents.encode()).hexdigest()
        dataset = {**task.metadata.dataset, "path": str(folder), "revision": revision}
        task.metadata = task.metadata.model_copy(update={"dataset": dataset})


def _described(name: str, kind: str, main_score: str, description: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=description,
        dataset={"path": f"samples/{name}", "revision": "bundled"},
        type=kind,  # type: ignore[arg-type]
        category="t2c" if kind == "Classification" else "t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["rus-Cyrl"],
        main_score=main_score,
    )  # type: ignore[call-arg]


class SampleSTS(AbsTaskSTS):
    """Graded similarity of two sentences."""

    metadata = _described("SampleSTS", "STS", "cosine_spearman", "Bundled pairs with a grade from 0 to 5.")


class SampleParaphrase(AbsTaskPairClassification):
    """Paraphrase or not."""

    metadata = _described("SampleParaphrase", "PairClassification", "max_ap", "Bundled headlines.")


class SampleClassification(AbsTaskClassification):
    """Topics of short texts."""

    metadata = _described("SampleClassification", "Classification", "accuracy", "Bundled texts by topic.")


class SampleLongDocuments(AbsTaskRetrieval):
    """Questions whose answers stand late in long documents."""

    metadata = _described("SampleLongDocuments", "Retrieval", "ndcg_at_10", "Bundled long documents.")


SAMPLE_TASKS: dict[str, tuple[type[AbsTask], tuple[str, ...]]] = {
    "mteb_sts": (SampleSTS, ("sts",)),
    "mteb_pairs": (SampleParaphrase, ("paraphrase",)),
    "mteb_topics": (SampleClassification, ("classification_train", "classification_test")),
    "long_documents": (SampleLongDocuments, ("long_documents",)),
}


def sample_task(name: str) -> AbsTask:
    """A task of mteb's kind over bundled samples, its data in place."""
    kind, files = SAMPLE_TASKS[name]
    rows = read_samples(files)
    task = kind()
    task.dataset, task.data_loaded = _sample_data(name, rows), True
    return task


def _sample_data(name: str, rows: dict[str, list[dict[str, Any]]]) -> Any:
    if name == "long_documents":
        return {"default": {"test": _documents(rows["long_documents"])}}
    if name == "mteb_topics":
        parts = {"train": rows["classification_train"], "test": rows["classification_test"]}
        labels = sorted({row["label"] for row in parts["train"]})
        numbered = {
            split: [{"text": row["text"], "label": labels.index(row["label"])} for row in part]
            for split, part in parts.items()
        }
        return DatasetDict({split: Dataset.from_list(part) for split, part in numbered.items()})
    if name == "mteb_pairs":
        pairs = [
            {"sentence1": row["text_1"], "sentence2": row["text_2"], "labels": int(row["label"] == 1)}
            for row in rows["paraphrase"]
        ]
        return DatasetDict(test=Dataset.from_list(pairs))
    return DatasetDict(test=Dataset.from_list(rows["sts"]))


def _documents(rows: list[dict[str, Any]]) -> dict[str, Any]:
    documents = list(dict.fromkeys(row["document"] for row in rows))
    return {
        "corpus": Dataset.from_list([{"id": f"d{n}", "title": "", "text": text} for n, text in enumerate(documents)]),
        "queries": Dataset.from_list([{"id": f"q{n}", "text": row["query"]} for n, row in enumerate(rows)]),
        "relevant_docs": {f"q{n}": {f"d{documents.index(row['document'])}": 1} for n, row in enumerate(rows)},
        "top_ranked": None,
    }

"""The bundled samples: small Russian sets written for this project, scored by encodechka's protocol and mteb."""

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskPairClassification, AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

from configs.schema.config import Config
from evaluation.suites.encodechka.predictors import accuracy_task, similarity_task
from evaluation.suites.encodechka.tasks import EncodechkaTask, classified, paired
from evaluation.suites.mteb_run import MtebTask
from evaluation.suites.sample_files import read_samples, sample_digests
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder


def tasks(suite: str, config: Config, stage: StageFolder) -> list[Task]:
    """encodechka's kinds of tasks with the model's own embeddings, then mteb's."""
    ours = [
        EncodechkaTask(suite, name, sample_digests(*files), procedure, read_samples, "model")
        for name, (procedure, files) in ENCODECHKA_SAMPLES.items()
    ]
    theirs = [MtebTask(suite, name, sample_digests(*task.files), task(), []) for name, task in MTEB_SAMPLES.items()]
    return [*ours, *theirs]


ENCODECHKA_SAMPLES = {  # task -> how it is scored, and its files
    "sts": (paired(similarity_task, "sts", "sentence1", "sentence2", "score", float), ("sts",)),
    "paraphrase": (paired(similarity_task, "paraphrase", "text_1", "text_2", "label", int), ("paraphrase",)),
    "topics": (
        classified(accuracy_task, "classification", "label", str),
        ("classification_train", "classification_test"),
    ),
}


def _described(name: str, kind: str, main_score: str, description: str, *files: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=description,
        dataset={"path": f"samples/{name}", "revision": " ".join(sample_digests(*files))},
        type=kind,  # type: ignore[arg-type]
        category="t2c" if kind == "Classification" else "t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["rus-Cyrl"],
        main_score=main_score,
    )  # type: ignore[call-arg]


class SampleSTS(AbsTaskSTS):
    """Graded similarity of two sentences."""

    files = ("sts",)
    metadata = _described("SampleSTS", "STS", "cosine_spearman", "Bundled pairs with a grade from 0 to 5.", *files)

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        self.dataset, self.data_loaded = DatasetDict(test=Dataset.from_list(read_samples("sts"))), True


class SampleParaphrase(AbsTaskPairClassification):
    """Paraphrase or not."""

    files = ("paraphrase",)
    metadata = _described("SampleParaphrase", "PairClassification", "max_ap", "Bundled headlines.", *files)

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        pairs = [
            {"sentence1": row["text_1"], "sentence2": row["text_2"], "labels": int(row["label"] == 1)}
            for row in read_samples("paraphrase")
        ]
        self.dataset, self.data_loaded = DatasetDict(test=Dataset.from_list(pairs)), True


class SampleClassification(AbsTaskClassification):
    """Topics of short texts."""

    files = ("classification_train", "classification_test")
    metadata = _described("SampleClassification", "Classification", "accuracy", "Bundled texts by topic.", *files)

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        parts = {"train": read_samples("classification_train"), "test": read_samples("classification_test")}
        labels = sorted({row["label"] for row in parts["train"]})
        numbered = {
            split: [{"text": row["text"], "label": labels.index(row["label"])} for row in rows]
            for split, rows in parts.items()
        }
        self.dataset = DatasetDict({split: Dataset.from_list(rows) for split, rows in numbered.items()})
        self.data_loaded = True


class SampleLongDocuments(AbsTaskRetrieval):
    """Questions answered near the end of long documents."""

    files = ("long_documents",)
    metadata = _described("SampleLongDocuments", "Retrieval", "ndcg_at_10", "Bundled long documents.", *files)

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        rows = read_samples("long_documents")
        texts = list(dict.fromkeys(row["document"] for row in rows))
        corpus = [{"id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)]
        test: Any = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list([{"id": f"q{n}", "text": row["query"]} for n, row in enumerate(rows)]),
            "relevant_docs": {f"q{n}": {f"d{texts.index(row['document'])}": 1} for n, row in enumerate(rows)},
            "top_ranked": None,
        }
        self.dataset, self.data_loaded = {"default": {"test": test}}, True


MTEB_SAMPLES: dict[str, Any] = {
    "mteb_sts": SampleSTS,
    "mteb_pairs": SampleParaphrase,
    "mteb_topics": SampleClassification,
    "long_documents": SampleLongDocuments,
}

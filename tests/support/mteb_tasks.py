"""Real tasks of mteb, one of every type, over a few Russian rows of our own."""

from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask

from configs.schema.evaluation import MtebTaskConfig, SuiteConfig
from evaluation.suites.mteb_tasks import hub_task

SUBJECTS = ["Старый мельник", "Наша соседка", "Молодой врач", "Усталый почтальон", "Школьный сторож", "Весёлый повар"]
TOPICS = [  # a verb and what belongs to it, topic by topic
    ["варит борщ", "печёт хлеб", "солит огурцы", "жарит рыбу"],
    ["чинит мост", "красит забор", "строит дом", "кладёт печь"],
    ["читает роман", "пишет стихи", "учит ноты", "рисует море"],
    ["сажает яблони", "косит траву", "кормит кур", "собирает мёд"],
]
TIMES = ["на рассвете", "после дождя", "в понедельник", "до самой ночи", "каждое лето"]


def sentences(count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Different sentences and the numbers of their topics."""
    rng = np.random.default_rng(seed)
    found: dict[str, int] = {}
    while len(found) < count:
        topic = int(rng.integers(len(TOPICS)))
        parts = [rng.choice(SUBJECTS), rng.choice(TOPICS[topic]), rng.choice(TIMES)]
        found[" ".join(map(str, parts)) + "."] = topic
    return list(found), list(found.values())


def with_data(name: str, data: object, **choice: list[str]) -> AbsTask:
    """The task of that name with these data in place of the Hub's."""
    task = hub_task(name, SuiteConfig(), MtebTaskConfig(**choice), None)
    task.dataset, task.data_loaded = data, True  # type: ignore[assignment]
    return task


def _retrieval(**top_ranked: Any) -> dict[str, Any]:
    texts, _ = sentences(80, seed=1)
    return {
        "corpus": Dataset.from_list([{"id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)]),
        "queries": Dataset.from_list([{"id": f"q{n}", "text": " ".join(texts[n].split()[2:])} for n in range(20)]),
        "relevant_docs": {f"q{n}": {f"d{n}": 1, f"d{n + 40}": 1} for n in range(20)},
        "top_ranked": top_ranked or None,
    }


def task_of_type(kind: str) -> AbsTask:
    """A new object of a real task of this type."""
    texts, topics = sentences(90)
    labelled = Dataset.from_dict({"text": texts, "label": topics})
    grades = [abs(one - other) for one, other in zip(topics, topics[::-1], strict=True)]
    if kind == "Retrieval":
        return with_data("RuBQRetrieval", {"default": {"test": _retrieval()}})
    if kind == "Reranking":
        ranked = {f"q{n}": [f"d{m}" for m in range(n, n + 45)] for n in range(20)}
        return with_data("RuBQReranking", {"default": {"test": _retrieval(**ranked)}})
    if kind == "Classification":
        data = DatasetDict(train=labelled.select(range(50)), test=labelled.select(range(50, 90)))
        return with_data("HeadlineClassification", data)
    if kind == "MultilabelClassification":
        several = Dataset.from_dict({"text": texts, "label": [[t, 4 + (n % 2)] for n, t in enumerate(topics)]})
        return with_data("CEDRClassification", DatasetDict(train=several.select(range(60)), test=several))
    if kind == "Clustering":
        data = Dataset.from_dict({"sentences": texts, "labels": topics})
        return with_data("GeoreviewClusteringP2P", DatasetDict(test=data))
    pairs = {"sentence1": texts, "sentence2": texts[::-1]}
    if kind == "STS":
        data = DatasetDict(test=Dataset.from_dict(pairs | {"score": [3.0 - grade for grade in grades]}))
        return with_data("RuSTSBenchmarkSTS", data, splits=["test"])
    data = DatasetDict(dev=Dataset.from_dict(pairs | {"labels": [int(grade == 0) for grade in grades]}))
    return with_data("TERRa", data, splits=["dev"])


TYPES = (
    "Retrieval",
    "Reranking",
    "Classification",
    "MultilabelClassification",
    "Clustering",
    "STS",
    "PairClassification",
)

"""From mteb's results and predictions to per-item columns."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from sklearn.preprocessing import MultiLabelBinarizer

from evaluation.outcome import PART, Measure, Outcome
from evaluation.significance import STATISTICS
from pipeline.core.errors import UserError

PAIR_SIMILARITIES = {  # prefix of mteb's metric -> its key among the predictions, and whether larger is nearer
    "similarity": ("similarity_scores", 1),
    "cosine": ("cosine_scores", 1),
    "dot": ("dot_scores", 1),
    "euclidean": ("euclidean_distances", -1),
    "manhattan": ("manhattan_distances", -1),
}
ROUNDING = 1e-4  # mteb keeps five or six digits
TREC_NAMES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}


@dataclass(frozen=True)
class Part:
    """One split of one subset: mteb's scores, its predictions, and the data they belong to."""

    subset: str
    split: str
    scores: dict[str, Any]
    predictions: Any
    data: Any


def keep_query_scores(task: AbsTask, folder: Path) -> None:
    """Let a retrieval task write trec_eval's scores of every query, which mteb itself drops after averaging."""
    if not isinstance(task, AbsTaskRetrieval):
        return
    original = task.task_specific_scores

    def keep(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> dict[str, float]:
        folder.mkdir(parents=True, exist_ok=True)
        path = query_scores_path(folder, hf_subset, hf_split)
        path.write_text(json.dumps(scores, sort_keys=True), encoding="utf-8")
        return original(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)

    task.task_specific_scores = keep  # type: ignore[method-assign]


def query_scores_path(folder: Path, subset: str, split: str) -> Path:
    """Where `keep_query_scores` writes."""
    return folder / f"queries--{subset}--{split}.json"


def mteb_outcome(task: AbsTask, parts: Sequence[Part], metrics: Sequence[str]) -> Outcome:
    """Columns and measures of all parts of a task; a metric is the mean of its values on the parts, as mteb has it."""
    columns: dict[str, np.ndarray] = {}
    measures, lengths = [], list[int]()
    for metric in metrics or [task.metadata.main_score]:
        rounded = float(np.mean([part.scores[metric] for part in parts]))
        statistic, per_part = _items(task.metadata.type, metric, parts)
        names = tuple(name if name == "gold" else f"{metric}:{name}" for name in per_part[0])
        for position, name in enumerate(names):
            columns[name] = np.concatenate([list(found.values())[position] for found in per_part])
        score = float(np.mean([_exactly(statistic, found) for found in per_part]))
        if abs(score - rounded) > ROUNDING:
            what = f"the items give {metric} {score:.6f}, but mteb says {rounded:.6f}"
            raise UserError(what, where=f"task {task.metadata.name}", remedy="leave it out: this is a defect here")
        measures.append(Measure(metric, score, statistic, names))
        lengths = [len(next(iter(found.values()))) for found in per_part]
    labels = [f"{part.subset}/{part.split}" for part in parts]
    columns[PART] = np.repeat(np.array(labels, dtype=object), lengths)
    # As many digits as mteb's own files keep: a score that is read from them must not differ from a fresh one.
    by_part = {label: round(part.scores["main_score"], 6) for label, part in zip(labels, parts, strict=True)}
    return Outcome(columns, tuple(measures), {"parts": by_part})


def _exactly(statistic: str, columns: dict[str, np.ndarray]) -> float:
    """The metric from the items: mteb rounds what it keeps, so a cached score would differ from a fresh one."""
    counts = np.ones((1, len(next(iter(columns.values())))))
    return float(STATISTICS[statistic](counts, lambda size: np.ones((1, size)), *columns.values())[0])


def _items(kind: str, metric: str, parts: Sequence[Part]) -> tuple[str, list[dict[str, np.ndarray]]]:
    """The statistic that a metric is, and its arguments for each part."""
    if kind in ("Retrieval", "Reranking"):
        return "mean", [{"value": _query_values(part, metric)} for part in parts]
    if kind in ("Classification", "MultilabelClassification"):
        if metric == "accuracy":
            return "mean_of_experiments", [{"correct": _correct(part)} for part in parts]
        return "mean", [_experiments(part, metric) for part in parts]
    if kind == "Clustering":
        return "mean", [{"value": _bootstraps(part, metric)} for part in parts]
    function: Callable[[Part, str], dict[str, np.ndarray]] = _sts if kind == "STS" else _pairs
    statistic = metric.rpartition("_")[2] if kind == "STS" else "average_precision"
    return statistic, [function(part, metric) for part in parts]


def _query_values(part: Part, metric: str) -> np.ndarray:
    name, _, depth = metric.rpartition("_at_")
    key = f"{TREC_NAMES[name]}_{depth}"
    return np.array([part.predictions[query][key] for query in sorted(part.predictions)])


def _correct(part: Part) -> np.ndarray:
    """[texts, experiments] whether the predicted label (or the whole set of labels) is right."""
    predicted = np.asarray(part.predictions)
    if predicted.ndim == 3:
        gold = MultiLabelBinarizer().fit_transform(part.data["label"])
        return (predicted == gold[None]).all(axis=2).T.astype(np.float64)
    return (predicted == np.asarray(part.data["label"])[None]).T.astype(np.float64)


def _experiments(part: Part, metric: str) -> dict[str, np.ndarray]:
    return {"value": np.array([scores[metric] for scores in part.scores["scores_per_experiment"]])}


def _bootstraps(part: Part, metric: str) -> np.ndarray:
    levels = part.scores["v_measures" if metric == "v_measure" else f"{metric}_scores"]
    return np.concatenate([np.asarray(values, dtype=np.float64) for values in levels.values()])


def _sts(part: Part, metric: str) -> dict[str, np.ndarray]:
    prefix = metric.rpartition("_")[0] or "similarity"
    key, _ = PAIR_SIMILARITIES[prefix]
    return {
        "prediction": np.asarray(part.predictions[key], dtype=np.float64),
        "gold": np.asarray(part.data["score"], dtype=np.float64),
    }


def _pairs(part: Part, metric: str) -> dict[str, np.ndarray]:
    """Similarities whose average precision the metric is; `max_ap` means the best of all similarities."""
    prefix = metric.removesuffix("_ap")
    if prefix == "max":
        prefix = max(PAIR_SIMILARITIES, key=lambda name: part.scores.get(f"{name}_ap", -1.0))
    key, sign = PAIR_SIMILARITIES[prefix]
    data = part.data[0] if len(part.data) == 1 else part.data
    return {
        "prediction": sign * np.asarray(part.predictions[key], dtype=np.float64),
        "gold": np.asarray(data["labels"], dtype=np.int64),
    }

"""Turns mteb's results and predictions into per-item columns."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.abstask import _multilabel_subsampling
from sklearn.preprocessing import MultiLabelBinarizer

from evaluation.metrics import FIXED, whole
from evaluation.outcome import ITEM, PART, Measure, Outcome
from evaluation.suites.text_pairs import items_of_pairs
from pipeline.core.artefact import read_json
from pipeline.core.embedding import text_key
from pipeline.core.errors import UserError

PAIR_SIMILARITIES = {  # prefix of mteb's metric -> its key among the predictions, and 1 if larger is nearer, else -1
    "similarity": ("similarity_scores", 1),
    "cosine": ("cosine_scores", 1),
    "dot": ("dot_scores", 1),
    "euclidean": ("euclidean_distances", -1),
    "manhattan": ("manhattan_distances", -1),
}
ROUNDING = 1e-4  # mteb keeps five or six digits
TREC_NAMES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
PAIRS_OF = {"XNLIV2": "XNLI"}  # the same pairs in the same order, translated again


@dataclass(frozen=True)
class Part:
    """One split of one subset as mteb scored it, JSON-serialisable."""

    subset: str
    split: str
    scores: dict[str, Any]
    predictions: Any  # mteb's own; for retrieval trec_eval's scores of every query
    gold: list[Any]  # labels, if predictions are compared with any
    items: list[str]  # names of items' texts; the same name in two parts or tasks is the same item


def keep_query_scores(task: AbsTask, folder: Path) -> None:
    """Make a retrieval task write trec_eval's scores of every query, which mteb drops after averaging."""
    if not isinstance(task, AbsTaskRetrieval):
        return
    original = task.task_specific_scores

    def keep(scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str) -> dict[str, float]:
        path = query_scores_path(folder, hf_subset, hf_split)
        path.write_text(json.dumps(scores, sort_keys=True), encoding="utf-8")
        return original(scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset)

    task.task_specific_scores = keep  # type: ignore[method-assign]


def read_labels_once(task: AbsTask) -> None:
    """Pass each draw's metrics the labels as a list; from a data set's column they would decode all rows ten times."""
    if isinstance(task, AbsTaskClassification):
        original: Any = task._calculate_scores
        task._calculate_scores = lambda labels, *of: original(labels[:], *of)  # type: ignore[method-assign]


def query_scores_path(folder: Path, subset: str, split: str) -> Path:
    """Where `keep_query_scores` writes."""
    return folder / f"queries--{subset}--{split}.json"


def parts_of_task(task: AbsTask, scores: Mapping[str, list[Any]], folder: Path) -> Iterator[Part]:
    """The parts of a task that was just evaluated, with the predictions in `folder`."""
    for split in task.eval_splits:
        for entry in sorted(scores[split], key=lambda entry: entry["hf_subset"]):
            subset = entry["hf_subset"]
            if subset not in task.hf_subsets:
                continue
            if isinstance(task, AbsTaskRetrieval):
                found = read_json(query_scores_path(folder, subset, split))
                gold, items = list[Any](), [f"{task.metadata.name} {query}" for query in sorted(found)]
            else:
                found = read_json(folder / task.prediction_file_name)[subset][split]
                sets: Any = task.dataset
                data = sets[subset][split] if subset in sets else sets[split]
                most = getattr(task, "max_eval_samples", None)  # of multilabel tasks
                if isinstance(task, AbsTaskClassification) and most and len(data) > most:  # the rows that mteb chose
                    full, label = DatasetDict({split: data}), task.label_column_name
                    data = _multilabel_subsampling(full, task.seed, [split], label, most)[split]
                gold, items = _labelled(task.metadata, data)
            yield Part(subset, split, entry, found, gold, items)


def _labelled(metadata: Any, data: Any) -> tuple[list[Any], list[str]]:
    """Labels and names of the items; clustering has none, as it doesn't score single texts."""
    if metadata.type == "Clustering":
        return [], []
    if metadata.type in ("Classification", "MultilabelClassification"):
        return list(data["label"]), [text_key(text) for text in data["text"]]
    if metadata.type == "STS":
        return list(data["score"]), [*items_of_pairs(data["sentence1"], data["sentence2"])]
    pairs = data[0] if len(data) == 1 else data
    gold = list(pairs["labels"])
    if metadata.name in {*PAIRS_OF, *PAIRS_OF.values()}:
        name = PAIRS_OF.get(metadata.name, metadata.name)
        return gold, [f"{name} {place} {label}" for place, label in enumerate(gold)]
    return gold, [*items_of_pairs(pairs["sentence1"], pairs["sentence2"])]


def mteb_outcome(metadata: Any, parts: Sequence[Part], metrics: Sequence[str]) -> Outcome:
    """Columns and measures of all parts of a task; a metric is the mean of its values on the parts, as in mteb."""
    columns: dict[str, np.ndarray] = {}
    measures, lengths = list[Measure](), list[int]()
    for metric in metrics or [metadata.main_score]:
        rounded, statistic, per_part = _of_metric(metadata, metric, parts)
        sizes = [len(next(iter(found.values()))) for found in per_part]
        if measures and sizes != lengths:
            what = f"{metric} and {measures[0].metric} are not over the same items"
            raise UserError(what, where=f"task {metadata.name}", remedy="score it in a separate suite")
        lengths = sizes
        names = {name: name if name == "gold" else f"{metric}:{name}" for name in per_part[0]}
        columns |= {column: np.concatenate([found[name] for found in per_part]) for name, column in names.items()}
        measures.append(Measure(metric, rounded, statistic, tuple(names.values())))
    labels = [f"{part.subset}/{part.split}" for part in parts]
    columns[PART] = np.repeat(np.array(labels, dtype=object), lengths)
    named = [name for part in parts for name in part.items]
    if len(named) == sum(lengths):  # else the values are of draws, not of items
        columns[ITEM] = np.array(named, dtype=object)
    by_part = {label: part.scores["main_score"] for label, part in zip(labels, parts, strict=True)}
    made = Outcome(columns, tuple(measures), {"parts": by_part})
    # From the items: mteb rounds stored scores, so a cached one would differ from a new one.
    exact = [replace(measure, score=whole(measure, made)) for measure in measures]
    for measure, theirs in zip(exact, measures, strict=True):
        if abs(measure.score - theirs.score) > ROUNDING:
            what = f"the items give {measure.metric} {measure.score:.6f}, but mteb reports {theirs.score:.6f}"
            remedy = "leave it out; this is a bug in this repository"
            raise UserError(what, where=f"task {metadata.name}", remedy=remedy)
    return replace(made, measures=tuple(exact))


def _of_metric(metadata: Any, metric: str, parts: Sequence[Part]) -> tuple[float, str, list[dict[str, np.ndarray]]]:
    """mteb's score, the statistic that computes it, and that statistic's arguments for each part.

    Raises UserError for a metric that mteb doesn't compute, or not per item.
    """
    try:
        rounded = float(np.mean([part.scores[metric] for part in parts]))
        found = [_per_item(metadata.type, metric, part) for part in parts]
    except (KeyError, TypeError):
        what = f"mteb has no {metric} per item"
        raise UserError(what, where=f"task {metadata.name}", remedy="correct the task's metrics in its suite") from None
    return rounded, found[0][0], [arguments for _, arguments in found]


def _per_item(kind: str, metric: str, part: Part) -> tuple[str, dict[str, np.ndarray]]:
    """The statistic that computes a metric, and its arguments for a part; KeyError or TypeError if mteb has none.

    For pairs these are the metric's similarities; `max_ap` takes the best of all similarities.
    """
    if kind in ("Retrieval", "Reranking"):
        name, _, depth = metric.rpartition("_at_")
        key = f"{TREC_NAMES[name]}_{depth}"
        return "mean", {"value": np.array([scores[key] for _, scores in sorted(part.predictions.items())])}
    if kind in ("Classification", "MultilabelClassification"):
        if metric == "accuracy":
            return "mean_of_experiments", {"correct": _correct(part)}
        return FIXED, {"value": np.array([float(scores[metric]) for scores in part.scores["scores_per_experiment"]])}
    if kind == "Clustering":
        levels = part.scores["v_measures" if metric == "v_measure" else f"{metric}_scores"]
        return FIXED, {"value": np.concatenate([np.asarray(values, dtype=np.float64) for values in levels.values()])}
    prefix, _, name = metric.rpartition("_")
    if prefix == "max":
        prefix = max(PAIR_SIMILARITIES, key=lambda each: part.scores.get(f"{each}_ap", -1.0))
    key, sign = PAIR_SIMILARITIES[prefix or "similarity"]
    predicted = np.asarray(part.predictions[key], dtype=np.float64)
    if kind == "STS":
        return name, {"prediction": predicted, "gold": np.asarray(part.gold, dtype=np.float64)}
    if kind == "PairClassification" and name == "ap":
        return "average_precision", {"prediction": sign * predicted, "gold": np.asarray(part.gold, dtype=np.int64)}
    raise KeyError(metric)  # the others depend on a threshold


def _correct(part: Part) -> np.ndarray:
    """[texts, experiments] whether the predicted label (or the whole set of labels) is right."""
    predicted = np.asarray(part.predictions)
    if predicted.ndim == 3:
        gold = MultiLabelBinarizer().fit_transform(part.gold)
        return (predicted == gold[None]).all(axis=2).T.astype(np.float64)
    return (predicted == np.asarray(part.gold)[None]).T.astype(np.float64)

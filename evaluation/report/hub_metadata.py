"""The card's front matter, which the Hub reads: language, licence, base, data sets, and scores as model-index."""

import math
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from configs.schema.config import Config
from evaluation.report.record import RunRecord
from evaluation.results import SIZES, Score

OPEN = "apache-2.0"  # the licence if nothing restricts the model's use
TERMS = "terms-of-the-training-sets"  # license_name of the licence `other`
TASK_TYPES = {  # metric -> the Hub's name for the tasks it scores; mteb names its own tasks
    "accuracy": "text-classification",
    "roc_auc": "text-classification",
    "macro_f1": "token-classification",
    "ndcg_at_10": "retrieval",
}


def front_matter(run: RunRecord, config: Config, name: str) -> str:
    """The front matter as YAML, written by huggingface_hub's ModelCardData."""
    base, results, chosen = run.base_id, eval_results(run), licence(run, config)
    listed = chosen == "other" and bool(run.restricted_sets)  # in the file LICENSE
    data = ModelCardData(
        language=run.languages,
        license=chosen,
        license_name=TERMS if listed else None,
        license_link="LICENSE" if listed else None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "sentence-similarity", "feature-extraction", "merge"],
        base_model=base,
        base_model_relation="finetune" if base else None,
        datasets=hub_data_sets(run) or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name,
        eval_results=results or None,
    )
    return str(data.to_yaml()).strip()


def licence(run: RunRecord, config: Config) -> str:
    """The model's licence as the Hub spells it: the configured one, else `other` if training sets restrict it."""
    return (config.evaluation.publish.licence or "").lower() or ("other" if run.restricted_sets else OPEN)


def terms(run: RunRecord) -> str:
    """The sets whose terms restrict the model, with their terms."""
    return "; ".join(f"{entry['title']}: {entry['licence']}" for entry in run.restricted_sets)


def hub_data_sets(run: RunRecord) -> list[str]:
    """Hub ids of the training sets, without those read from local files or bundled samples only."""
    sources, found = run.config_of("data")["data"]["sources"], set[str]()
    for entry in run.training_sets:
        source = sources.get(entry["name"], {})
        is_local = source.get("local_only") or entry["revision"].startswith("local ")
        if entry["train"] and not is_local and not run.bundled(entry):
            found |= {entry["source"], *(part["hub"] for part in source.get("also", []))}
    return sorted(name for name in found if "/" in name)  # a name without a slash is a reader's


def eval_results(run: RunRecord) -> list[EvalResult]:
    """The merge's scores, with mteb's tasks under the data set that mteb names; a task of two suites is listed once."""
    found: dict[Any, EvalResult] = {}
    for score in run.scores:
        if score.model == "merge" and score.metric not in SIZES and math.isfinite(score.score):
            result = _eval_result(score, run)
            found.setdefault((result.unique_identifier, result.metric_type), result)
    return list(found.values())


def _eval_result(score: Score, run: RunRecord) -> EvalResult:
    kind = run.suite_kind(score.suite)
    where: dict[str, Any] = {"dataset_type": score.suite, "dataset_name": f"{score.suite}: {score.task}"}
    where |= {"dataset_config": score.task, "dataset_split": "heldout" if kind == "retrieval" else "test"}
    task_type = "retrieval" if kind == "retrieval" else TASK_TYPES.get(score.metric, "sentence-similarity")
    if kind == "mteb" and (metadata := _mteb_metadata(score.task)):
        where = {"dataset_type": metadata.dataset["path"], "dataset_name": f"MTEB {score.task}"}
        where |= {"dataset_revision": metadata.dataset.get("revision")} | _part(run, score)
        task_type = metadata.type
    return EvalResult(task_type=task_type, metric_type=score.metric, metric_value=round(score.score, 6), **where)


def _part(run: RunRecord, score: Score) -> dict[str, Any]:
    """Subset and split of a score; for a mean over several, the shared ones and the full list."""
    parts = list(run.notes.get(f"{score.suite}/{score.task}", {}).get("parts") or [])  # subset/split
    subsets, splits = ({part.split("/")[place] for part in parts} for place in (0, 1))
    shared = {"dataset_config": subsets, "dataset_split": splits}
    found: dict[str, Any] = {name: next(iter(values)) for name, values in shared.items() if len(values) == 1}
    return found | ({"dataset_args": {"mean_of": parts}} if len(parts) > 1 else {})


def _mteb_metadata(task: str) -> Any:
    """mteb's metadata of a task; None if mteb has no such task (means over tasks, the heads' outputs)."""
    import mteb  # takes seconds; not needed without mteb's suites

    try:
        return mteb.get_task(task).metadata
    except KeyError:
        return None

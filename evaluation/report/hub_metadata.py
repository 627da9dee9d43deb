"""The card's front matter, which the Hub reads: language, licence, base, data sets, and scores as model-index."""

import math
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from configs.schema.config import Config
from evaluation.report.record import RunRecord
from evaluation.results import Score

KINDS = {"encodechka": "sentence-similarity", "retrieval": "retrieval"}  # kind of suite -> task type of the Hub


def front_matter(run: RunRecord, config: Config, name: str) -> str:
    """YAML by huggingface_hub's ModelCardData."""
    base, results = run.base_id, eval_results(run)
    data = ModelCardData(
        language=list(config.languages),
        license=config.evaluation.publish.licence,
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


def hub_data_sets(run: RunRecord) -> list[str]:
    """Hub ids of the sets that were trained on, without those of which only bundled samples were."""
    sets = [entry for entry in run.training_sets if entry.get("train") and not run.bundled(entry)]
    return sorted({entry["source"] for entry in sets if _is_hub_id(str(entry.get("source")))})


def eval_results(run: RunRecord) -> list[EvalResult]:
    """The merge's scores, tasks of mteb under the data set that mteb names."""
    merged = [score for score in run.scores if score.model == "merge" and math.isfinite(score.score)]
    return [_eval_result(score, run.suite_kind(score.suite)) for score in merged]


def _eval_result(score: Score, kind: str) -> EvalResult:
    where: dict[str, Any] = {"dataset_type": score.suite, "dataset_name": f"{score.suite}: {score.task}"}
    task_type = KINDS.get(kind, "sentence-similarity")
    if kind == "mteb" and (metadata := _mteb_metadata(score.task)):
        where = {"dataset_type": metadata.dataset["path"], "dataset_name": f"MTEB {score.task}"}
        where["dataset_revision"] = metadata.dataset.get("revision")
        task_type = metadata.type
    return EvalResult(
        task_type=task_type,
        dataset_config=score.task,
        metric_type=score.metric,
        metric_value=round(score.score, 6),
        **where,
    )


def _mteb_metadata(task: str) -> Any:
    """What mteb says of a task; None for what it has no task of: means over tasks, the heads' outputs, their drift."""
    import mteb  # takes seconds, for which a report without mteb's suites need not wait

    try:
        return mteb.get_task(task).metadata
    except KeyError:
        return None


def _is_hub_id(source: str) -> bool:
    owner, _, name = source.partition("/")
    return bool(owner) and bool(name) and "/" not in name and "." not in owner and not source.startswith("~")

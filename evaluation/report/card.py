"""The merged model's card: front matter for the Hub, how to use it, and figures that all come from artefacts."""

import re
from pathlib import Path
from typing import Any

import jinja2

from configs.schema.config import SIDES, Config
from configs.schema.merging import MERGEKIT_METHODS
from evaluation.models import ModelFacts, read_model_facts
from evaluation.report import format as show
from evaluation.report.hub_metadata import front_matter
from evaluation.report.record import RunRecord
from pipeline.core.artefact import replacing
from pipeline.core.console import log

AVERAGED = "The models were averaged with the weights below"
CHOSEN = {  # method -> how the weights came about
    "fixed": f"{AVERAGED}, which were given.",
    "lm_cocktail": f"{AVERAGED}, which LM-Cocktail computed from few-shot losses on dev data.",
    "search": f"{AVERAGED}, the best of those that were tried on dev data.",
}
KINDS = {  # kind of suite -> what its tasks are
    "retrieval": "Held-out sets of the pipeline: each anchor is a query, the positives of all rows are the candidates.",
    "samples": "Small sets written for the pipeline, which the benchmarks' code scores; their intervals are wide.",
    "encodechka": "The ten tasks of [encodechka](https://github.com/avidale/encodechka), scored here.",
    "mteb": "Tasks of [MTEB](https://github.com/embeddings-benchmark/mteb), scored here.",
}
PAIRS = {"symmetric": "symmetric pairs", "asymmetric": "asymmetric pairs", "joint": "pairs of both kinds"}
RESTRICTED = re.compile(r"\bNC\b|-NC-|non-commercial|personal use|research only|Credentialed")
IN_BRACKETS = "{} [{}, {}]"  # a score and its interval
HERE = Path(__file__).resolve().parent
GIVES = {
    "data": "pairs of every set (`data/ledger.json`)",
    "init": "parameters and vocabulary (`init/certificate.json`)",
    **{side: f"its weights (`{side}/model`)" for side in SIDES},
    "merge": "merge weights (`merge/weights.json`), size and pooling (`merge/model`)",
    "evaluate": "scores and differences (`evaluate/scores.csv`, `evaluate/comparison.csv`)",
}


def render_card(run: RunRecord, config: Config, model_id: str) -> str:
    """The card as Markdown with front matter; `model_id` (a Hub id or a folder) is what its examples load."""
    facts = read_model_facts(run.model_folder("merge"))
    name = model_id.rpartition("/")[2] if model_id.count("/") == 1 else f"{run.folder.name}-merge"
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = templates.get_template("card.md.j2")
    text = template.render(name=name, model_id=model_id, run=run, model=facts, card=_contents(run, facts))
    return f"---\n{front_matter(run, config, name)}\n---\n\n{text}"


def write_readme(run: RunRecord, text: str) -> None:
    """Put the card beside the merged weights as README.md, unless the merge's own manifest accounts for one."""
    manifest = run.stages["merge"].manifest
    if manifest and "model/README.md" in manifest.outputs:
        log.warning("report: merge/model/README.md belongs to the merge and is left as it is")
        return
    with replacing(run.model_folder("merge") / "README.md") as path:
        path.write_text(text, encoding="utf-8")


def _contents(run: RunRecord, facts: ModelFacts) -> dict[str, Any]:
    packages = (run.stages["merge"].manifest.environment.get("packages") or {}) if run.stages["merge"].manifest else {}
    return {
        "summary": _summary(run),
        "facts": _facts(run, facts),
        "steps": _steps(run),
        "weights": (run.weights or {}).get("weights") or {},
        "sets": _sets(run),
        "suites": _suites(run),
        "differences": _differences(run),
        "limits": _limits(run, facts),
        "provenance": _provenance(run),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }


def _summary(run: RunRecord) -> str:
    tuned = "fine-tuning two copies on symmetric and on asymmetric pairs, and merging them"
    if "joint" in _merged(run):
        tuned = "and fine-tuning it on symmetric and asymmetric pairs together"
    return (
        "Embeds Russian texts for search, similarity, classification and clustering. "
        f"Made from {run.base_name} by shrinking its vocabulary, {tuned}."
    )


def _merged(run: RunRecord) -> list[str]:
    """The models that the merge is made of."""
    return (run.weights or {}).get("models") or list(run.plans)


def _facts(run: RunRecord, facts: ModelFacts) -> list[tuple[str, str]]:
    parameters = run.certified("parameters")
    rows = [("Base", run.base_name), ("Dimension", show.count(facts.dimension)), ("Layers", show.count(facts.layers))]
    if parameters:
        rows.append(("Parameters", show.count(parameters[1])))
    rows += [("Vocabulary", show.count(facts.vocabulary)), ("Longest text", f"{show.count(facts.max_length)} tokens")]
    pooling = {"cls": "CLS token", "mean": "mean of the tokens"}[facts.pooling]
    return [*rows, ("Pooling", pooling + (", then length 1" if facts.normalize else ""))]


def _steps(run: RunRecord) -> list[str]:
    sizes = run.certified("vocabulary")
    cut = f" from {show.count(sizes[0])} to {show.count(sizes[1])} ids" if sizes else ""
    languages = f" for {', '.join(spoken)}" if (spoken := run.config.get("languages")) else ""
    steps = [f"The vocabulary of {run.base_name} was cut{cut}{languages}; rows that stay are exact copies."]
    for side in _merged(run):
        if plan := run.plans.get(side):
            seen = f"{show.count(plan.get('batches'))} batches, {show.count(plan.get('rows_seen'))} rows"
            steps.append(f"One copy was fine-tuned on {PAIRS[side]} with {_loss(run, side)}: {seen}.")
    if run.weights:
        method = str(run.weights.get("method"))
        named = method.replace("_", " ")
        by_weights = f"{AVERAGED}, by the method {named}."
        mergekit = f"The models were merged by {named}, through mergekit."
        steps.append(CHOSEN.get(method, mergekit if method in MERGEKIT_METHODS else by_weights))
        if method == "search" and (run.weights.get("guard") or {}).get("limit") is not None:
            steps.append(
                "Candidates that lost more retrieval than the guard allows, on sets never trained on, were left out."
            )
    return steps


def _loss(run: RunRecord, side: str) -> str:
    manifest = run.stages[side].manifest  # a later stage may have been run with other settings of the sides
    settings = ((manifest.config if manifest else {}).get("training") or {}).get(side) or {}
    return "contrastive loss" + (" and AnglE" if settings.get("angle_weight") else "")


def _sets(run: RunRecord) -> list[list[str]]:
    rows = []
    for entry in run.training_sets:
        if entry.get("train"):
            counts = [show.count(entry.get(name) or 0) for name in ("built", "scored", "kept", "train")]
            source = f"{entry.get('source')} at {entry.get('revision')}"
            title, licence = entry.get("title") or entry["name"], str(entry.get("licence") or "not stated")
            if run.bundled(entry):
                source = f"sample of the pipeline's repository, in the layout of {entry.get('source')}"
                licence = "Apache-2.0, written for the pipeline"
            rows.append([title, entry["side"], source, *counts, licence])
    return [[cell.replace("|", "\\|") for cell in row] for row in rows]


def _suites(run: RunRecord) -> list[dict[str, Any]]:
    suites = []
    for table in run.suite_tables():
        rows = [
            [task, metric, show.count(items), *(show.score(cell, IN_BRACKETS) for cell in cells)]
            for task, metric, items, cells in table.rows
        ]
        columns, words = ["task", "metric", "items", *table.models], KINDS.get(run.suite_kind(table.suite), "")
        suites.append({"name": table.suite, "words": words, "columns": columns, "rows": rows})
    return suites


def _differences(run: RunRecord) -> list[list[str]]:
    found = [d for d in run.differences if (d.model, d.against) == ("merge", "base") and d.main]
    return [
        [d.task, d.metric, f"{d.difference:+.3f}", f"{d.ci_low:+.3f} to {d.ci_high:+.3f}", show.p_value(d.p_holm)]
        for d in found
    ]


def _limits(run: RunRecord, facts: ModelFacts) -> list[str]:
    limits = ["Quality on languages other than Russian was not measured."]
    if facts.heads:
        limits.append("The sparse and multi-vector heads are the base's own and were not trained again.")
    else:
        limits.append("Dense vectors only: the base has no sparse and multi-vector heads.")
    real = [entry for entry in run.training_sets if entry.get("train") and not run.bundled(entry)]
    if any(RESTRICTED.search(str(entry.get("licence"))) for entry in real):
        limits.append("Some training sets forbid commercial use; see the table above before you rely on the model.")
    limits.append("Texts that contain pieces outside the kept vocabulary are split otherwise than by the base.")
    worse = [d.task for d in run.differences if (d.model, d.against) == ("merge", "base") and d.ci_high < 0 and d.main]
    if worse:
        limits.append(f"Worse than its base, beyond the confidence interval, on: {', '.join(worse)}.")
    return limits


def _provenance(run: RunRecord) -> list[list[str]]:
    rows = []
    for stage in run.stages.values():
        fingerprint = f"`{stage.manifest.fingerprint[:12]}`" if stage.manifest else show.DASH
        rows.append([stage.name, run.status(stage.name), fingerprint, GIVES[stage.name]])
    return rows

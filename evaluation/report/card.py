"""The merged model's card: front matter for the Hub, usage, and figures that all come from artefacts."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jinja2

from configs.schema.config import SIDES, STAGES, Config
from configs.schema.merging import MERGEKIT_METHODS
from configs.schema.training import PlannedConfig, SideConfig
from evaluation.export.formats import FORMATS
from evaluation.models import ModelFacts, read_model_facts
from evaluation.report import about_cost
from evaluation.report import format as show
from evaluation.report.about_results import ways_to_search
from evaluation.report.charts import signed
from evaluation.report.hub_metadata import front_matter, licence
from evaluation.report.record import RunRecord
from evaluation.results import BM25, EXTRA_MODES
from pipeline.core.console import markdown_table
from pipeline.core.model_folder import HEADS_RECORD

AVERAGED = "The models were averaged with the weights below"
CHOSEN = {  # method -> how the weights were chosen
    "fixed": f"{AVERAGED}, which are set in the config.",
    "lm_cocktail": f"{AVERAGED}, which LM-Cocktail computed from few-shot losses on dev data.",
    "search": f"{AVERAGED}, the best on dev data of a grid of weights from 0 to 1.",
    "search beyond": f"{AVERAGED}, the best on dev data of grids of weights from 0 to 1 and beyond.",
}
KINDS = {  # kind of suite -> what its tasks are
    "retrieval": "Held-out sets of the pipeline: each anchor is a query, the positives of all rows are the candidates.",
    "samples": "Small sets written for the pipeline, scored by the benchmarks' own code; their intervals are wide.",
    "encodechka": "The ten tasks of [encodechka](https://github.com/avidale/encodechka), scored here.",
    "mteb": "Tasks of [MTEB](https://github.com/embeddings-benchmark/mteb), scored here.",
}
PAIRS = {"symmetric": "symmetric pairs", "asymmetric": "asymmetric pairs", "joint": "pairs of both kinds"}
# Options of a single side with their defaults, except AnglE's, which have a row of their own.
OWN = asdict(SideConfig()).keys() - asdict(PlannedConfig()).keys() - {"angle_weight", "angle_scale"}
OPTIONS = {name: value for name, value in asdict(SideConfig()).items() if name in OWN}
IN_BRACKETS = "{} [{}, {}]"  # a score and its interval
HERE = Path(__file__).resolve().parent
GIVES = {
    "data": "pairs of every set (`data/ledger.json`)",
    "init": "parameters and vocabulary (`init/certificate.json`)",
    **{side: f"its weights (`{side}/model`)" for side in SIDES},
    "merge": "merge weights (`merge/weights.json`), size and pooling (`merge/model`)",
    "heads": "sparse and multi-vector heads (`heads/model`)",
    "export": "the exports' files, speeds and agreement (`export/manifest.json`)",
    "evaluate": "scores and differences (`evaluate/scores.csv`, `evaluate/comparison.csv`)",
}


def render_card(run: RunRecord, config: Config, model_id: str) -> str:
    """The card as Markdown with front matter; `model_id` (a Hub id or a folder) is what its examples load."""
    facts = read_model_facts(run.model_folder("merge"))
    # Escaped for Python string literals: a prompt may contain quotes and line breaks.
    quoted = {kind: json.dumps(text, ensure_ascii=False)[1:-1] for kind, text in facts.prompts.items()}
    facts = replace(facts, prompts=quoted)
    name = model_id.rpartition("/")[2] if model_id.count("/") == 1 else f"{run.folder.name}-merge"
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.globals["table"] = markdown_table
    template = templates.get_template("card.md.j2")
    on_hub, local = model_id == config.evaluation.publish.repo, model_id == run.model_folder("merge").as_posix()
    exports = "." if on_hub else config.folder("export").as_posix() if local else model_id
    context = {"name": name, "model_id": model_id, "on_hub": on_hub, "card": _contents(run, config, facts, exports)}
    text = template.render(**context, run=run, model=facts)
    return f"---\n{front_matter(run, config, name)}\n---\n\n{text}"


def _contents(run: RunRecord, config: Config, facts: ModelFacts, exports: str) -> dict[str, Any]:
    """The template's contents; `exports` is the folder that exports are loaded from."""
    loaded = {name: FORMATS[name].line.format(folder=exports) for name in about_cost.exported(run)}
    return {
        "summary": _summary(run),
        "facts": _facts(run, facts),
        "steps": _steps(run),
        "weights": [(name, f"{weight:.4f}") for name, weight in ((run.weights or {}).get("weights") or {}).items()],
        "training": _training(run),
        "sets": _sets(run),
        "benchmarks": _benchmarks(run),
        "found": _found(run),
        "suites": _suites(run),
        "cost": about_cost.table(run, IN_BRACKETS),
        "cost_words": about_cost.words(run),
        "exports": [(name, f"`{line}`") for name, line in loaded.items()],
        "graph": loaded.get("onnx-int8") or loaded.get("onnx"),
        "dimensions": about_cost.fewer_dimensions(run),
        "modes": _modes(run),
        "scored_in": run.config_of("evaluate")["evaluation"]["precision"],
        "reference": run.reference,
        "differences": _differences(run),
        "heads": _heads(run),
        "limits": _limits(run, facts),
        "licence": _licence(run, config),
        "provenance": _provenance(run),
        "packages": _packages(run),
    }


def _summary(run: RunRecord) -> str:
    weights = (run.weights or {}).get("weights") or {}
    taken = [name for name in _merged(run) if weights.get(name, 1)]
    sides, others = [name for name in taken if name in SIDES], [name for name in taken if name not in STAGES]
    ways = [" and then on ".join(PAIRS[step] for step in _course(run, side)) for side in sides]
    tuned = f"it on {ways[0]}" if len(ways) == 1 else " and ".join(f"one copy on {way}" for way in ways)
    merged = {
        "it": len(sides) == 1,
        "them": len(sides) > 1,
        "the shrunk base" if run.is_cut else "the base": "init" in taken,
        "a model of another run": len(others) == 1,
        f"{len(others)} models of other runs": len(others) > 1,
    }
    methods = {
        "shrinking its vocabulary": run.is_cut and others != taken,
        f"fine-tuning {tuned}": sides,
        f"merging {' with '.join(name for name, there in merged.items() if there)}": len(taken) > 1 or others,
    }
    *first, last = [part for part, there in methods.items() if there] or ["nothing"]
    by = ", ".join([*first, f"and {last}"]) if first else last
    purpose = f"Embeds texts in {_languages(run)} for search, similarity, classification and clustering."
    return f"{purpose} Made from {run.base_name} by {by}."


def _languages(run: RunRecord) -> str:
    """The names of the model's languages, or the codes of those without a name."""
    from transformers.models.whisper.tokenization_whisper import LANGUAGES  # names by ISO 639-1 code; takes a second

    names = [LANGUAGES[code].title() if code in LANGUAGES else code for code in run.languages]
    *first, last = names or ["the base's languages"]
    return f"{', '.join(first)} and {last}" if first else last


def _merged(run: RunRecord) -> list[str]:
    """The merged models."""
    return (run.weights or {}).get("models") or list(run.plans)


def _facts(run: RunRecord, facts: ModelFacts) -> list[tuple[str, str]]:
    parameters = run.certified("parameters")
    rows = [("Base", run.base_name), ("Dimension", show.count(facts.dimension)), ("Layers", show.count(facts.layers))]
    if parameters:
        rows.append(("Parameters", show.count(parameters[1])))
    rows += [("Vocabulary", show.count(facts.vocabulary)), ("Maximum length", f"{show.count(facts.max_length)} tokens")]
    pooling = {"cls": "CLS token", "mean": "mean of the tokens", "lasttoken": "last token"}[facts.pooling]
    return [*rows, ("Pooling", pooling + (", scaled to length 1" if facts.normalize else ""))]


def _steps(run: RunRecord) -> list[str]:
    sizes = run.certified("vocabulary")
    cut = f" from {show.count(sizes[0])} to {show.count(sizes[1])} ids" if sizes else ""
    change = f"cut{cut} for {_languages(run)}; the rows kept are exact copies" if run.is_cut else "kept"
    steps = [f"The vocabulary of {run.base_name} was {change}."]
    for side in _sides(run):
        plan, start = run.plans[side], _start(run, side)
        copy = "One copy" if start == "init" else f"A copy of {start}"
        seen = f"{show.count(plan.get('batches'))} batches, {show.count(plan.get('rows_seen'))} rows"
        losses = "contrastive loss" + (" and AnglE" if _side(run, side).get("angle_weight") else "")
        steps.append(f"{copy} was fine-tuned on {PAIRS[side]} with {losses}: {seen}.")
    if run.weights:
        method = str(run.weights.get("method"))
        named = method.replace("_", " ")
        by_weights = f"{AVERAGED}, with the method {named}."
        mergekit = f"The models were merged by {named}, through mergekit."
        beyond = " beyond" if method == "search" and run.config_of("merge")["merging"]["extrapolate"] else ""
        steps.append(CHOSEN.get(method + beyond, mergekit if method in MERGEKIT_METHODS else by_weights))
        if method == "search" and (run.weights.get("guard") or {}).get("limit") is not None:
            steps.append(
                "Candidates that lost more retrieval than the guard allows, on sets never trained on, were excluded."
            )
    return steps


def _side(run: RunRecord, side: str) -> dict[str, Any]:
    """The settings that a side was trained with."""
    return run.config_of(side)["training"][side]


def _start(run: RunRecord, side: str) -> str:
    """The model that a side's training started from."""
    return str(_side(run, side).get("start") or "init")


def _course(run: RunRecord, side: str) -> list[str]:
    """The sides that were trained one after another, up to this one."""
    start = _start(run, side)
    return [*([] if start == "init" else _course(run, start)), side]


def _sides(run: RunRecord) -> list[str]:
    """The merged sides that have a plan, each after those that it started from."""
    steps = [step for name in _merged(run) if name in SIDES for step in _course(run, name)]
    return [step for step in dict.fromkeys(steps) if step in run.plans]


def _training(run: RunRecord) -> list[list[str]]:
    """A table of each side's training settings, header first, with the options that any side sets."""
    sides = _sides(run)
    columns = [_trained(run, side) | _options(run, side) for side in sides]
    unset = {name: show.DASH for column in columns for name in column}
    return [["", *sides], *([name, *((unset | column)[name] for column in columns)] for name in unset)]


def _trained(run: RunRecord, side: str) -> dict[str, str]:
    """One side's training settings, by name."""
    made, settings, config = run.made.get(side), _side(run, side), run.config_of(side)
    precision = made.metrics.get("precision") if made else None
    angle = f"{settings['angle_weight']:g}, scale {settings['angle_scale']:g}" if settings["angle_weight"] else "off"
    return {
        "learning rate": f"{settings['learning_rate']:g}",
        "schedule": f"{settings['schedule'].replace('_', ' ')}, warm-up {settings['warmup']:g} of the steps",
        "weight decay": f"{settings['weight_decay']:g}",
        "rows per batch": show.count(settings["batch_size"]),
        "epochs": f"{settings['epochs']:g}",
        "steps": show.count(run.plans[side].get("batches")),
        "maximum tokens of an anchor": _length(settings, "anchor_length"),
        "maximum tokens of a positive or negative": _length(settings, "positive_length"),
        "maximum negatives per row": show.count(settings["negatives"]),
        "temperature": f"{settings['temperature']:g}",
        "AnglE weight": angle,
        "precision": str(precision or config["precision"]),
        "seed": str(config["seed"] if (own := config["training"].get("seed")) is None else own),
        "hardware": _hardware(made.environment if made else {}),
    }


def _options(run: RunRecord, side: str) -> dict[str, str]:
    """A side's other options that differ from their defaults, by name; and jointly trained heads."""
    settings, heads = _side(run, side), run.config_of(side)["training"]["heads"]
    joint = {"heads trained jointly": f"learning rate {heads['learning_rate']:g}"} if heads["kind"] == "joint" else {}
    found = {name: settings.get(name, unset) for name, unset in OPTIONS.items()}
    return joint | {name.replace("_", " "): _shown(value) for name, value in found.items() if value != OPTIONS[name]}


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _length(settings: dict[str, Any], name: str) -> str:
    """A side's limit, with the limits of single sets in brackets."""
    own = [f"{of} {show.count(found[name])}" for of, found in settings["sets"].items() if found.get(name)]
    return show.count(settings[name]) + (f" ({', '.join(own)})" if own else "")


def _hardware(environment: dict[str, Any]) -> str:
    """The processors that a stage ran on."""
    processes = environment.get("processes") or 1
    if gpu := environment.get("gpu"):
        return f"{processes} × {gpu}, driver {environment.get('gpu_driver') or 'unknown'}"
    cores = f"CPU, {environment.get('cores', '?')} cores"
    return cores if processes == 1 else f"{cores}, {processes} processes"


def _sets(run: RunRecord) -> list[list[str]]:
    rows = []
    for entry in run.training_sets:
        if entry["train"]:
            counts = [show.count(entry[name]) for name in ("built", "scored", "kept", "train")]
            real = {"source": f"{entry['source']} at {entry['revision']}", "licence": entry["licence"]}
            shown = real | run.of_samples(entry)
            rows.append([entry["title"], entry["side"], shown["source"], *counts, shown["licence"]])
    return rows


def _benchmarks(run: RunRecord) -> str:
    """How training texts were checked against benchmark texts."""
    account = (run.ledger or {}).get("evaluations") or {}
    missing = ", ".join(account.get("not_checked") or {})
    unseen = f" Not compared, as their texts were not available: {missing}." if missing else ""
    if not account.get("checked"):
        return f"The pairs were not compared with benchmark texts.{unseen}"
    compared = f"The pairs were compared with the test texts of {show.count(len(account['checked']))} benchmark tasks"
    kept = "matches were counted but **stayed in training**" if _reports(run) else "pairs with a match were removed"
    return f"{compared}; {kept}.{unseen}"


def _reports(run: RunRecord) -> bool:
    """Whether benchmark texts were only counted, not removed."""
    return run.config_of("data")["data"]["decontamination"]["mode"] == "report"


def _found(run: RunRecord) -> list[list[str]]:
    """Benchmark texts that stayed in training: set, benchmark task, and how many were found among the built pairs."""
    entries = [entry for entry in run.training_sets if entry["train"]] if _reports(run) else []
    return [
        [entry["title"], task.replace("evaluation: ", ""), show.count(texts)]
        for entry in entries
        for task, texts in entry["reported"].items()
    ]


def _suites(run: RunRecord) -> list[dict[str, Any]]:
    suites = []
    for suite, models, lines in run.suite_tables():
        rows = [
            [task, metric, show.count(items or None), *(show.score(cell, IN_BRACKETS) for cell in cells)]
            for task, metric, items, cells in lines
        ]
        columns, words = ["task", "metric", "items", *models], KINDS.get(run.suite_kind(suite), "")
        suites.append({"name": suite, "words": words, "columns": columns, "rows": rows})
    return suites


def _modes(run: RunRecord) -> list[dict[str, Any]]:
    """A table per task of every way to search with the final model, next to the reference and BM25."""
    shown = {run.reference, "merge", BM25, *(f"merge.{mode}" for mode in EXTRA_MODES)}
    tables = []
    for (suite, task), (columns, rows) in ways_to_search(run, IN_BRACKETS).items():
        fitted = run.notes.get(f"{suite}/{task}", {}).get("fitted weights", {})
        weights = ", ".join(f"{weight:g} {mode.replace('_', '-')}" for mode, weight in fitted.items())
        rows = [row for row in rows if row[0] in shown]
        tables.append({"name": f"{task} of {suite}", "columns": columns, "rows": rows, "weights": weights})
    return tables


def _differences(run: RunRecord) -> list[list[str]]:
    return [
        [d.task, d.suite, d.metric, signed(d.difference, 3), show.interval(d), show.p_value(d.p_holm)]
        for d in run.main_differences("merge", run.reference)
    ]


def _heads(run: RunRecord) -> str:
    """How the final model's heads were made."""
    if run.final == "heads":
        return "were fitted to the merged encoder, on the asymmetric sets"
    if (run.model_folder("merge") / HEADS_RECORD).is_file():
        return "were trained with the sides' encoders and merged with them"
    return "are the base's own and were not trained again"


def _limits(run: RunRecord, facts: ModelFacts) -> list[str]:
    made = "The vocabulary was cut" if run.is_cut else "Trained"
    limits = [f"{made} for {_languages(run)}; quality in other languages was not measured."]
    if facts.heads:
        limits.append(f"The sparse and multi-vector heads {_heads(run)}.")
    else:
        limits.append("Dense vectors only: the base has no sparse or multi-vector heads.")
    if run.restricted_sets:
        limits.append("The terms of some training sets restrict what the model may be used for; see Licence.")
    if tasks := sorted({task for _, task, _ in _found(run)}):
        limits.append(f"Test texts of {', '.join(tasks)} were trained on, so scores there may be too high.")
    if run.is_cut:
        limits.append("Texts that contain tokens outside the kept vocabulary are tokenised differently from the base.")
    if worse := [f"{d.task} of {d.suite}" for d in run.main_differences("merge", run.reference) if d.ci_high < 0]:
        limits.append(f"Worse than {run.reference}, beyond the confidence interval, on: {', '.join(worse)}.")
    return limits


def _licence(run: RunRecord, config: Config) -> str:
    """The licence in words, before the list of sets that restrict it."""
    chosen = licence(run, config)
    named = "No one licence covers this model" if chosen == "other" else f"The licence is {chosen}"
    if not run.restricted_sets:
        return f"{named}."
    return f"{named}. The terms of these training sets rule out some uses, and may apply to the model too:"


def _provenance(run: RunRecord) -> list[list[str]]:
    rows = []
    for name, made in run.stages.items():
        facts = made.environment if made else {}
        commit, _, changed = str(facts.get("commit") or "").partition("-")
        code = f"`{commit[:12]}`{', changed' if changed else ''}" if commit else show.DASH
        fingerprint, machine = (f"`{made.fingerprint[:12]}`", _hardware(facts)) if made else (show.DASH, show.DASH)
        rows.append([name, run.status(name), fingerprint, code, machine, GIVES[name]])
    return rows


def _packages(run: RunRecord) -> str:
    """Package versions; all of them for a package that changed between stages."""
    found: dict[str, dict[str, None]] = {}
    for made in run.made.values():
        for name, version in (made.environment.get("packages") or {}).items():
            found.setdefault(name, {})[version] = None
    return ", ".join(f"{name} {' and '.join(versions)}" for name, versions in found.items())

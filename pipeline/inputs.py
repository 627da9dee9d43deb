"""What the stages of the chain need, read and are configured by, and what they write outside their folders.

All of it is evaluated whenever a command starts, so nothing here imports torch or mteb.
"""

import importlib.metadata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.schema.config import Config
from configs.schema.evaluation import SuiteConfig
from data.fingerprints import data_states, model_state
from evaluation.models import final_stage, heads_fingerprint, scored_models
from evaluation.report.record import reported
from evaluation.suites.sample_files import FOLDER
from pipeline.core.artefact import file_sha256, is_complete, json_sha256, read_manifest, result_settings


def complete_stages(config: Config, names: Iterable[str]) -> list[str]:
    """The given stages that are complete in this run."""
    return [name for name in names if is_complete(config.folder(name))]


def benchmark_settings(config: Config) -> dict[str, Any]:
    """The suites whose texts are removed from training or reported, and where their data come from."""
    chosen = config.data.checked_suites
    suites = {name: suite_settings(config.evaluation.suite.get(name)) for name in chosen}
    places = {"encodechka": config.evaluation.encodechka_folder, "mirror": config.mirror} if chosen else {}
    return {"suites": suites, **places}


def suite_settings(suite: SuiteConfig | None) -> dict[str, Any] | None:
    """The settings a suite's tasks depend on; those of shortened and quantised vectors only if it scores them."""
    if suite is None:
        return None
    others = () if suite.kind == "vectors" else ("dimensions", "precisions")
    return {name: value for name, value in result_settings(suite).items() if name not in others}


def benchmark_reads(config: Config) -> dict[str, str]:
    """The bundled samples, and mteb's version, which fixes the revisions of its data."""
    samples = {f"sample:{file.name}": file_sha256(file) for file in sorted(FOLDER.glob("*.jsonl"))}
    return samples | mteb_version(bool(config.data.checked_suites))


def mteb_version(is_used: bool) -> dict[str, str]:
    """The release of mteb, if a stage uses it: tasks, data and scores differ between releases."""
    return {"package:mteb": importlib.metadata.version("mteb")} if is_used else {}


def data_needs(config: Config) -> list[str]:
    """The benchmarks' texts, and this run's model that mines negatives, if one does."""
    return ["benchmarks", *config.auxiliary_models("data", own=True).values()]


def data_reads(config: Config) -> dict[str, str]:
    """The sets' files and versions, and which evaluations were checked if some were not: a later try may reach more."""
    found = read_manifest(config.folder("benchmarks"))
    is_partial = found is not None and found.metrics.get("not checked")
    return data_states(config) | ({"evaluations checked": json_sha256(found.metrics)} if found and is_partial else {})


def side_needs(config: Config, name: str) -> list[str]:
    """Data, the model that training starts from, and this run's models that guide or teach."""
    own = config.auxiliary_models(name, own=True).values()
    return list(dict.fromkeys(["data", config.side(name).start, *own]))


def side_reads(config: Config, name: str) -> dict[str, str]:
    """The contents of a guide or teacher from outside the run."""
    others = config.auxiliary_models(name, own=False)
    return {key.rpartition(".")[2]: json_sha256(model_state(model, config.mirror)) for key, model in others.items()}


def dev_settings(config: Config) -> dict[str, int]:
    """Which dev texts the sides and the merge are scored on."""
    return {"rows": config.training.dev_rows, "length": config.training.dev_length}


def heads_settings(config: Config) -> dict[str, Any]:
    """What sides and merge depend on when heads are trained jointly; nothing otherwise."""
    heads = config.training.heads
    return {"heads": heads.learning_rate} if heads.kind == "joint" else {}


def evaluate_settings(config: Config) -> dict[str, Any]:
    """The suites that are run, the mirror that mteb reads, and the languages whose stemmers BM25 uses."""
    chosen = {name: config.evaluation.suite[name] for name in config.evaluation.suites}
    kinds = {suite.kind for suite in chosen.values()}
    mirror = {"mirror": config.mirror} if "mteb" in kinds else {}
    languages = {"languages": config.languages} if "retrieval" in kinds else {}
    suites = {name: suite_settings(suite) for name, suite in chosen.items()}
    evaluation = result_settings(replace(config.evaluation, models=[]))
    return {"evaluation": evaluation | {"suite": suites}, **mirror, **languages}


def evaluate_needs(config: Config) -> list[str]:
    """The chain's complete models, with the final one for merge, and data if held-out sets are scored."""
    held_out = any(config.evaluation.suite[name].kind in ("retrieval", "vectors") for name in config.evaluation.suites)
    chosen = [final_stage(config) if name == "merge" else name for name in config.evaluation.chain]
    return ["data"] * held_out + complete_stages(config, chosen)


def evaluate_reads(config: Config) -> dict[str, str]:
    """The contents of models that are not artefacts of this run, and of their heads; mteb's version if it scores."""
    by_mteb = any(config.evaluation.suite[name].kind in ("mteb", "samples") for name in config.evaluation.suites)
    return {
        model.name: " ".join(filter(None, (model.fingerprint, heads_fingerprint([model.folder]))))
        for model in scored_models(config)
        if model.artefact is None
    } | mteb_version(by_mteb)


def report_settings(config: Config) -> dict[str, Any]:
    licence = config.evaluation.publish.licence
    return {"report": config.evaluation.report, "licence": licence, "languages": config.languages, "base": config.base}


def report_reads(config: Config) -> dict[str, str]:
    """The state of stages that were begun but are not complete, so that the page is rebuilt when it changes."""
    manifests = {name: read_manifest(config.folder(name)) for name in reported(config.training.heads.kind)}
    return {
        name: f"{found.status} {found.fingerprint}"
        for name, found in manifests.items()
        if found and found.status != "complete"
    }


def readme_of_merge(config: Config) -> list[Path]:
    """The card that the report writes into the final model's folder, where it disappears if that is rebuilt."""
    final = config.folder(final_stage(config))
    return [final / "model" / "README.md"] if is_complete(final) else []

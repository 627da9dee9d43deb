"""A small run's artefacts in the layout of the stages, for tests of what reads them."""

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

from configs.schema.config import Config
from configs.schema.data import CardCount, SourceConfig
from configs.schema.evaluation import EvaluationConfig, SuiteConfig
from data.ledger import SetCounts, entry
from evaluation.results import Difference, Score
from pipeline.core.artefact import Manifest, describe_outputs
from tests.support.small_bases import tiny_model

MODELS = ("base", "init", "symmetric", "asymmetric", "merge")
PLACE = {"init": "", "symmetric": "model", "asymmetric": "model", "merge": "model"}
CHAIN_INPUTS: dict[str, list[str]] = {
    "data": [],
    "init": ["data"],
    "symmetric": ["data", "init"],
    "asymmetric": ["data", "init"],
    "merge": ["init", "symmetric", "asymmetric", "data"],
    "evaluate": ["init", "symmetric", "asymmetric", "merge", "data"],
}
SAMPLE_SCORES = {
    place: dict(zip(MODELS, (start, start, start + 0.01, start + 0.05, start + 0.04), strict=True))
    for place, start in {
        ("wiktionary", "term_to_definition", "recall_at_1"): 0.30,
        ("encodechka", "STS", "spearman"): 0.80,
        ("encodechka", "TI", "roc_auc"): 0.91,
    }.items()
}
ENVIRONMENT = {
    **{"python": "3.11.2", "platform": "Linux", "cores": 2, "processes": 1, "gpu": None, "gpu_driver": None},
    **{"commit": "c" * 40, "packages": {"torch": "2.13.0", "numpy": "2.4.6"}},
}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 60 40"><rect width="60" height="40" fill="#fff"/></svg>'


def run_config(runs: Path, run: str = "sample", **changes: Any) -> Config:
    """The root config of the sample run."""
    suites = {"wiktionary": SuiteConfig(kind="retrieval"), "encodechka": SuiteConfig(kind="encodechka")}
    evaluation = EvaluationConfig(suites=list(suites), suite=suites | {"card_30": SuiteConfig(kind="mteb")})
    config = Config(profile="tiny", run=run, runs=str(runs), evaluation=evaluation, mirror="data/samples")
    return dataclasses.replace(config, **changes)


def write_run(
    runs: Path, model: Path | None = None, stages: tuple[str, ...] = tuple(CHAIN_INPUTS), run: str = "sample"
) -> Config:
    """Write the artefacts of `stages`, complete, with `model` or a tiny one as init, sides and merge."""
    config, model = run_config(runs, run), model or tiny_model()
    for name in stages:
        folder = config.folder(name)
        folder.mkdir(parents=True)
        if name in PLACE:
            shutil.copytree(model, folder / PLACE[name], dirs_exist_ok=True)
        metrics = {"data": data, "init": init, "merge": merge, "evaluate": evaluate}.get(name, side)(folder)
        finish(config, name, metrics)
    return config


def finish(config: Config, name: str, metrics: dict[str, Any], status: str = "complete") -> None:
    """Write the manifest of a stage whose files exist."""
    folder = config.folder(name)
    Manifest(
        stage=name,
        status=status,
        fingerprint=f"{name:x<12}".encode().hex() * 2,
        inputs={other: f"{other:x<12}".encode().hex() * 2 for other in CHAIN_INPUTS.get(name, ["merge"])},
        config=dataclasses.asdict(config),
        outputs=describe_outputs(folder),
        metrics=metrics,
        environment=ENVIRONMENT,
        seconds=12.5 if name == "data" else 241.0,
        peak_rss_bytes=1_240_000_000,
    ).write(folder)


def data(folder: Path) -> dict[str, Any]:
    """Three sets: one that equals the card's, one that differs, one that is not on the card."""
    sets = [
        ledger_line("terra", "TERRa", "symmetric", built=1359, card=1359, source="RussianNLP/russian_super_glue"),
        ledger_line("gsm8k_ru", "GSM8K-ru", "asymmetric", built=7473, card=7470, source="d0rj/gsm8k-ru"),
        ledger_line("gazeta", "Gazeta", "asymmetric", built=90, card=121928, source="IlyaGusev/gazeta"),
        ledger_line("wiktionary_terms", "Wiktionary <terms>", "held_out", built=1500, card=None, source="wiki.Reader"),
    ]
    counts = ("raw", "built", "kept", "train", "dev", "negatives")
    totals = {name: sum(line[name] for line in sets if line["side"] != "held_out") for name in counts}
    write_json(folder / "ledger.json", {"sets": sets, "totals": totals | {"negatives_the_card_counts": 0}})
    return {"pairs": totals["train"]}


def ledger_line(name: str, title: str, side: str, *, built: int, card: int | None, source: str) -> dict[str, Any]:
    licence = "CC-BY-NC-SA-4.0" if name == "gazeta" else "MIT"
    settings = SourceConfig(title=title, side=side, hub=source, licence=licence, card=CardCount(pairs=card))
    counts = SetCounts(
        raw=built + 11, built=built, kept=built - 20, train=0 if side == "held_out" else built - 40, dev=20
    )
    counts.dropped.update({"duplicate": 15, "too short": 5})
    return entry(name, settings, vars(counts) | {"revision": "mirror of main" if name == "gsm8k_ru" else "f" * 40})


def init(folder: Path) -> dict[str, Any]:
    certificate = {
        "guarantee": "A text whose pieces are all kept has the same embedding as before, bit by bit.",
        "vocabulary_before": 2000,
        "vocabulary_after": 400,
        "padding_rows_dropped": 0,
        "parameters_before": 96_000,
        "parameters_after": 70_384,
        "pinned": {"piece": "ъ", "score": -20.36, "old_id": 1999, "new_id": 399},
        "languages": {"ru": {"pieces": 390, "pieces_kept": 380, "occurrences": 9000, "occurrences_kept": 1.0}},
        "checked": {"pairs": {"source": "stage data", "texts": 12_000, "covered": 11_912, "coverage": 0.9927}},
        "hidden_states": {"texts": 64, "tokens": 905, "bitwise_equal": True, "largest_difference": 0.0},
    }
    write_json(folder / "certificate.json", certificate)
    return {"vocabulary": 400}


def side(folder: Path) -> dict[str, Any]:
    entry = {"batches": 300, "rows_seen": 19_200, "tokens": 512_345, "padding_share": 0.0312, "angle_share": 0.25}
    sets = {"terra": {"rows": 1319, "left_out": {"repeated text": 3}, **entry}}
    write_json(folder / "plan.json", {"digest": "d" * 64, "batch_size": 64, **entry, "sets": sets})
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, 301):
            loss = 0.4 + 2.3 * math.exp(-step / 60) + 0.1 * math.sin(step)
            line = {"step": step, "loss": loss, "contrastive": loss * 0.7, "angle": loss * 0.3}
            file.write(json.dumps({**line, "learning_rate": 2e-5 * step / 300, "set": "terra"}) + "\n")
            if step % 100 == 0:
                file.write(json.dumps({"step": step, "dev_terra_score": 0.5 + step / 1000}) + "\n")
    return {"steps": 300, "loss": 0.412}


def merge(folder: Path) -> dict[str, Any]:
    rows = []
    for first in (0.0, 0.25, 0.5):
        weights = {"weight_init": 1 - 2 * first, "weight_symmetric": first, "weight_asymmetric": first}
        scores = {"dev": 0.6 + first / 5, "symmetric": 0.6, "asymmetric": 0.6 + first / 2.5}
        scores |= {"guard_loss": 0.004, "guard_loss_low": -0.002, "guard_loss_high": 0.011}
        rows.append({"origin": "search", **weights, **scores, "allowed": True})
    chosen = {name: rows[1][f"weight_{name}"] for name in ("init", "symmetric", "asymmetric")}
    found = {
        "method": "search",
        "models": ["init", "symmetric", "asymmetric"],
        "weights": chosen,
        "dtype": "float32",
        "losses": {"init": 1.91, "symmetric": 1.72, "asymmetric": 1.33},
        "temperature": 5.0,
        "compared": {"init": rows[0], "search": rows[1]},
    }
    write_json(folder / "weights.json", found)
    write_csv(folder / "search.csv", rows)
    (folder / "simplex.svg").write_text(SVG, encoding="utf-8")
    return {"method": "search", "candidates": 3}


def evaluate(folder: Path) -> dict[str, Any]:
    scores, differences = [], []
    for (suite, task, metric), values in SAMPLE_SCORES.items():
        for model, value in values.items():
            scores.append(Score(model, suite, task, metric, value, value - 0.02, value + 0.02, 1500, 3.2))
        change = values["merge"] - values["base"]
        numbers = (change, change - 0.013, change + 0.013, 0.0002, 0.0006, "bootstrap", 1500, True)
        differences.append(Difference("merge", "base", suite, task, metric, *numbers))
    Score.write(folder / "scores.csv", scores)
    Difference.write(folder / "comparison.csv", differences)
    return {"tasks": 3}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)

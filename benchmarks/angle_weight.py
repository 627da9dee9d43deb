"""What AnglE is worth: `make bench NAME=angle_weight`, five weights beside the contrastive loss, three seeds each.

The demo's base is trained on the symmetric part of the real data (headlines that paraphrase each other, nearly or not
at all; entailments, neutral pairs and contradictions) for as many steps with every weight. A seed decides about the dev
rows, the batches and the dropout; all weights of a seed share them. Scores are those of the held-out dev rows.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.measurement import Side, measure
from benchmarks.real_texts import require_shared
from benchmarks.start import demo_config
from data.config import SourceConfig
from pipeline.config import Config
from pipeline.console import show_table

WEIGHTS = (0.0, 0.02, 0.1, 0.3, 1.0)
SEEDS = (1, 2, 3)
STEPS = 100
MEASURES = {
    "spearman": "Spearman's correlation of label and cosine",
    "ranking": "average precision of paraphrases and entailments among all pairs",
    "retrieval": "nDCG@10 of finding them among all texts",
}


def main() -> None:
    """Train and score all of them; write `runs/bench/angle_weight.json` and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/bench/angle_weight"), help="scratch space: 2 GB")
    options = parser.parse_args()
    results = []
    for seed in SEEDS:
        for weight in WEIGHTS:
            arguments = {"runs": str(options.runs), "seed": seed, "weight": weight}
            results.append(arguments | measure(Side("benchmarks.angle_weight:train", arguments)).result)
    path = options.runs.with_suffix(".json")
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    rows = [[weight, *(spread(results, weight, measure) for measure in MEASURES)] for weight in WEIGHTS]
    show_table(f"dev scores, mean ± standard deviation of {len(SEEDS)} seeds → {path}", ["weight", *MEASURES], rows)


def spread(results: list[dict[str, Any]], weight: float, measure: str) -> str:
    """Mean and standard deviation over the seeds."""
    scores = [result[measure] for result in results if result["weight"] == weight]
    return f"{statistics.mean(scores):.4f} ± {statistics.stdev(scores):.4f}"


def train(runs: str, seed: int, weight: float) -> dict[str, float]:
    """One training from prepared data; returns its dev scores, each the mean over the two sets."""
    from data.prepare import STAGE as DATA
    from pipeline.stage import run_stage
    from training.bases.stage import ensure_base
    from training.finetune import stage_for
    from training.initialize import STAGE as INIT

    config = configured(Path(runs), seed, weight)
    ensure_base(config)
    run_stage(DATA, config)
    run_stage(INIT, config)
    run_stage(stage_for(config), config)
    return dev_scores(config)


def configured(runs: Path, seed: int, weight: float) -> Config:
    """Profile `demo` with the two sets in place of its own."""
    folder, config = require_shared() / "training", demo_config()
    config.runs, config.run, config.seed, config.side = str(runs), f"seed{seed}", seed, "symmetric"
    config.data.held_out = {}
    kinds = ("entailment", "neutral", "contradiction")
    config.data.sources = {
        "paraphraser": labelled_pairs(folder / "paraphraser.jsonl", "text_1", "text_2", ("1", "0", "-1")),
        "sick": labelled_pairs(folder / "sick_ru.jsonl", "premise", "hypothesis", kinds),
    }
    side = config.training.symmetric
    side.angle_weight, side.max_steps, side.dev_steps = weight, STEPS, None
    return config


def labelled_pairs(path: Path, premise: str, hypothesis: str, labels: tuple[str, str, str]) -> SourceConfig:
    """A set whose `labels` say, in this order, that a pair is alike (score 1), in between (0.5) or unlike (0)."""
    return SourceConfig(
        title=path.stem,
        side="symmetric",
        path=str(path),
        format="jsonl",
        construction="nli",
        columns={"premise": premise, "hypothesis": hypothesis, "label": "label"},
        labels=dict(zip(labels, ("entailment", "neutral", "contradiction"), strict=True)),
        scores={"neutral": 0.5, "contradiction": 0.0},
        negative_label=None,
    )


def dev_scores(config: Config) -> dict[str, float]:
    """The trainer's correlation, and the two measures by which merges are chosen."""
    from merging.blend import Blend
    from merging.dev_scores import TextBank, set_tasks
    from merging.dev_sets import read_dev_sets
    from pipeline.artefact import read_manifest

    manifest = read_manifest(config.folder("symmetric"))
    assert manifest is not None
    blend = Blend({"symmetric": config.folder("symmetric") / "model"}, max_length=128)
    bank = TextBank(blend, batch=64)
    tasks = [set_tasks(pairs, bank) for pairs in read_dev_sets(config.folder("data"))]
    embeddings = bank.encode()
    scores = [measured.scores(embeddings) for measured in tasks]
    means = {name: statistics.mean(score[name] for score in scores) for name in ("ranking", "retrieval")}
    return {"spearman": manifest.metrics["dev_score"], **means}


if __name__ == "__main__":
    main()

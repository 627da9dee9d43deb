"""What AnglE is worth: `make bench NAME=angle_weight`, five weights beside the contrastive loss, three seeds each.

The demo's base is trained on the symmetric part of the real data (headlines that paraphrase each other, nearly or not
at all; entailments, neutral pairs and contradictions) for as many steps with every weight. A seed decides about the
batches; all weights of a seed share them. The scores are those of dev rows, the same for all, that share no text with
training.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from benchmarks.measurement import Side, measure
from benchmarks.real_texts import require_shared
from benchmarks.start import demo_config
from configs.schema.config import Config
from configs.schema.data import SourceConfig
from pipeline.core.console import show_table
from pipeline.core.seeding import generator

WEIGHTS = (0.0, 0.02, 0.1, 0.3, 1.0)
SEEDS = (1, 2, 3)
STEPS = 100
DEV_SHARE = 0.12  # of the groups of pairs that share texts
LARGEST_DEV_GROUP = 20  # pairs; larger groups are trained on
SETS = {  # file -> its two texts, and what it calls pairs that are alike (score 1), in between (0.5) and unlike (0)
    "paraphraser": ("text_1", "text_2", ("1", "0", "-1")),
    "sick_ru": ("premise", "hypothesis", ("entailment", "neutral", "contradiction")),
}
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
    from pipeline.run import run

    config = configured(Path(runs), seed, weight)
    run(config)
    return dev_scores(config)


def configured(runs: Path, seed: int, weight: float) -> Config:
    """Profile `demo` with the two sets in place of its own."""
    mirror, config = runs / "sets", demo_config()
    config.runs, config.run, config.seed = str(runs), f"seed{seed}", seed
    config.stages, config.launch.config = ["data", "init", "symmetric"], "none"
    config.mirror, config.data.held_out, config.data.dev.anchors = str(mirror), {}, 2000
    config.data.sources = {name: split_set(name, mirror) for name in SETS}
    side = config.training.symmetric
    side.angle_weight, side.max_steps, side.dev_steps = weight, STEPS, None
    config.training.dev_rows, config.training.dev_length = 2000, 128
    return config


def split_set(name: str, mirror: Path) -> SourceConfig:
    """Write a set's train.jsonl and dev.jsonl into its folder of `mirror`; returns the source that reads them.

    Pairs that share a text, also by way of other pairs, stay together.
    """
    first, second, labels = SETS[name]
    lines = (require_shared() / "training" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)[column] for line in lines for column in (first, second)]
    distinct, numbers = np.unique(texts, return_inverse=True)
    ends = numbers.reshape(-1, 2).T
    links = coo_matrix((np.ones(len(lines)), tuple(ends)), shape=(len(distinct), len(distinct)))
    group = connected_components(links, directed=False)[1][ends[0]]
    small = np.bincount(group)[group] <= LARGEST_DEV_GROUP
    held = small & (generator(0, "dev", name).random(group.max() + 1)[group] < DEV_SHARE)
    (mirror / name).mkdir(parents=True, exist_ok=True)
    for file, chosen in (("train.jsonl", ~held), ("dev.jsonl", held)):
        text = "".join(f"{lines[row]}\n" for row in np.flatnonzero(chosen))
        (mirror / name / file).write_text(text, encoding="utf-8")
    return SourceConfig(
        title=name,
        side="symmetric",
        hub=name,
        files=["train.jsonl"],
        dev_files=["dev.jsonl"],
        format="jsonl",
        construction="nli",
        columns={"premise": first, "hypothesis": second, "label": "label"},
        labels=dict(zip(labels, ("entailment", "neutral", "contradiction"), strict=True)),
        scores={"neutral": 0.5, "contradiction": 0.0},
        negative_label=None,
    )


def dev_scores(config: Config) -> dict[str, float]:
    """The correlations that the trainer logs, and two more measures of the same rows, each a mean over the sets."""
    from sentence_transformers.sentence_transformer.evaluation import BinaryClassificationEvaluator

    from data.artefact import read_dev_sets
    from pipeline.core.artefact import read_manifest
    from pipeline.core.models import load_folder
    from training.dev_scores import Evaluators, retrieval
    from training.model_files import prompts_of

    manifest = read_manifest(config.folder("symmetric"))
    assert manifest is not None
    model = load_folder(config.folder("symmetric") / "model")
    prompts, evaluators = prompts_of(model, "symmetric"), dict[str, Any]()
    for pairs in read_dev_sets(config.folder("data")):
        evaluators[f"{pairs.name} ranking"] = BinaryClassificationEvaluator(
            [prompts.anchor + text for text in pairs.anchors],
            [prompts.positive + text for text in pairs.positives],
            [int(score >= 1) for score in pairs.scores],
            similarity_fn_names=["cosine"],
            write_csv=False,
        )
        evaluators[f"{pairs.name} retrieval"] = retrieval(pairs, prompts, pairs.passages())
    found = Evaluators(evaluators, model, config.training.dev_length).scores(model)
    means = {
        name: statistics.mean(score for key, score in found.items() if key.endswith(f" {name}"))
        for name in ("ranking", "retrieval")
    }
    return {"spearman": statistics.mean(manifest.metrics[f"dev_{name}_score"] for name in SETS), **means}


if __name__ == "__main__":
    main()

"""What the stage `heads` costs: `make bench NAME=heads`, a random model of bge-m3's shape with the smaller vocabulary.

Heads are fitted to 1,000 pairs of texts of 256 tokens, once over them, beside a pass of the encoder over the same 2,000
texts. Both sides load the model and tokenise; times leave out imports.

With `ARGS=--drift` instead: what is lost where a base's heads are carried along while the sides move the encoder away
under them. The chain of profile tiny runs on a random base with heads, and the merge is searched by the carried heads
and by refitted ones.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.gpu_sides import SHAPES
from benchmarks.measurement import Side, alternate, row, write
from configs.schema.init import BaseConfig
from pipeline.core.model_folder import HEADS
from training.bases.random_model import make_random
from training.bases.synthetic import words, write_base

PAIRS, LENGTH, GIGABYTE = 1000, 256, 1e9


def main() -> None:
    """Make model and pairs, measure, write `runs/bench/heads.json`, remove them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/heads"), help="scratch space: 4 GB")
    parser.add_argument("--shape", choices=SHAPES, default="gpu")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drift", action="store_true")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    try:
        if options.drift:
            write("heads_drift", drift(options.folder))
            return
        shape = SHAPES[options.shape].shape
        write_base(options.folder / "bench" / "merge" / "model", shape, BaseConfig(max_length=8192))
        write_pairs(options.folder / "bench" / "data" / "asymmetric", options.pairs, words(shape))
        sides = [Side(f"benchmarks.heads:{name}", {"runs": str(options.folder)}) for name in ("fit", "encode")]
        ours, theirs = alternate(*sides, rounds=options.rounds)
        what = f"fitting heads, one epoch of {options.pairs} pairs of {LENGTH} tokens"
        memory = ours.peak_bytes / GIGABYTE, theirs.peak_bytes / GIGABYTE
        peer = "one encoding pass"
        rows = [
            row("heads_time", what, "s", ours.seconds, peer, theirs.seconds, "lower"),
            row("heads_memory", f"peak resident memory of {what}", "GB", memory[0], peer, memory[1], "lower"),
        ]
        write("heads", rows)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def write_pairs(folder: Path, number: int, vocabulary: int) -> None:
    """One set of pairs of random words, as the data artefact has it."""
    random = np.random.default_rng(1)
    chosen = random.integers(0, vocabulary, (2, number, LENGTH - 2))
    anchors, positives = ([" ".join(f"w{word}" for word in text) for text in texts] for texts in chosen)
    nothing = {
        "negatives": pa.array([[]] * number, pa.list_(pa.string())),
        "score": pa.array([None] * number, pa.float32()),
    }
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"anchor": anchors, "positive": positives, **nothing}), folder / "pairs.parquet")


def drift(folder: Path) -> list[dict[str, str | float]]:
    """nDCG@10 on held-out sets of the merge with refitted heads, beside that with the base's, in each mode."""
    from evaluation.results import Score
    from pipeline.application import composed
    from pipeline.run import run

    samples, mirror = Path("data/samples"), folder / "mirror"
    base = mirror / "random" / "base"
    base.mkdir(parents=True)
    for owner in samples.iterdir():
        (mirror / owner.name).symlink_to(owner.resolve())
    make_random(BaseConfig(vocabulary=1200, hidden=32), base, 1, samples)
    torch.manual_seed(1)
    for name, width in zip(HEADS, (1, 32), strict=True):
        torch.save(torch.nn.Linear(32, width).state_dict(), base / name)
    chosen = [
        "profile=tiny",
        "run=drift",
        f"runs={folder}",
        f"mirror={mirror}",
        "launch.config=none",
        "merging=uniform",
    ]
    chosen += ["base.kind=hub", "base.hub=random/base", "evaluation.suites=[held_out]", "evaluation.chain=[merge]"]
    chosen += [f"training.{name}.max_steps=60" for name in ("symmetric", "asymmetric", "heads")]
    chosen += ["training.heads.learning_rate=1e-4"]  # frozen.yaml's
    run(composed(*chosen, "stages=[data,init,symmetric,asymmetric,merge,heads]"))
    carried = folder / "drift" / "merge" / "model"
    run(composed(*chosen, "stages=[evaluate]", f"evaluation.models=[{carried}]"))
    scores = Score.read(folder / "drift" / "evaluate" / "scores.csv")
    found = {(score.task, score.model): score.score for score in scores if score.metric == "ndcg_at_10"}
    rows = []
    for task in dict.fromkeys(task for task, _ in found):
        for mode in ("merge", "merge.sparse", "merge.multi_vector", "merge.hybrid"):
            scored = found[task, mode], "carried", found[task, f"drift/{mode}"]
            rows.append(row(f"{task} {mode}", "held-out rows", "nDCG@10", *scored, "higher"))
    return rows


def fit(runs: str) -> float:
    """The stage on a run that lacks nothing but its heads, in folder `bench` of `runs`; returns its seconds."""
    import training.heads.fit  # noqa: F401
    from configs.schema.config import Config
    from pipeline.chain import CHAIN
    from pipeline.core.artefact import Manifest
    from pipeline.stage import run_stage

    config = Config(profile="bench", run="bench", runs=runs, force=True)
    config.training.heads.batch_size = 64
    for name in ("merge", "data"):
        Manifest(name, "complete", name, {}, {}).write(config.folder(name))
    started = time.perf_counter()
    run_stage(CHAIN["heads"], config)
    return time.perf_counter() - started


def encode(runs: str) -> float:
    """All texts of the pairs through the encoder, as every stage encodes texts; returns the seconds."""
    from pipeline.core.embedding import Embedder
    from pipeline.core.models import load_folder
    from pipeline.core.precision import training_precision

    started = time.perf_counter()
    table: Any = pq.read_table(Path(runs, "bench/data/asymmetric/pairs.parquet")).to_pydict()
    embedder = Embedder(
        load_folder(Path(runs, "bench/merge/model")), max_length=512, precision=training_precision("auto")
    )
    embedder.encode(embedder.tokenise([*table["anchor"], *table["positive"]]))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

"""`make bench NAME=heads`: the cost of stage `heads`, on a random model of bge-m3's shape with the smaller vocabulary.

Heads are fitted for one epoch to 1,000 pairs of texts of 256 tokens, against a pass of the encoder over the same 2,000
texts. Both sides load the model and tokenise; times exclude imports.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from benchmarks.gpu_sides import SHAPES
from benchmarks.measurement import Side, alternate, row, run_main, write
from configs.schema.init import BaseConfig
from data.pair_files import PairWriter
from training.bases.synthetic import words, write_base

PAIRS, LENGTH, GIGABYTE = 1000, 256, 1e9


def main() -> None:
    """Create model and pairs, measure, write `runs/bench/heads.json`, clean up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench/heads"), help="scratch space: 4 GB")
    parser.add_argument("--shape", choices=SHAPES, default="gpu")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    try:
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
    """One set of pairs of random words, in the data artefact's layout."""
    random = np.random.default_rng(1)
    chosen = random.integers(0, vocabulary, (2, number, LENGTH - 2))
    anchors, positives = ([" ".join(f"w{word}" for word in text) for text in texts] for texts in chosen)
    with PairWriter(folder / "pairs.parquet", scored=False) as file:
        file.write(pl.DataFrame({"anchor": anchors, "positive": positives, "negatives": [[]] * number}))


def fit(runs: str) -> float:
    """The stage on a run that lacks only its heads, in folder `bench` of `runs`; returns its seconds."""
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
    from pipeline.core.device import training_precision
    from pipeline.core.embedding import Embedder
    from pipeline.core.models import load_folder

    started = time.perf_counter()
    table: Any = pq.read_table(Path(runs, "bench/data/asymmetric/pairs.parquet")).to_pydict()
    embedder = Embedder(
        load_folder(Path(runs, "bench/merge/model")), max_length=512, precision=training_precision("auto")
    )
    embedder.encode(embedder.tokenise([*table["anchor"], *table["positive"]]))
    return time.perf_counter() - started


if __name__ == "__main__":
    run_main(main)

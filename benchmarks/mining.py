"""`make bench NAME=mining`: our miner against sentence-transformers' `mine_hard_negatives`, texts per second.

Same model, pairs, prompts, length and ranks, without a margin; loading the model is timed on both sides. Ours runs in
the precision of training, and again in float32, in which both must find the same negatives.
"""

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from benchmarks.measurement import Side, alternate, row, run_main, write
from benchmarks.real_texts import SHARED
from benchmarks.start import demo_init
from benchmarks.training import real_pairs, wiktionary_pairs

PEER = "sentence-transformers"
SET, LENGTH = "wiktionary_definitions", 256  # an asymmetric set of the demo, whose pairs are mined; tokens
NEAREST: dict[str, Any] = {"range_min": 3, "range_max": 100}  # ranks of the candidates
EQUAL = 0.99  # share of pairs with the same negative in float32; the others are ties within rounding


def main() -> None:
    """Measure and write `runs/bench/mining.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, help="a model folder; default: the demo's base after init")
    parser.add_argument("--pairs", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    init = options.init or demo_init()
    pairs = real_pairs("asymmetric") if SHARED.is_dir() else wiktionary_pairs("asymmetric")
    distinct = list({anchor: (anchor, positive) for anchor, positive in pairs}.values())[: options.pairs]
    with TemporaryDirectory(prefix="bench-mining-") as scratch:
        frame = pl.DataFrame(distinct, schema=["anchor", "positive"], orient="row")
        frame = frame.with_columns(pl.lit([], dtype=pl.List(pl.String)).alias("negatives"))
        frame.write_parquet(Path(scratch, "pairs.parquet"))
        write("mining", comparison(init, Path(scratch), frame, options.rounds))


def comparison(init: Path, scratch: Path, frame: pl.DataFrame, rounds: int) -> list[dict[str, Any]]:
    """The benchmark's rows; raises RuntimeError where the two find different negatives in float32."""
    arguments = {"init": str(init), "scratch": str(scratch)}
    sides = [Side("benchmarks.mining:mine_ours", {**arguments, "precision": name}) for name in ("auto", "fp32")]
    runs = alternate(*sides, Side("benchmarks.mining:mine_theirs", arguments), rounds=rounds)
    auto, fp32, theirs = (json.loads((scratch / f"{name}.json").read_text()) for name in ("auto", "fp32", "theirs"))
    equal = [sum(map(list.__eq__, found, theirs)) / len(theirs) for found in (auto, fp32)]
    if equal[1] < EQUAL:
        raise RuntimeError(f"only {equal[1]:.1%} of the pairs have the same negative as the library's in float32")
    texts = frame["anchor"].n_unique() + frame["positive"].n_unique()
    what, rates = f"{len(frame)} pairs, {texts} distinct texts", [texts / run.seconds for run in runs]
    return [
        row("texts_per_second", what, "texts/s", rates[0], PEER, rates[2], "higher"),
        row("texts_per_second_fp32", what, "texts/s", rates[1], PEER, rates[2], "higher"),
        row("equal_negatives", what, "share", equal[0], "ours in fp32", equal[1], "higher"),
    ]


def mine_ours(init: str, scratch: str, precision: str) -> float:
    """Our miner without cached vectors; saves each pair's negatives."""
    from data.mining import mine
    from pipeline.application import composed

    with TemporaryDirectory(dir=scratch) as runs:
        settings = {"model": init, "margin": "null", "negatives": 1, "max_length": LENGTH, **NEAREST}
        overrides = [f"data.mining.{name}={value}" for name, value in settings.items()]
        config = composed("profile=demo", f"runs={runs}", f"precision={precision}", *overrides)
        path = Path(runs, f"{SET}.parquet")
        path.write_bytes(Path(scratch, "pairs.parquet").read_bytes())
        started = time.perf_counter()
        mine(path, SET, config)
        seconds = time.perf_counter() - started
        Path(scratch, f"{precision}.json").write_text(json.dumps(pl.read_parquet(path)["negatives"].to_list()))
    return seconds


def mine_theirs(init: str, scratch: str) -> float:
    """The library's miner with its own batches."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    pairs = pl.read_parquet(Path(scratch, "pairs.parquet")).select("anchor", "positive")
    started = time.perf_counter()
    model = SentenceTransformer(init)
    model.max_seq_length = LENGTH
    found = mine_hard_negatives(Dataset(pairs.to_arrow()), model, num_negatives=1, verbose=False, **NEAREST)
    seconds = time.perf_counter() - started
    negatives = dict(zip(found["anchor"], found["negative"], strict=True))
    listed = [[negatives[anchor]] if anchor in negatives else [] for anchor in pairs["anchor"]]
    Path(scratch, "theirs.json").write_text(json.dumps(listed))
    return seconds


if __name__ == "__main__":
    run_main(main)

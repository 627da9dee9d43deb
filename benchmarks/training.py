"""`make bench NAME=training`: our trainer against those of sentence-transformers and FlagEmbedding, and the bare step.

The demo's base after init is trained on real texts of natural length: news headlines (symmetric) and software
documentation (asymmetric), or on Wiktionary pairs where the real data aren't available. The cost of shorter dimensions
is measured too, and at bge-m3's shape from the loss alone, since the encoder's work stays the same.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import torch

from benchmarks.measurement import Side, alternate, row, run_main, write
from benchmarks.peers import peer_environment
from benchmarks.real_texts import SHARED
from benchmarks.start import demo_init
from benchmarks.training_flagembedding import write_pairs as write_flagembedding_pairs
from benchmarks.training_sides import BATCH_SIZE, LENGTH, STEPS, TEMPERATURE, padding
from data.pair_files import PairWriter
from data.sources.wiktionary import SameSense, TermUsages
from pipeline.core.console import show_table
from pipeline.core.device import training_precision
from training.cost_model import KNOWN, Shape, measured_teraflops, shape_of, training_flops

ANGLE, DIMENSIONS = "ours with AnglE", "ours with dimensions"
LARGE = KNOWN["BAAI/bge-m3"]
ROW, ROWS = 44, 256  # average tokens of a symmetric row (`make plan PROFILE=bge_m3`), rows per batch
PEER, FLAG = "sentence-transformers", "FlagEmbedding"
REAL = {
    "symmetric": ("paraphraser.jsonl", "text_1", "text_2"),
    "asymmetric": ("software_docs.jsonl", "query", "passage"),
}
MOST_PAIRS = 8000
PROMPTS = {"symmetric": ("query", "query"), "asymmetric": ("query", "document")}


def main() -> None:
    """Measure and write `runs/bench/training.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, help="a model folder; default: the demo's base after init")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    init = options.init or demo_init()
    rows = []
    with TemporaryDirectory(prefix="bench-training-") as scratch:
        for side in PROMPTS:
            rows += measure(side, init, Path(scratch), options.rounds)
    rows.append(dimensions_of_large(options.rounds))
    write("training", rows)


def measure(side: str, init: Path, scratch: Path, rounds: int) -> list[dict[str, Any]]:
    """The rows of one side."""
    data = scratch / side
    table = write_pairs(side, data)
    arguments = {"init": str(init), "data": str(data), "side": side}
    planned = padding(**arguments)
    pairs = scratch / f"{side}_pairs.parquet"
    table.select("anchor", "positive")[planned["rows"]].write_parquet(pairs)
    prompts = json.loads((init / "config_sentence_transformers.json").read_text())["prompts"]
    columns = dict(zip(("anchor", "positive"), (prompts[name] for name in PROMPTS[side]), strict=True))
    library = {"init": str(init), "pairs": str(pairs), "prompts": columns}
    module = "benchmarks.training_sides"
    sides = {
        "ours": Side(f"{module}:train_ours", arguments),
        "bare step": Side(f"{module}:train_bare", arguments),
        PEER: Side(f"{module}:train_sentence_transformers", library),
        f"{PEER}, freed memory kept": Side(f"{module}:train_sentence_transformers", {**library, "keep_memory": True}),
        f"{PEER}, our batches": Side(
            f"{module}:train_sentence_transformers", {**library, "keep_memory": True, "in_order": True}
        ),
        FLAG: flagembedding_side(library, scratch / f"{side}_pairs.jsonl"),
        DIMENSIONS: Side(f"{module}:train_ours", {**arguments, "dimensions": shorter(shape_of(init))}),
    }
    if side == "symmetric":  # every other row is labelled dissimilar, so that AnglE has something to rank
        write_pairs(side, scratch / "angle", score=[1.0, 0.0] * (len(table) // 2) + [1.0] * (len(table) % 2))
        with_angle = {**arguments, "data": str(scratch / "angle"), "angle_weight": 1.0}
        sides[ANGLE] = Side(f"{module}:train_ours", with_angle)
    runs = dict(zip(sides, alternate(*sides.values(), rounds=rounds), strict=True))
    rates = {name: STEPS * BATCH_SIZE / run.seconds for name, run in runs.items()}
    show_table(
        f"{side}: effect of each factor, {planned['planned']} pairs planned",
        ["trainer", "pairs per second", "seconds", "peak GB"],
        [[name, rates[name], run.seconds, run.peak_bytes / 1e9] for name, run in runs.items()],
    )
    ours, bare, theirs = runs["ours"], runs["bare step"], runs[PEER]
    what, peak = f"16 steps of 32 {side} pairs", f"memory of the {side} run"
    memory = f"memory_vs_sentence_transformers_{side}"
    share = f"padding of the same {side} pairs"
    rows = [
        row(f"pairs_per_second_vs_{key}_{side}", what, "pairs/s", rates["ours"], peer, rates[peer], "higher")
        for key, peer in (("sentence_transformers", PEER), ("flagembedding", FLAG))
    ]
    rows += [
        row(f"padding_share_{side}", share, "share", planned["ours"], PEER, planned["theirs"], "lower"),
        row(f"time_vs_bare_step_{side}", what, "s", ours.seconds, "bare step", bare.seconds, "lower"),
        row(memory, peak, "bytes", ours.peak_bytes, PEER, theirs.peak_bytes, "lower"),
        row(f"dimensions_time_{side}", what, "s", runs[DIMENSIONS].seconds, "ours without", ours.seconds, "lower"),
    ]
    if ANGLE in runs:
        rows.append(row("angle_time", what, "s", runs[ANGLE].seconds, "ours without AnglE", ours.seconds, "lower"))
    return rows


def shorter(shape: Shape) -> list[int]:
    """The width, halved four times."""
    return [shape.hidden_size // 2**times for times in range(5)]


def dimensions_of_large(rounds: int) -> dict[str, Any]:
    """A step at bge-m3's shape with and without dimensions, contrastive and AnglE: the encoder's operations at the
    machine's measured peak rate, which it never reaches, plus the loss's CPU seconds.
    """
    function = "benchmarks.training_sides:of_embeddings"
    settings: dict[str, Any] = {"width": LARGE.hidden_size, "rows": ROWS, "angle_weight": 1.0}
    sides = [Side(function, settings), Side(function, {**settings, "dimensions": shorter(LARGE)})]
    plain, cut = (run.seconds for run in alternate(*sides, rounds=rounds))
    peak = measured_teraflops(torch.bfloat16 if training_precision("auto") == "bf16" else torch.float32)
    encoder = training_flops(LARGE, ROWS * ROW, ROW / 3, passes=3) / peak / 1e12
    what = f"a step of {ROWS} symmetric rows at bge-m3's shape, {plain:.3f} and {cut:.3f} s of it the loss"
    return row("dimensions_time_bge_m3", what, "s", encoder + cut, "without", encoder + plain, "lower")


def flagembedding_side(library: dict[str, Any], path: Path) -> Side:
    """The peer's side; it reads its own format."""
    table = pq.read_table(library["pairs"]).to_pylist()
    write_flagembedding_pairs(path, [(entry["anchor"], entry["positive"]) for entry in table])
    sizes = {"steps": STEPS, "batch_size": BATCH_SIZE, "length": LENGTH, "temperature": TEMPERATURE}
    function = "benchmarks.training_flagembedding:train_flagembedding"
    return Side(function, {**library, "pairs": str(path), **sizes}, environment=peer_environment("flagembedding"))


def write_pairs(side: str, folder: Path, **columns: list[float]) -> pl.DataFrame:
    """Write all real pairs of a side in the data artefact's layout."""
    pairs = list(dict.fromkeys(real_pairs(side) if SHARED.is_dir() else wiktionary_pairs(side)))
    anchors, positives = zip(*pairs, strict=True)
    table = pl.DataFrame({"anchor": anchors, "positive": positives, "negatives": [[]] * len(pairs), **columns})
    with PairWriter(folder / side / "pairs.parquet", scored=bool(columns)) as file:
        file.write(table)
    return table


def real_pairs(side: str) -> Iterator[tuple[str, str]]:
    """Headlines about the same event, including near paraphrases; or titles and descriptions with their texts."""
    name, first, second = REAL[side]
    for line in (SHARED / "training" / name).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry.get("label", 0) >= 0 and entry[first] != entry[second] and entry[first].strip():
            yield entry[first], entry[second]


def wiktionary_pairs(side: str) -> Iterator[tuple[str, str]]:
    """Definitions of one sense; or senses with sentences that use them."""
    return islice((SameSense() if side == "symmetric" else TermUsages()).pairs(), MOST_PAIRS)


if __name__ == "__main__":
    run_main(main)

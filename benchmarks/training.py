"""Our training against sentence-transformers' trainer and the bare step, on real texts of natural length.

`python -m benchmarks.training [--init runs/demo/init] [--rounds 3] [--flagembedding <python>]`. Both sides of the real
data are measured: news headlines (symmetric) and software documentation (asymmetric). FlagEmbedding is measured
too where the python of an environment with FlagEmbedding 1.4, torch 2.13 and rich is given; it never enters ours.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measurement import Side, alternate, row, write
from benchmarks.real_texts import SHARED
from benchmarks.training_sides import BATCH_SIZE, LENGTH, STEPS, TEMPERATURE, padding
from pipeline.console import show_table
from pipeline.errors import UserError

PEER, KEYED = "sentence-transformers", "sentence_transformers"
PROMPTS = {"symmetric": ("query", "query"), "asymmetric": ("query", "document")}


def main() -> None:
    """Measure and write `runs/bench/training.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, default=Path("runs/demo/init"), help="the demo's base after init")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flagembedding", help="python of an environment with FlagEmbedding")
    options = parser.parse_args()
    if not (options.init / "modules.json").is_file():
        raise SystemExit(UserError("no model", where=str(options.init), remedy="make it: make init PROFILE=demo").line)
    rows = []
    with TemporaryDirectory(prefix="bench-training-") as scratch:
        for side in PROMPTS:
            rows += measure(side, options.init, Path(scratch), options.rounds, options.flagembedding)
    write("training", rows)


def measure(side: str, init: Path, scratch: Path, rounds: int, flagembedding: str | None) -> list[dict[str, Any]]:
    """The rows of one side."""
    data = scratch / side
    table = write_pairs(side, data)
    arguments = {"init": str(init), "data": str(data), "side": side}
    planned = padding(**arguments)
    pairs = scratch / f"{side}_pairs.parquet"
    pq.write_table(table.select(["anchor", "positive"]).take(planned["rows"]), pairs)
    prompts = json.loads((init / "config_sentence_transformers.json").read_text())["prompts"]
    columns = dict(zip(("anchor", "positive"), (prompts[name] for name in PROMPTS[side]), strict=True))
    library = {"init": str(init), "pairs": str(pairs), "prompts": columns}
    module = "benchmarks.training_sides"
    sides = [
        Side(f"{module}:train_ours", arguments),
        Side(f"{module}:train_bare", arguments),
        Side(f"{module}:train_sentence_transformers", library),
        Side(f"{module}:train_sentence_transformers", {**library, "keep_memory": True}),
    ]
    if flagembedding:
        sides.append(flagembedding_side(flagembedding, library, scratch / f"{side}_pairs.jsonl"))
    runs = alternate(*sides, rounds=rounds)
    ours, bare, theirs = runs[:3]
    rates = [STEPS * BATCH_SIZE / run.seconds for run in runs]
    names = ("ours", "bare step", PEER, f"{PEER}, freed memory kept", "FlagEmbedding")
    show_table(
        f"{side}: what each factor gives, {planned['planned']} pairs planned",
        ["trainer", "pairs a second", "seconds", "peak GB"],
        [[name, rate, run.seconds, run.peak_bytes / 1e9] for name, rate, run in zip(names, rates, runs, strict=False)],
    )
    what, peak = f"16 steps of 32 {side} pairs", f"memory of the {side} run"
    share = f"padding of the same {side} pairs"
    rows = [
        row(f"pairs_per_second_vs_sentence_transformers_{side}", what, "pairs/s", rates[0], PEER, rates[2], "higher"),
        row(f"padding_share_{side}", share, "share", planned["ours"], PEER, planned["theirs"], "lower"),
        row(f"time_vs_bare_step_{side}", what, "s", ours.seconds, "bare step", bare.seconds, "lower"),
        row(f"memory_vs_{KEYED}_{side}", peak, "bytes", ours.peak_bytes, PEER, theirs.peak_bytes, "lower"),
    ]
    if flagembedding:
        key = f"pairs_per_second_vs_flagembedding_{side}"
        rows.append(row(key, what, "pairs/s", rates[0], "FlagEmbedding", rates[4], "higher"))
    return rows


def flagembedding_side(python: str, library: dict[str, Any], path: Path) -> Side:
    """The peer's side; it reads its own format."""
    table = pq.read_table(library["pairs"]).to_pylist()
    lines = [{"query": entry["anchor"], "pos": [entry["positive"]], "neg": []} for entry in table]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    sizes = {"steps": STEPS, "batch_size": BATCH_SIZE, "length": LENGTH, "temperature": TEMPERATURE}
    function = "benchmarks.training_flagembedding:train_flagembedding"
    return Side(function, {**library, "pairs": str(path), **sizes}, python=python)


def write_pairs(side: str, folder: Path) -> pa.Table:
    """All real pairs of a side, as the data artefact has them."""
    if not SHARED.is_dir():
        remedy = "set the environment variable USER_SHARED_DATA to its folder"
        raise SystemExit(UserError("no real data for this benchmark", where=str(SHARED), remedy=remedy).line)
    pairs = dict.fromkeys(symmetric_pairs() if side == "symmetric" else asymmetric_pairs())
    table = pa.table(
        {
            "anchor": pa.array([pair[0] for pair in pairs], pa.string()),
            "positive": pa.array([pair[1] for pair in pairs], pa.string()),
            "negatives": pa.array([[] for _ in pairs], pa.list_(pa.string())),
        }
    )
    path = folder / side / "pairs.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table, path)
    return table


def symmetric_pairs() -> Iterator[tuple[str, str]]:
    """Headlines about the same event, near paraphrases included."""
    for line in (SHARED / "training/paraphraser.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["label"] >= 0 and entry["text_1"] != entry["text_2"]:
            yield entry["text_1"], entry["text_2"]


def asymmetric_pairs() -> Iterator[tuple[str, str]]:
    """Titles or descriptions with their texts."""
    for line in (SHARED / "training/software_docs.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["query"].strip() and entry["passage"].strip():
            yield entry["query"], entry["passage"]


if __name__ == "__main__":
    main()

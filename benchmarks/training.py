"""Our training against sentence-transformers' trainer and the bare step, on real texts of natural length.

`python -m benchmarks.training [--init runs/demo/init] [--rounds 3]`. Both sides of the real data are measured: news
headlines (symmetric) and software documentation (asymmetric).
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
from benchmarks.training_sides import BATCH_SIZE, STEPS, padding
from pipeline.console import show_table
from pipeline.errors import UserError

PEER = "sentence-transformers"
PROMPTS = {"symmetric": ("query", "query"), "asymmetric": ("query", "document")}


def main() -> None:
    """Measure and write `runs/bench/training.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, default=Path("runs/demo/init"), help="the demo's base after init")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if not (options.init / "modules.json").is_file():
        raise SystemExit(UserError("no model", where=str(options.init), remedy="make it: make init PROFILE=demo").line)
    rows = []
    with TemporaryDirectory(prefix="bench-training-") as scratch:
        for side in PROMPTS:
            rows += measure(side, options.init, Path(scratch), options.rounds)
    write("training", rows)


def measure(side: str, init: Path, scratch: Path, rounds: int) -> list[dict[str, Any]]:
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
    ours, bare, theirs, kept = alternate(
        Side(f"{module}:train_ours", arguments),
        Side(f"{module}:train_bare", arguments),
        Side(f"{module}:train_sentence_transformers", library),
        Side(f"{module}:train_sentence_transformers", {**library, "keep_memory": True}),
        rounds=rounds,
    )
    rates = [STEPS * BATCH_SIZE / run.seconds for run in (ours, bare, theirs, kept)]
    show_table(
        f"{side}: what each factor gives, {planned['planned']} pairs planned",
        ["trainer", "pairs a second", "seconds", "peak GB"],
        [
            [name, rate, run.seconds, run.peak_bytes / 1e9]
            for name, rate, run in zip(
                ("ours", "bare step", PEER, f"{PEER}, freed memory kept"),
                rates,
                (ours, bare, theirs, kept),
                strict=True,
            )
        ],
    )
    what = f"16 steps of 32 {side} pairs"
    share = f"padding of the same {side} pairs"
    return [
        row(f"pairs_per_second_vs_sentence_transformers_{side}", what, "pairs/s", rates[0], PEER, rates[2], "higher"),
        row(f"padding_share_{side}", share, "share", planned["ours"], PEER, planned["theirs"], "lower"),
        row(f"time_vs_bare_step_{side}", what, "s", ours.seconds, "bare step", bare.seconds, "lower"),
        row(
            f"memory_vs_sentence_transformers_{side}", what, "bytes", ours.peak_bytes, PEER, theirs.peak_bytes, "lower"
        ),
    ]


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

"""`make bench NAME=gpu`: training and encoding on one GPU, against sentence-transformers, FlagEmbedding where it is
installed, and the device's own peak.

The encoder is random, in the shape of USER-bge-m3, and texts are random words with the token counts of the card's sets,
so nothing is downloaded: the asymmetric mix with one negative per row, and symmetric pairs of short texts. The sides
alternate, each in a fresh process, the most informative first, until three rounds are done or the time is up. Figures
are printed as they come; sides that fail or get no time are listed. `--small` runs the same on a CPU at a tiny shape,
for the test.
"""

import argparse
import math
import os
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu_sides import KINDS, SHAPES, write_inputs
from benchmarks.measurement import Side, measure, row, run_main, write
from benchmarks.peers import FOLDER, peer_environment
from pipeline.core.console import show_table
from pipeline.core.errors import UserError
from pipeline.core.machine import ALLOCATOR
from pipeline.core.packed import LEAST_CAPABILITY

MINUTES, ROUNDS = 8.0, 3
LEAST, MOST = 40, 150  # seconds that a side may need, and that it gets: one that hangs leaves time for the others
PEER, FLAG, SAME = "sentence-transformers", "FlagEmbedding", "packed against padded"


def main() -> None:
    """Measure and write `runs/bench/gpu.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny shape on a CPU; its figures mean nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    # Otherwise peers would use all GPUs of the machine, through nn.DataParallel.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    if not options.small and (lacking := missing_requirement()):
        print(f"nothing to measure: {lacking}")
        return
    with TemporaryDirectory(prefix="bench-gpu-") as scratch:
        os.environ.setdefault(*ALLOCATOR)  # as the pipeline's commands do, here for the peers too
        rows, checks = measured(Path(scratch), "small" if options.small else "gpu")
        write("gpu", rows, options.runs)
        require_same(checks)
        require_same_loss(rows)


def missing_requirement() -> str | None:
    """What this benchmark needs but doesn't find; None if nothing."""
    if not torch.cuda.is_available():
        return "there is no GPU"
    too_old = torch.cuda.get_device_capability() < LEAST_CAPABILITY
    return "the GPU is older than compute capability 8.0" if too_old else None


def measured(scratch: Path, shape: str) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The benchmark's rows, for the sides that ran, and how packed texts compare with padded ones (`same`)."""
    until = time.monotonic() + 60 * MINUTES
    base = str(write_inputs(scratch, shape))
    sides: dict[str, tuple[str, dict[str, Any]]] = {SAME: ("same", {})}

    def add(name: str, function: str, **more: bool) -> None:
        sides.update({f"{kind} {name}": (function, {"data": str(scratch / kind), **more}) for kind in KINDS})

    add("packed", "train_ours", packed=True)
    add(PEER, "train_sentence_transformers")
    add("bare step", "train_bare")
    add("padded", "train_ours")
    for name, function in (("ours", "encode_ours"), (PEER, "encode_sentence_transformers")):
        sides[f"encoding {name}"] = (function, {"data": str(scratch / "asymmetric")})
    if shape == "gpu":
        add("packed, compiled", "train_ours", packed=True, compiled=True)
    if has_flagembedding():
        add(FLAG, "train_flagembedding")
    found: dict[str, list[dict[str, float]]] = {}
    for turn in range(ROUNDS if shape == "gpu" else 1):
        for name, (function, more) in sides.items():
            left = until - time.monotonic()
            if left < LEAST or (turn and (name == SAME or name not in found)):
                continue
            try:
                result = run(function, min(left, MOST), base=base, shape=shape, **more)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{name} failed: {error}", flush=True)
            else:
                found.setdefault(name, []).append(result)
                print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in result.items())}", flush=True)
    missing = [name for name in sides if name not in found]
    checks = found.pop(SAME, [{}])[0]
    peak = checks.get("peak", math.nan)
    medians = {name: {key: median(one[key] for one in runs) for key in runs[0]} for name, runs in found.items()}
    columns = ["per_second", "teraflops", "gigabytes", "loss"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    title = f"{device}: peak {peak:.0f} TFLOP/s, medians of the rounds"
    shown = [[name, len(found[name]), *(values[column] for column in columns)] for name, values in medians.items()]
    show_table(title, ["", "rounds", "pairs or texts per second", "TFLOP/s", "peak GB", "loss"], shown)
    if missing:
        print(f"not measured (failed, or no time left): {'; '.join(missing)}")
    rows = [entry for kind in KINDS for entry in rows_of(kind, medians, peak)]
    ours, theirs = (medians.get(f"encoding {name}") for name in ("ours", PEER))
    if ours and theirs:
        rates = ours["per_second"], PEER, theirs["per_second"]
        key = "gpu_texts_per_second_vs_sentence_transformers"
        rows.append(row(key, "encoding passages", "texts/s", *rates, "higher"))
    return rows, checks


def rows_of(kind: str, medians: dict[str, dict[str, float]], peak: float) -> list[dict[str, Any]]:
    """The rows of one kind of pairs, for the sides that ran."""
    what, named = f"{kind} pairs, batch {SHAPES['gpu'].batch}", {"sentence_transformers": PEER, "flagembedding": FLAG}
    named |= {"padded": "padded", "compiled": "packed, compiled"}
    if (ours := medians.get(f"{kind} packed")) is None:
        return []
    versus = {name: found for name in (*named.values(), "bare step") if (found := medians.get(f"{kind} {name}"))}
    rows = [
        row(f"gpu_pairs_per_second_vs_{key}_{kind}", what, "pairs/s",
            ours["per_second"], name, versus[name]["per_second"], "higher")
        for key, name in named.items()
        if name in versus
    ]  # fmt: skip
    if math.isfinite(peak):
        key = f"gpu_share_of_peak_{kind}"
        rows.append(row(key, what, "TFLOP/s", ours["teraflops"], "matrix product", peak, "higher"))
    for name, key, unit, of in (
        ("bare step", "gpu_time_vs_bare_step", "s per TFLOP", lambda values: 1 / values["teraflops"]),
        (PEER, "gpu_memory_gb", "GB", lambda values: values["gigabytes"]),
        ("padded", "gpu_loss", "loss", lambda values: values["loss"]),
    ):
        if name in versus:
            rows.append(row(f"{key}_{kind}", what, unit, of(ours), name, of(versus[name]), "lower"))
    return rows


def has_flagembedding() -> bool:
    """Whether that peer is installed, in this environment or in the folder that `make bench NAME=training` uses."""
    return bool(find_spec("FlagEmbedding")) or (FOLDER / "flagembedding").is_dir()


def run(function: str, timeout: float | None = None, **arguments: Any) -> dict[str, float]:
    """The result of a function of `benchmarks.gpu_sides` in a fresh process, within `timeout` seconds."""
    peer = function == "train_flagembedding" and not find_spec("FlagEmbedding")
    environment = peer_environment("flagembedding") if peer else {}
    return measure(Side(f"benchmarks.gpu_sides:{function}", arguments, environment=environment), timeout).result


def require_same(checks: dict[str, float]) -> None:
    """Raise UserError unless packed texts and padded ones were found to have the same embeddings."""
    if not checks:
        raise differing("packed and padded texts could not be compared")
    if not (checks["least_cosine"] >= 0.9999 and checks["from_float32"] <= 1e-3):  # also where they are NaN
        raise differing(f"packed and padded texts differ: {checks}")


def require_same_loss(rows: list[dict[str, Any]]) -> None:
    """Raise UserError where training on packed texts ended with a different loss than on padded texts."""
    if apart := [entry for entry in rows if entry["key"].startswith("gpu_loss") and abs(entry["ratio"] - 1) > 0.02]:
        raise differing(f"the loss of packed texts is {apart[0]['ours']:g}, of padded ones {apart[0]['theirs']:g}")


def differing(what: str) -> UserError:
    """The error for packed texts whose results differ from those of padded ones."""
    return UserError(what, where="benchmarks/gpu_sides.py", remedy="don't train with base.attention=torch_varlen")


if __name__ == "__main__":
    run_main(main)

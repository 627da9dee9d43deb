"""`make bench NAME=gpu`: training and encoding on one GPU, against sentence-transformers, FlagEmbedding where it is
installed, and the device's own peak.

A random encoder of the shape of USER-bge-m3, and random words whose numbers of tokens are those of the card's sets, so
nothing is fetched: the asymmetric mix with one negative a row, and symmetric pairs of short texts. The sides take
turns, each in a fresh process, until three rounds are done or the time is up. `--small` runs the same on a CPU at a
shape of no interest, for the test.
"""

import argparse
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.gpu_sides import KINDS, SHAPES, write_inputs
from benchmarks.measurement import Side, measure, row, write
from benchmarks.peers import FOLDER, peer_environment
from pipeline.core.console import show_table
from pipeline.core.errors import UserError
from pipeline.core.packed import LEAST_CAPABILITY, varlen_attn

MINUTES, ROUNDS = 8.0, 3
PEER, FLAG = "sentence-transformers", "FlagEmbedding"


def main() -> None:
    """Measure and write `runs/bench/gpu.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a tiny shape on a CPU; its figures mean nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    if not options.small and (lacking := what_lacks()):
        print(f"nothing to measure: {lacking}")
        return
    with TemporaryDirectory(prefix="bench-gpu-") as scratch:
        write("gpu", measured(Path(scratch), "small" if options.small else "gpu"), options.runs)


def what_lacks() -> str | None:
    """What this benchmark needs and doesn't find."""
    if not torch.cuda.is_available():
        return "no GPU is here"
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        return "the GPU is older than compute capability 8.0"
    return "this torch has no varlen_attn (2.10 and later do)" if varlen_attn is None else None


def measured(scratch: Path, shape: str) -> list[dict[str, Any]]:
    """All rows; raises UserError where packed and padded texts differ."""
    until = time.monotonic() + 60 * MINUTES
    base = write_inputs(scratch, shape)
    checks = run("same", base=str(base), shape=shape)
    require_same(checks)
    sides = {
        f"{kind} {name}": {"function": function, "base": str(base), "data": str(scratch / kind), "shape": shape, **more}
        for kind in KINDS
        for name, function, more in (
            ("packed", "train_ours", {"packed": True}),
            ("padded", "train_ours", {}),
            *((("packed, compiled", "train_ours", {"packed": True, "compiled": True}),) if shape == "gpu" else ()),
            ("bare step", "train_bare", {}),
            (PEER, "train_sentence_transformers", {}),
            *((FLAG, "train_flagembedding", {}),) * has_flagembedding(),
        )
    }
    sides |= {
        f"encoding {name}": {
            "function": function,
            "base": str(base),
            "data": str(scratch / "asymmetric"),
            "shape": shape,
        }
        for name, function in (("ours", "encode_ours"), (PEER, "encode_sentence_transformers"))
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(ROUNDS if shape == "gpu" else 1):
        longest, started = 0.0, time.monotonic()
        for name, arguments in sides.items():
            found[name].append(run(**arguments))
        longest = max(longest, time.monotonic() - started)
        if time.monotonic() + longest > until:
            break
    medians = {name: {key: median(one[key] for one in runs) for key in runs[0]} for name, runs in found.items()}
    columns = ["per_second", "teraflops", "gigabytes", "loss"]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    title = f"{device}: peak {checks['peak']:.0f} TFLOP/s, medians of {len(found['encoding ours'])} rounds"
    shown = [[name, *(values.get(column) for column in columns)] for name, values in medians.items()]
    show_table(title, ["", "pairs or texts a second", "TFLOP/s", "peak GB", "loss"], shown)
    return [entry for kind in KINDS for entry in rows_of(kind, medians, checks["peak"])] + [
        row(
            "gpu_texts_per_second_vs_sentence_transformers",
            "encoding passages",
            "texts/s",
            medians["encoding ours"]["per_second"],
            PEER,
            medians[f"encoding {PEER}"]["per_second"],
            "higher",
        )
    ]


def rows_of(kind: str, medians: dict[str, dict[str, float]], peak: float) -> list[dict[str, Any]]:
    """The rows of one kind of pairs."""
    what = f"{kind} pairs, batch {SHAPES['gpu'].batch}"
    ours = medians[f"{kind} packed"]
    versus = {name: medians[f"{kind} {name}"] for name in ("padded", "bare step", PEER)}
    names = [("sentence_transformers", PEER), ("padded", "padded")]
    if flag := medians.get(f"{kind} {FLAG}"):
        versus[FLAG] = flag
        names.append(("flagembedding", FLAG))
    if compiled := medians.get(f"{kind} packed, compiled"):
        versus["compiled"] = compiled
        names.append(("compiled", "compiled"))
    rates = [
        row(f"gpu_pairs_per_second_vs_{key}_{kind}", what, "pairs/s", ours["per_second"], name, rate, "higher")
        for key, name in names
        for rate in [versus[name]["per_second"]]
    ]
    return [
        *rates,
        row(f"gpu_share_of_peak_{kind}", what, "TFLOP/s", ours["teraflops"], "matrix product", peak, "higher"),
        row(f"gpu_time_vs_bare_step_{kind}", what, "s a TFLOP", 1 / ours["teraflops"],
            "bare step", 1 / versus["bare step"]["teraflops"], "lower"),
        row(f"gpu_memory_gb_{kind}", what, "GB", ours["gigabytes"], PEER, versus[PEER]["gigabytes"], "lower"),
        row(f"gpu_loss_{kind}", what, "loss", ours["loss"], "padded", versus["padded"]["loss"], "lower"),
    ]  # fmt: skip


def has_flagembedding() -> bool:
    """Whether that peer is installed: here, or in the folder that `make bench NAME=training` puts it into."""
    return bool(find_spec("FlagEmbedding")) or (FOLDER / "flagembedding").is_dir()


def run(function: str, **arguments: Any) -> dict[str, float]:
    """What a function of `benchmarks.gpu_sides` returns from a fresh process."""
    peer = function == "train_flagembedding" and not find_spec("FlagEmbedding")
    environment = peer_environment("flagembedding") if peer else {}
    return measure(Side(f"benchmarks.gpu_sides:{function}", arguments, environment=environment)).result


def require_same(checks: dict[str, float]) -> None:
    """Raise UserError where packed texts have other embeddings than padded ones."""
    if checks["least_cosine"] < 0.9999 or checks["from_float32"] > 1e-3:
        what = f"packed and padded texts differ: {checks}"
        raise UserError(what, where="benchmarks/gpu_sides.py", remedy="don't train with base.attention=torch_varlen")


if __name__ == "__main__":
    main()

"""Each export against torch in float32: `make bench NAME=exports`, on the demo's init model, with what is installed.

Texts are definitions of the demo's held-out terms, in batches of similar length; loading and tokenising are left out on
both sides. The packages are the extra "export"; a format whose packages are missing is left out.
"""

import importlib.util
import time
from pathlib import Path

from benchmarks.measurement import Side, alternate, measure, row, write
from benchmarks.start import demo_config, demo_init
from evaluation.export.formats import FORMATS, require_packages

TEXTS = 2000
TORCH = "torch"


def make(folder: str, target: str, data: str, names: list[str]) -> None:
    """Write the formats below `target`."""
    from evaluation.export.build import LENGTH, write_format
    from pipeline.core.embedding import Embedder
    from pipeline.core.models import load_folder

    original = Embedder(load_folder(Path(folder), "cpu").eval(), max_length=LENGTH)
    for name in names:
        write_format(name, Path(folder), Path(target), original, Path(data))


def encode(folder: str, target: str, data: str, name: str, texts: int = TEXTS) -> float:
    """Seconds for embeddings of the texts by one form."""
    from evaluation.export.graphs import load_format
    from evaluation.suites.retrieval import read_retrieval_set
    from pipeline.core.embedding import DOCUMENT, Embedder
    from pipeline.core.models import load_folder

    model = load_folder(Path(folder), "cpu").eval()
    original = Embedder(model)
    embedder = original if name == TORCH else load_format(name, Path(target, FORMATS[name].place), model)
    candidates = read_retrieval_set(Path(data, "heldout", "wiktionary_terms.parquet")).candidates[:texts]
    ids = embedder.tokenise(candidates, original.prompt(DOCUMENT) if name != "static" else "")
    embedder.encode(ids[:8])
    started = time.perf_counter()
    embedder.encode(ids)
    return time.perf_counter() - started


def main(texts: int = TEXTS, rounds: int = 3) -> None:
    """Make the forms, measure all sides alternately and write runs/bench/exports.json."""
    there = [name for name, found in FORMATS.items() if all(map(importlib.util.find_spec, found.packages))]
    require_packages(there or list(FORMATS))
    places = {"folder": str(demo_init()), "target": "runs/bench/exports", "data": str(demo_config().folder("data"))}
    measure(Side("benchmarks.exports:make", {**places, "names": there}))
    sides = [Side("benchmarks.exports:encode", {**places, "name": name, "texts": texts}) for name in (TORCH, *there)]
    reference, *others = alternate(*sides, rounds=rounds)
    rows = []
    for name, ours in zip(there, others, strict=True):
        key, rates = name.replace("-", "_"), (texts / ours.seconds, texts / reference.seconds)
        rows.append(
            row(f"{key}_rate_vs_torch", f"encoding, {name}", "texts/s", rates[0], "torch fp32", rates[1], "higher")
        )
        memory = ours.peak_bytes / 2**20, reference.peak_bytes / 2**20
        rows.append(
            row(f"{key}_memory_vs_torch", f"peak memory, {name}", "MiB", memory[0], "torch fp32", memory[1], "lower")
        )
    write("exports", rows)


if __name__ == "__main__":
    main()

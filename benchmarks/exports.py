"""`make bench NAME=exports`: each export against torch in float32, on the demo's init model.

Texts are definitions of the demo's held-out terms, in batches of similar length; loading and tokenising are not timed.
The packages are the extra "export"; formats whose packages are missing are left out.
"""

import argparse
import importlib.util
import time
from pathlib import Path

from benchmarks.measurement import Side, alternate, measure, row, run_main, write
from benchmarks.start import demo_init
from evaluation.export.formats import FORMATS, require_packages

TORCH = "torch"


def make(folder: str, target: str, data: str, names: list[str]) -> None:
    """Write the formats below `target`."""
    from evaluation.export.build import LENGTH, write_format
    from pipeline.core.embedding import Embedder
    from pipeline.core.models import load_folder

    original = Embedder(load_folder(Path(folder), "cpu").eval(), max_length=LENGTH)
    for name in names:
        write_format(name, Path(folder), Path(target), original, Path(data))


def encode(folder: str, target: str, data: str, name: str, texts: int) -> float:
    """Seconds for embeddings of the texts by one form."""
    from evaluation.export.graphs import load_format
    from evaluation.suites.retrieval import read_retrieval_set
    from pipeline.core.embedding import DOCUMENT, Embedder
    from pipeline.core.models import load_folder

    model = load_folder(Path(folder), "cpu").eval()
    original = Embedder(model)
    embedder = original if name == TORCH else load_format(name, Path(target, FORMATS[name].place), model)
    candidates = read_retrieval_set(Path(data), "wiktionary_terms").candidates[:texts]
    ids = embedder.tokenise(candidates, original.prompt(DOCUMENT) if name != "static" else "")
    embedder.encode(ids[:8])
    started = time.perf_counter()
    embedder.encode(ids)
    return time.perf_counter() - started


def main() -> None:
    """Make the forms, measure all sides alternately and write runs/bench/exports.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="a run's folder with data and init; default: the demo's")
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    there = [name for name, found in FORMATS.items() if all(map(importlib.util.find_spec, found.packages))]
    require_packages(there or list(FORMATS))
    run = options.run or demo_init().parent
    places = {"folder": str(run / "init"), "target": "runs/bench/exports", "data": str(run / "data")}
    measure(Side("benchmarks.exports:make", {**places, "names": there}))
    arguments = {**places, "texts": options.texts}
    sides = [Side("benchmarks.exports:encode", {**arguments, "name": name}) for name in (TORCH, *there)]
    reference, *rates = [options.texts / run.seconds for run in alternate(*sides, rounds=options.rounds)]
    write(
        "exports",
        [
            row(f"{name.replace('-', '_')}_rate_vs_torch", name, "texts/s", rate, "torch fp32", reference, "higher")
            for name, rate in zip(there, rates, strict=True)
        ],
    )


if __name__ == "__main__":
    run_main(main)

"""`make bench NAME=data`: the data stage against `datasets.map` and `filter` with per-row Python doing the same.

At a tenth of the card's size both sides alternate; at full size ours runs once, to measure its memory. The mirror is
synthetic (benchmarks/synthetic_mirror.py), written below `--scratch` and removed afterwards.
"""

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measurement import Side, alternate, measure, row, run_main, write
from configs.schema.config import Config
from configs.schema.data import SourceConfig
from data.ledger import expected
from pipeline.application import composed
from pipeline.core.artefact import read_json

PEER = "datasets.map/filter, batched, num_proc=2"
GUARDS = ("sberquad", "wiktionary_guard_terms")
SETS_ALONE = ("data.decontamination.suites=[]", *(f"~data.held_out.{name}" for name in GUARDS))


def ours(mirror: str, scratch: str) -> dict[str, Any]:
    """Prepare mixture card from the mirror; returns the raw rows, and the pairs built by set."""
    from pipeline.run import run

    with tempfile.TemporaryDirectory(dir=scratch) as runs:
        run(card_config(f"mirror={mirror}", f"runs={runs}", "run=bench", "stages=[data]"))
        sets = read_json(Path(runs) / "bench" / "data" / "ledger.json")["sets"]
    return {"rows": sum(line["raw"] for line in sets), "built": {line["name"]: line["built"] for line in sets}}


def card_config(*overrides: str) -> Config:
    """The sets of mixture card, without benchmark texts and guards, which aren't available everywhere."""
    return composed("profile=bge_m3", *SETS_ALONE, *overrides)


def card_differences(sources: Mapping[str, SourceConfig], built: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Sets whose built pairs differ from the count expected of the real files: (built, expected)."""
    wanted = {name: expected(source) or 0 for name, source in sources.items()}
    return {name: (built[name], count) for name, count in wanted.items() if built[name] != count}


def theirs(mirror: str, scratch: str) -> dict[str, Any]:
    """The same sets with `datasets`."""
    from benchmarks.data_with_datasets import prepare_all

    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        return prepare_all(Path(mirror), Path(folder))


def make_mirror(folder: str, share: float) -> None:
    """Write a synthetic mirror (in its own process, so that its memory is not measured)."""
    from benchmarks.synthetic_mirror import Mirror

    Mirror(Path(folder), share).write()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, default=None, help="folder for about 8 GB of synthetic data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full-share", type=float, default=1.0, help="share of the card's size of the large run")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="bench-data-", dir=arguments.scratch))
    try:
        write("data", comparison(scratch, arguments.rounds, arguments.full_share))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def comparison(scratch: Path, rounds: int, full_share: float) -> list[dict[str, Any]]:
    """The benchmark's rows."""
    tenth, full = str(scratch / "tenth"), str(scratch / "full")
    measure(Side("benchmarks.data:make_mirror", {"folder": tenth, "share": 0.1 * full_share}))
    sides = [
        Side("benchmarks.data:ours", {"mirror": tenth, "scratch": str(scratch)}),
        Side("benchmarks.data:theirs", {"mirror": tenth, "scratch": str(scratch)}),
    ]
    small, peer = alternate(*sides, rounds=rounds)
    compare_built(small.result["built"], peer.result["built"])
    shutil.rmtree(tenth)
    measure(Side("benchmarks.data:make_mirror", {"folder": full, "share": full_share}))
    large = measure(Side("benchmarks.data:ours", {"mirror": full, "scratch": str(scratch)}))
    print(f"full size: {large.result['rows']:,} rows in {large.seconds:.0f} s", flush=True)
    if full_share == 1 and (different := card_differences(card_config().data.sources, large.result["built"])):
        raise RuntimeError(f"built at full size (ours, expected): {different}")
    rates = small.result["rows"] / small.seconds, peer.result["rows"] / peer.seconds
    gigabytes = [run.peak_bytes / 2**30 for run in (small, peer, large)]
    tenth_of = "raw rows prepared per second, a tenth of the card's size"
    peaks = "peak memory: ours at full size, theirs at a tenth"
    growth = "our peak memory at full size over our peak at a tenth"
    return [
        row("rows_per_second_vs_datasets", tenth_of, "rows/s", rates[0], PEER, rates[1], "higher"),
        row("peak_gb_vs_datasets", peaks, "GiB", gigabytes[2], PEER, gigabytes[1], "lower"),
        row("memory_growth_full_vs_tenth", growth, "GiB", gigabytes[2], "ours at a tenth", gigabytes[0], "lower"),
    ]


def compare_built(mine: dict[str, int], peers: dict[str, int]) -> None:
    """Raise RuntimeError where the sides built different pairs, which would make the comparison meaningless."""
    different = {name: (mine[name], peers.get(name)) for name in mine if mine[name] != peers.get(name)}
    if different:
        raise RuntimeError(f"the two sides built different pairs (ours, theirs): {different}")


if __name__ == "__main__":
    run_main(main)

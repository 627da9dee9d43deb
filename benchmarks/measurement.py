"""Measures us and a peer in the same call: fresh processes, alternating, medians of at least three runs."""

import dataclasses
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.core.artefact import files_under, synchronise, write_json
from pipeline.core.console import show_table
from pipeline.core.errors import UserError
from pipeline.core.machine import peak_memory

MARK = "measured: "


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison: a function `module:name` and its JSON-able arguments.

    The function may return seconds, to exclude its preparation; otherwise the whole call is timed.
    """

    function: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of the call, and the peak resident memory (VmHWM) of the fresh process it ran in."""

    seconds: float
    peak_bytes: int
    result: Any


def measure(side: Side, timeout: float | None = None) -> Measured:
    """Run one side once in a fresh process.

    Raises RuntimeError with its output when it fails, and subprocess.TimeoutExpired after `timeout` seconds.
    """
    command = [sys.executable, "-m", "benchmarks.measurement", side.function, json.dumps(side.arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | side.environment, timeout=timeout)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        raise RuntimeError(f"{side.function} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return Measured(**json.loads(lines[-1].removeprefix(MARK)))


def alternate(*sides: Side, rounds: int = 3) -> list[Measured]:
    """Median seconds and memory of each side over `rounds` alternating runs (with the last run's result).

    Each round begins with a different side, since a run's speed depends on what ran before.
    """
    runs: list[list[Measured]] = [[] for _ in sides]
    for turn in range(rounds):
        for place in range(len(sides)):
            number = (turn + place) % len(sides)
            runs[number].append(measure(sides[number]))
    return [
        Measured(
            statistics.median(run.seconds for run in of_side),
            int(statistics.median(run.peak_bytes for run in of_side)),
            of_side[-1].result,
        )
        for of_side in runs
    ]


def row(key: str, what: str, unit: str, ours: float, peer: str, theirs: float, better: str) -> dict[str, str | float]:
    """One comparison; `ratio` is ours / theirs, `better` is lower or higher."""
    return {
        "key": key, "what": what, "unit": unit, "ours": ours, "peer": peer, "theirs": theirs,
        "ratio": ours / theirs, "better": better,
    }  # fmt: skip


def write(name: str, rows: list[dict[str, Any]], runs: Path = Path("runs")) -> Path:
    """Write `runs/bench/<name>.json` and print the ratios."""
    path = runs / "bench" / f"{name}.json"
    write_json(path, rows)
    columns = ["key", "unit", "ours", "peer", "theirs", "ratio", "better"]
    show_table(f"benchmark {name} → {path}", columns, [[entry[c] for c in columns] for entry in rows])
    return path


def timed(make: Callable[[Path], Any], target: Path) -> float:
    """Seconds until `make` has filled a new `target` and all of it is on disk."""
    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    started = time.perf_counter()
    make(target)
    for path in files_under(target):
        synchronise(path)
    return time.perf_counter() - started


def run_main(main: Callable[[], None]) -> None:
    """Run a benchmark; what the user can fix ends in one line and exit status 2."""
    try:
        main()
    except UserError as error:
        print(error.line, file=sys.stderr)
        sys.exit(2)


def _run_side(function: str, arguments: str) -> None:
    module, _, name = function.partition(":")
    target = getattr(importlib.import_module(module), name)
    started = time.perf_counter()
    result = target(**json.loads(arguments))
    seconds = time.perf_counter() - started
    if isinstance(result, float):
        seconds = result
    print(MARK + json.dumps({"seconds": seconds, "peak_bytes": peak_memory(), "result": result}))


if __name__ == "__main__":
    _run_side(sys.argv[1], sys.argv[2])

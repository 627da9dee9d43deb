"""`make bench NAME=waiting`: training steps alone and next to a busy process, by how OpenMP's threads wait.

Threads that sleep at once (`OMP_WAIT_POLICY=passive`) leave the cores to other work; by default libgomp spins 300,000
times first. Without other work, sleeping costs too much to be the default; `make check` suggests it on busy cores.
"""

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.measurement import Side, alternate, row, run_main, write
from benchmarks.start import demo_init
from benchmarks.training import write_pairs
from benchmarks.training_sides import STEPS

POLICIES = {"passive": {"OMP_WAIT_POLICY": "passive"}, "libgomp's default": {"GOMP_SPINCOUNT": "300000"}}


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run `processes` processes that each keep a core busy."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def main() -> None:
    """Measure and write `runs/bench/waiting.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", type=Path, help="a model folder; default: the demo's base after init")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    init, rows = options.init or demo_init(), []
    with TemporaryDirectory(prefix="bench-waiting-") as scratch:
        write_pairs("symmetric", Path(scratch))
        arguments = {"init": str(init), "data": scratch, "side": "symmetric"}
        sides = [
            Side("benchmarks.training_sides:train_ours", arguments, environment=waits) for waits in POLICIES.values()
        ]
        for name, processes in (("alone", 0), ("beside_a_busy_process", 1)):
            with busy(processes):
                ours, theirs = (STEPS / run.seconds for run in alternate(*sides, rounds=options.rounds))
            what = f"symmetric steps {name.replace('_', ' ')}"
            rows.append(row(f"steps_per_second_passive_{name}", what, "steps/s", ours, "spinning", theirs, "higher"))
    write("waiting", rows)


if __name__ == "__main__":
    run_main(main)

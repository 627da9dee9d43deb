"""A sweep is one run a job, ends in one table, and goes on from what is finished."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest


def sweep(repository: Path, runs: Path, rates: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "pipeline.run", "--multirun", "sweep=learning_rate", "profile=tiny", f"runs={runs}",
        "launch.config=none", "stages=[data,init,symmetric]", "objective=symmetric.loss",
        f"training.symmetric.learning_rate={rates}",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, cwd=repository)


def table(runs: Path) -> list[dict[str, str]]:
    with (runs / "sweep" / "learning_rate" / "sweep.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_sweep_records_failed_jobs_and_goes_on_from_finished_ones(repository: Path, tmp_path: Path) -> None:
    first = sweep(repository, tmp_path, "1e-4,-1")
    assert first.returncode == 2 and "must be above 0" in first.stderr

    second = sweep(repository, tmp_path, "1e-4,1e-3")
    assert second.returncode == 0, second.stderr
    rows = table(tmp_path)
    assert sorted(row["overrides"].split("=")[1] for row in rows) == ["0.0001", "0.001"]
    assert all(float(row["symmetric.loss"]) > 0 for row in rows)
    assert second.stdout.count("data: up to date") == 2  # the one made before, and the one borrowed
    assert second.stdout.count("symmetric: making") == 1

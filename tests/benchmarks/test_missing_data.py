"""A benchmark without the real data ends in one line, before it measures anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["evaluation", "init"])
def test_missing_data_are_one_line(name: str, tmp_path: Path, repository: Path) -> None:
    environment = {**os.environ, "USER_SHARED_DATA": str(tmp_path / "nowhere"), "PYTHONPATH": str(repository)}
    environment.pop("ENCODECHKA_DATA_PATH", None)
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
    assert not [*tmp_path.rglob("*.safetensors")]

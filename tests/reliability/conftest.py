"""A fresh copy of a finished chain, in which a test may plant a fault."""

from pathlib import Path

import pytest

from tests.reliability.stage_runs import copied


@pytest.fixture
def run_folder(chain: Path, tmp_path: Path) -> Path:
    """`runs/tiny` below the test's own folder: all stages of profile tiny, complete."""
    return copied(chain, tmp_path / "runs")

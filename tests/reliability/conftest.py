"""The undisturbed chain, stage by stage."""

import signal
from pathlib import Path

import pytest

from tests.reliability import tiny_chain


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For each stage of profile tiny a folder that is ready for it; see `tiny_chain.snapshots`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else a background job's children would ignore it
    return tiny_chain.snapshots(tmp_path_factory.mktemp("chain") / "places")

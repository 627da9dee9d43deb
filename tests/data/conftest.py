"""Data prepared from the bundled samples, once per session; a single local file prepared for one test."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.schema.data import SourceConfig
from tests.support.prepared_data import Prepared, composed, run, run_config


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The 21 sets of mixture distinct, from the bundled samples."""
    return run(tmp_path_factory.mktemp("samples"), "data=distinct", "data.decontamination.suites=[]")


@pytest.fixture(scope="session")
def card(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The 21 sets of mixture card, from the bundled samples."""
    return run(tmp_path_factory.mktemp("card"), "data=card", "data.decontamination.suites=[]")


OneSet = Callable[..., Prepared]


@pytest.fixture
def one_set(tmp_path: Path) -> OneSet:
    """Prepare a single local file: one_set(path, "an.override=1", columns={...}, other fields of the source)."""

    def prepare(path: Path, *overrides: str, **source: Any) -> Prepared:
        given = {"title": "Mine", "side": "asymmetric", "path": str(path), "format": "jsonl", **source}
        config = composed("data.dev.anchors=0", *overrides)
        config.data.sources, config.data.held_out = {"mine": SourceConfig(**given)}, {}
        return run_config(config, tmp_path / "runs")

    return prepare

"""Running the data stage in this process, on the bundled samples or on files of a test's own."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from configs.schema.config import Config
from configs.schema.data import SourceConfig
from pipeline import application

REPOSITORY = application.CONFIGS.parent


@dataclass
class Prepared:
    """A finished data stage."""

    folder: Path

    @property
    def ledger(self) -> dict[str, dict[str, Any]]:
        return {line["name"]: line for line in json.loads((self.folder / "ledger.json").read_text())["sets"]}

    @property
    def account(self) -> dict[str, Any]:
        return json.loads((self.folder / "ledger.json").read_text())

    def pairs(self, kind: str, name: str) -> pl.DataFrame:
        return pl.read_parquet(self.folder / kind / f"{name}.parquet")

    def train(self) -> dict[str, pl.DataFrame]:
        files = [path for side in ("symmetric", "asymmetric") for path in (self.folder / side).glob("*.parquet")]
        return {path.stem: pl.read_parquet(path) for path in files}

    def files(self) -> dict[str, bytes]:
        """Contents of all artefact files but the manifest, which holds times."""
        found = (path for path in self.folder.rglob("*") if path.is_file() and path.name != "manifest.json")
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in found}


@lru_cache(maxsize=64)
def _composed(*overrides: str) -> Config:
    return application.composed("profile=tiny", f"mirror={REPOSITORY}/data/samples", *overrides)


def composed(*overrides: str) -> Config:
    """The typed config of profile tiny with these overrides."""
    return copy.deepcopy(_composed(*overrides))


def run(runs: Path, *overrides: str) -> Prepared:
    """Make the data stage below `runs`."""
    return run_config(composed(*overrides), runs)


def run_config(config: Config, runs: Path) -> Prepared:
    """Make the data stage of a config that was changed in place."""
    from pipeline.run import make

    config.runs, config.run = str(runs), "test"
    make("data", config)
    return Prepared(runs / "test" / "data")


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

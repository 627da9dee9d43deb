"""The data stage made in this process, on the bundled samples or on a test's own files."""

import copy
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl

from configs.schema.config import Config
from pipeline import application
from pipeline.run import make
from tests.support.runs import REPOSITORY


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
        return pl.read_parquet(self.folder / kind / f"{name}.parquet", glob=False)

    def train(self) -> dict[str, pl.DataFrame]:
        files = [path for side in ("symmetric", "asymmetric") for path in (self.folder / side).glob("*.parquet")]
        return {path.stem: pl.read_parquet(path, glob=False) for path in files}

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
    config.runs, config.run = str(runs), "test"
    make("data", config)
    return Prepared(runs / "test" / "data")

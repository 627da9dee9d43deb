"""The catalogue of bad input through each stage's own command: one line, status 2, nothing left behind."""

import json
import re
from pathlib import Path

import pytest

from configs.schema.config import Config
from tests.reliability.catalogue import CATALOGUE, Case
from tests.support.runs import Ended, remove_stage, run_command, run_main

LINE = re.compile(r"error: .+ \(.+\); .+")
FINISHED = ("ledger.json", "certificate.json", "model", "weights.json", "index.html")  # what complete stages have


def prepared(case: Case, run: Path) -> list[str]:
    """Plant the fault; returns the overrides of the command that meets it."""
    further = case.plant(run)
    remove_stage(run / case.stage)
    command = ["profile=tiny", f"runs={run.parent}", f"stages=[{case.stage}]", "launch.config=none"]
    return [*command, *further, *case.overrides]


def check(case: Case, run: Path, ended: Ended) -> None:
    lines = ended.err.strip().splitlines()
    assert ended.status == 2, ended
    assert len(lines) == 1 and LINE.fullmatch(lines[0]), lines
    assert re.search(case.named, lines[0]), lines[0]
    assert "Traceback" not in ended.out
    stage = run / case.stage
    assert [name for name in FINISHED if (stage / name).exists()] == []
    manifest = stage / "manifest.json"
    assert not manifest.exists() or json.loads(manifest.read_text())["status"] == "failed"
    unfinished = [path for path in run.parent.rglob("*") if "partial" in path.name or path.name in ("spill", "x.mined")]
    assert unfinished == []


@pytest.mark.parametrize("name", CATALOGUE)
def test_bad_input_is_one_line_and_leaves_nothing(name: str, run_folder: Path) -> None:
    case = CATALOGUE[name]
    overrides = prepared(case, run_folder)
    check(case, run_folder, run_main(*overrides))


@pytest.mark.parametrize("name", ["an unknown key", "no init"])
def test_the_command_in_its_own_process_ends_the_same_way(name: str, run_folder: Path) -> None:
    case = CATALOGUE[name]
    check(case, run_folder, run_command(*prepared(case, run_folder)))


def test_the_catalogue_covers_every_stage() -> None:
    assert len(CATALOGUE) >= 60
    assert {case.stage for case in CATALOGUE.values()} == set(Config().stages)

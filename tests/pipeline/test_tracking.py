"""Tracking: nothing unless asked for; then a run a stage, in one group, linked by fingerprints, without an account."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.artefact import Manifest, read_manifest
from pipeline.config import Config, TrackingConfig
from pipeline.errors import UserError
from pipeline.folder import StageFolder
from pipeline.tracking import link, tracked

STAGES = ["data", "init", "symmetric", "asymmetric", "merge"]
SECRET = "0123456789abcdef0123456789abcdef01234567"


def track(kind: str, tmp_path: Path) -> None:
    config = dataclasses.replace(Config(), run="x", runs=str(tmp_path), tracking=TrackingConfig(kind=kind))
    manifest = Manifest("data", "running", "f" * 64, {}, {})
    with tracked(config, StageFolder(tmp_path / "x" / "data", manifest.fingerprint, {}), manifest):
        raise AssertionError("the stage must not be made")


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"trackio can't be imported: .*; pip install trackio, or tracking=none"):
        track("trackio", tmp_path)


def test_a_tracker_that_can_t_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "no-such-mode")
    with pytest.raises(UserError, match=r"wandb can't start: .*WANDB_MODE=offline") as caught:
        track("wandb", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_no_tracker_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys, pipeline.run, training.run, evaluation.scoring; print({'wandb', 'trackio'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("set()\n")


def chain(repository: Path, runs: Path, *overrides: str, **environment: str) -> Path:
    command = [
        sys.executable, "-m", "pipeline.run", "profile=tiny", f"runs={runs}", "merging=uniform",
        f"stages=[{','.join(STAGES)}]", *overrides,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs / "tiny"


def fingerprints(run: Path) -> dict[str, str]:
    manifests = {stage: read_manifest(run / stage) for stage in STAGES} | {
        "base": read_manifest(run.parent / "bases" / "tiny")
    }
    return {stage: manifest.fingerprint for stage, manifest in manifests.items() if manifest}


def lines_of(run: Path, side: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / side / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_weights_and_biases_offline_gets_a_run_a_stage_with_config_curves_and_links(
    repository: Path, tmp_path: Path
) -> None:
    from tests.pipeline.offline_wandb import OfflineRun

    ranks = ["launch.config=cpu", "launch.processes=2"]
    environment = {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET, "WANDB_DATA_DIR": str(tmp_path / "staging")}
    run = chain(repository, tmp_path, "tracking=wandb", *ranks, **environment)
    made = [OfflineRun(folder) for folder in (run / "wandb").glob("offline-run-*")]
    stages = {offline.job_type: offline for offline in made}
    assert len(made) == len(stages) and stages.keys() == {*STAGES, "base"}
    assert {offline.group for offline in made} == {"tiny"} and {offline.exit_code for offline in made} == {0}

    known = fingerprints(run)
    for stage, offline in stages.items():
        name = link(stage, known[stage])
        assert (
            offline.config["fingerprint"] == known[stage] and offline.config["training"]["symmetric"]["max_steps"] == 8
        )
        assert offline.files == {name: ["manifest.json"]}
        assert offline.artefacts[name]["inputs"] == offline.config["inputs"]
    links = {name: stages["merge"].config["inputs"][name] for name in ("init", "symmetric", "asymmetric", "data")}
    assert links == {name: link(name, known[name]) for name in links}
    for side in ("symmetric", "asymmetric"):
        curve = [(entry["_step"], entry["loss"], entry["learning_rate"]) for entry in stages[side].history]
        assert curve == [(line["step"], line["loss"], line["learning_rate"]) for line in lines_of(run, side)]
    files = [path for path in (run / "wandb").rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


@pytest.mark.slow
def test_trackio_gets_the_same_without_a_network(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is an extra")
    import sqlite3

    run = chain(repository, tmp_path, "tracking=trackio", "launch.config=cpu", TRACKIO_DIR=str(tmp_path / "trackio"))
    with sqlite3.connect(tmp_path / "trackio" / "user-bge-m3.db") as database:
        configs = {name: json.loads(text) for name, text in database.execute("select run_name, config from configs")}
        logged = list(database.execute("select run_name, step, metrics from metrics order by id"))
        artefacts = {name for (name,) in database.execute("select name from artifacts")}
    known = fingerprints(run)
    assert {f"tiny-{stage}" for stage in known} == configs.keys()
    assert artefacts == {link(stage, fingerprint) for stage, fingerprint in known.items()}
    for side in ("symmetric", "asymmetric"):
        config = configs[f"tiny-{side}"]
        assert config["_Group"] == "tiny" and config["inputs"]["init"] == link("init", known["init"])
        losses = [json.loads(text).get("loss") for name, _, text in logged if name == f"tiny-{side}"]
        assert losses[: len(lines_of(run, side))] == [line["loss"] for line in lines_of(run, side)]

"""Tracking: nothing unless requested; then one run per stage, grouped, linked by fingerprints, without an account."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from configs.schema.config import Config, TrackingConfig
from pipeline.core.artefact import Manifest, StageFolder, read_manifest
from pipeline.core.errors import UserError
from pipeline.tracking import link, tracked
from tests.support.runs import finish, make, remove_stage, start

STAGES = ["data", "init", "symmetric", "asymmetric", "merge"]
SECRET = "0123456789abcdef0123456789abcdef01234567"


def track(kind: str, tmp_path: Path) -> None:
    config = dataclasses.replace(Config(), run="x", runs=str(tmp_path), tracking=TrackingConfig(kind=kind))
    manifest = Manifest("data", "running", "f" * 64, {}, {})
    with tracked(config, StageFolder("test", tmp_path / "x" / "data", manifest.fingerprint, {}), manifest):
        raise AssertionError("the stage must not be made")


def test_a_tracker_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match=r"trackio can't be imported: .*; .* -m pip install trackio, or tracking=none"):
        track("trackio", tmp_path)


def test_a_tracker_that_can_t_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "no-such-mode")
    with pytest.raises(UserError, match=r"wandb can't start: .*WANDB_MODE=offline") as caught:
        track("wandb", tmp_path)
    assert "\n" not in str(caught.value)


def test_a_tracker_that_fails_while_a_stage_is_made_gets_no_more_and_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = Mock()
    library.init.return_value.log.side_effect = ConnectionResetError("Connection lost")
    monkeypatch.setitem(sys.modules, "trackio", library)
    config = dataclasses.replace(Config(), run="x", runs=str(tmp_path), tracking=TrackingConfig(kind="trackio"))
    manifest = Manifest("data", "running", "f" * 64, {}, {}, metrics={"pairs": 3})
    with tracked(config, StageFolder("test", tmp_path / "x" / "data", "f" * 64, {}), manifest) as track:
        for step in range(3):
            track({"step": step, "loss": 1.0})
    assert library.init.return_value.log.call_count == 1
    assert caplog.text.count("data: trackio failed, and gets no more of it: Connection lost") == 1


@pytest.mark.slow
def test_no_tracker_is_imported_unless_it_is_asked_for() -> None:
    modules = "pipeline.run, training.finetune, evaluation.scoring"
    code = f"import sys, {modules}; print({{'wandb', 'trackio'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("set()\n")


def chain_of(runs: Path) -> list[str]:
    return ["profile=tiny", f"runs={runs}", "merging=uniform", f"stages=[{','.join(STAGES)}]"]


def fingerprints(run: Path) -> dict[str, str]:
    manifests = {stage: read_manifest(run / stage) for stage in STAGES} | {
        "base": read_manifest(run.parent / "bases" / "tiny")
    }
    return {stage: manifest.fingerprint for stage, manifest in manifests.items() if manifest}


def lines_of(run: Path, side: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / side / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_weights_and_biases_offline_gets_a_run_per_stage_with_config_curves_and_links(tmp_path: Path) -> None:
    from tests.support.offline_wandb import require_a_linked_chain

    ranks = ["launch.config=cpu", "launch.processes=2"]
    environment = {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRET, "WANDB_DATA_DIR": str(tmp_path / "staging")}
    make(*chain_of(tmp_path), "tracking=wandb", *ranks, env=os.environ | environment)
    stages = require_a_linked_chain(tmp_path / "tiny", tmp_path / "bases" / "tiny", SECRET)
    assert stages.keys() == {*STAGES, "base", "benchmarks"}
    assert stages["symmetric"].config["training"]["symmetric"]["max_steps"] == 8
    assert stages["merge"].config["inputs"].keys() == {"init", "symmetric", "asymmetric", "data"}


@pytest.mark.slow
def test_an_interrupted_stage_ends_as_failed_and_continues_in_the_same_run(run_folder: Path, tmp_path: Path) -> None:
    from tests.support.offline_wandb import OfflineRun

    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_DATA_DIR": str(tmp_path / "staging")}
    command = ["profile=tiny", f"runs={run_folder.parent}", "stages=[symmetric]", "tracking=wandb"]
    command += ["launch.config=cpu", "training.symmetric.max_steps=300"]
    remove_stage(run_folder / "symmetric")
    metrics = run_folder / "symmetric" / "metrics.jsonl"
    first = start(*command, env=environment)
    while not (metrics.is_file() and metrics.read_text().count("\n") > 3):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    assert finish(first).status == 128 + signal.SIGINT
    make(*command, env=environment)
    folders = sorted((run_folder / "wandb").glob("offline-run-*"))
    (one, stopped), (other, done) = [(folder.name.rpartition("-")[2], OfflineRun(folder)) for folder in folders]
    assert stopped.job_type == done.job_type == "symmetric"
    assert one == other and (stopped.exit_code, done.exit_code) == (1, 0)
    steps = [entry["_step"] for run in (stopped, done) for entry in run.history if "loss" in entry]
    assert steps == list(range(1, 301))


@pytest.mark.slow
def test_trackio_gets_the_same_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="trackio is an extra")
    import sqlite3

    place = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")}
    make(*chain_of(tmp_path), "tracking=trackio", "launch.config=cpu", env=place)
    run = tmp_path / "tiny"
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

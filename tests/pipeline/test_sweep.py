"""A sweep has one run per job, ends in one table, and continues from what is finished, also with concurrent jobs."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from configs.schema.config import Config
from pipeline.chain import CHAIN
from pipeline.core.artefact import Manifest, read_json, read_manifest, write_json
from pipeline.core.errors import REDACTED, UserError
from pipeline.stage import folder_and_manifest
from pipeline.sweep import RESULT, SweepTable, sweep_lock
from tests.support.runs import finish, read_csv
from tests.support.runs import start as started

GRID = ["training.symmetric.learning_rate=1e-4,1e-3", "training.symmetric.temperature=0.02,0.05"]
LAUNCHERS = ["basic", "submitit_local"]


def start(runs: Path, *overrides: str) -> subprocess.Popen[str]:
    common = ["--multirun", "sweep=learning_rate", "profile=tiny", f"runs={runs}", "objective=symmetric.loss"]
    return started(*common, *overrides)


def wait_for_training(process: subprocess.Popen[str], runs: Path) -> str:
    """Wait until the first job trains; returns its run's name."""
    while not (found := list(runs.glob("*/symmetric/manifest.json"))):
        assert process.poll() is None, finish(process)
        time.sleep(0.05)
    return found[0].parent.parent.name


def interrupt_once_training(process: subprocess.Popen[str], runs: Path) -> None:
    """Do what Ctrl-C does, as soon as the first job trains."""
    wait_for_training(process, runs)
    os.killpg(process.pid, signal.SIGINT)


def kill_once_training(process: subprocess.Popen[str], runs: Path) -> str:
    """Kill the first rank that trains, as a machine out of memory does; returns its run's name."""
    name = wait_for_training(process, runs)
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = child.cmdline()
            if f"run='{name}'" in command and "accelerate.commands.launch" not in command:
                child.kill()
    return name


def table(runs: Path) -> list[dict[str, str]]:
    return read_csv(runs / "sweep" / "learning_rate" / "sweep.csv")


def complete_manifests(runs: Path) -> dict[Path, bytes]:
    paths = runs.glob("*/*/manifest.json")
    return {
        path: path.read_bytes()
        for path in paths
        if (found := read_manifest(path.parent)) and found.status == "complete"
    }


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_an_interrupted_grid_of_four_jobs_ends_with_four_rows(launcher: str, tmp_path: Path) -> None:
    overrides = [*GRID, f"hydra/launcher={launcher}"]
    first = start(tmp_path, *overrides)
    interrupt_once_training(first, tmp_path)
    ended = finish(first)
    assert ended.status == 130 and "stopped; run the same command to continue" in ended.err
    assert not (tmp_path / "sweep/learning_rate/sweep.csv").exists()
    finished = complete_manifests(tmp_path)
    assert {path.parent.name for path in finished} >= {"data", "init"}

    ended = finish(start(tmp_path, *overrides))
    assert ended.status == 0, ended.err
    rows = table(tmp_path)
    assert len({row["overrides"] for row in rows}) == len({row["symmetric.loss"] for row in rows}) == 4
    assert all(float(row["symmetric.loss"]) > 0 and not row["error"] for row in rows)
    assert f"best: {rows[0]['overrides']}" in ended.out
    assert all(path.read_bytes() == content for path, content in finished.items())
    made = {path.resolve().stat().st_ino for path in tmp_path.glob("*/init/model.safetensors")}
    assert len(made) == 1  # one job made it, the others have links


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_failed_job_is_a_row_with_its_error_and_the_exit_status(launcher: str, tmp_path: Path) -> None:
    overrides = [f"hydra/launcher={launcher}", "launch.config=none"]
    rates = "training.symmetric.learning_rate=1e-4"
    ended = finish(start(tmp_path, f"{rates},-1", *overrides))
    assert ended.status == 2
    assert ended.err.startswith("error: must be above 0 (config key training.symmetric.learning_rate)")
    errors = {row["run"]: row["error"] for row in table(tmp_path)}
    assert errors.pop("tiny-training.symmetric.learning_rate=-1") == ended.err.strip()
    assert list(errors.values()) == [""]

    assert finish(start(tmp_path, f"{rates},1e-3", *overrides)).status == 0
    assert len(table(tmp_path)) == 2  # nothing is left of the job that failed


@pytest.mark.slow
def test_a_job_whose_run_has_too_long_a_name_is_a_row_too(tmp_path: Path) -> None:
    rates = "training.symmetric.learning_rate=1e-4,2e-4"
    ended = finish(start(tmp_path, rates, "stages=[base]", f"run={'r' * 300}"))
    assert ended.status == 2 and ended.err.count("of up to 255 bytes (config key run)") == 2
    assert ended.out.startswith("Launching 2 jobs locally\n\t#0 : training.symmetric.learning_rate=")
    assert len(table(tmp_path)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_whose_training_is_killed_is_a_row_and_the_others_continue(launcher: str, tmp_path: Path) -> None:
    overrides = ["training.symmetric.learning_rate=1e-4,1e-3", f"hydra/launcher={launcher}", "launch.config=cpu"]
    first = start(tmp_path, *overrides)
    killed = kill_once_training(first, tmp_path)
    ended = finish(first)
    assert ended.status == 2, ended.err
    rows = {row["run"]: row for row in table(tmp_path)}
    log = tmp_path / killed / "logs" / "symmetric.log"
    what = "error: symmetric ended with status 1"
    assert rows[killed]["error"] == f"{what} ({log}); see its last lines there and above"
    assert rows[killed]["error"] in ended.err.splitlines()
    assert log.is_file() and rows.pop(killed)["symmetric.loss"] == ""
    (other,) = rows.values()
    assert float(other["symmetric.loss"]) > 0 and not other["error"]

    assert finish(start(tmp_path, *overrides)).status == 0
    assert all(float(row["symmetric.loss"]) > 0 for row in table(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_second_sweep_of_the_same_name_is_refused_and_takes_no_row_from_the_first(
    launcher: str, tmp_path: Path
) -> None:
    overrides = ["launch.config=none", f"hydra/launcher={launcher}"]
    first = start(tmp_path, "training.symmetric.learning_rate=1e-4,1e-3", *overrides)
    wait_for_training(first, tmp_path)
    ended = finish(start(tmp_path, "training.symmetric.learning_rate=1e-2", *overrides))
    assert ended.status == 2 and ended.err.startswith("error: another sweep of this name is running")
    assert finish(first).status == 0
    assert len(table(tmp_path)) == 2


@pytest.mark.slow
def test_a_job_that_crashes_in_its_own_process_is_a_row_too(tmp_path: Path) -> None:
    code = "from pipeline.application import hydra_application as app; app(lambda config: 1 // (config.seed - 1))()"
    overrides = ["--multirun", "profile=tiny", "seed=1,2", f"runs={tmp_path}"]
    ended = finish(started(*overrides, code=code))
    (crashed,) = [row for row in read_csv(tmp_path / "sweep/None/sweep.csv") if row["error"]]
    log = tmp_path / "sweep" / "None" / "0" / "run.log"
    assert (ended.status, crashed["overrides"]) == (2, "seed=1")
    what = "error: ZeroDivisionError: integer division or modulo by zero"
    assert crashed["error"] == f"{what} ({log}); see the traceback there"
    assert "Traceback" in log.read_text(encoding="utf-8")
    assert "no job has a value of merge.dev: objective=" in ended.out  # also not the one that ended well


def config_of(folder: Path, **job: Any) -> DictConfig:
    hydra = {"sweep": {"dir": str(folder)}, "mode": RunMode.MULTIRUN, "runtime": {"output_dir": str(folder / "0")}}
    hydra |= {"job": {"num": 0}, "overrides": {"task": ["seed=1", "a=hunter2hunter2"]}}
    return OmegaConf.create({"objective": "merge.dev", "runs": str(folder), "run": "one", "hydra": hydra | job})


def write_result(folder: Path, job: int, score: float | None, error: str | None = None) -> None:
    result = {"job": job, "run": f"run-{job}", "overrides": [f"seed={job}", "profile=tiny"]}
    (folder / str(job)).mkdir()
    write_json(folder / str(job) / RESULT, result | {"score": score, "error": error})


def test_the_best_job_is_named_with_those_that_share_its_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for job, score in enumerate([0.1, None, -0.2, 0.3, 0.3]):
        write_result(tmp_path, job, score)
    SweepTable().on_multirun_end(config_of(tmp_path))
    assert capsys.readouterr().out.endswith("best: seed=3 (equal: 1 more)\n")
    rows = read_csv(tmp_path / "sweep.csv")
    assert [row["overrides"] for row in rows] == [f"seed={job}" for job in (3, 4, 0, 2, 1)]
    assert [row["merge.dev"] for row in rows] == ["0.3", "0.3", "0.1", "-0.2", ""]


def test_an_objective_that_is_no_number_is_no_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manifest = Manifest("merge", "complete", "merge of a test", {}, {}, metrics={"method": "fixed"})
    for job in range(2):
        (tmp_path / str(job)).mkdir()
        manifest.write(tmp_path / f"run-{job}" / "merge")
        config = config_of(tmp_path, job={"num": job}, runtime={"output_dir": str(tmp_path / str(job))})
        config.objective, config.run = "merge.method", f"run-{job}"
        SweepTable().on_job_end(config, JobReturn(status=JobStatus.COMPLETED, _return_value=None))
    SweepTable().on_multirun_end(config)
    assert "no job has a value of merge.method: objective=<stage>.<one of" in caplog.text


def test_a_sweep_with_a_failed_job_ends_with_its_error_and_status_2_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_result(tmp_path, 0, None, "error: no")
    write_result(tmp_path, 1, 0.5)
    with pytest.raises(SystemExit) as ended:
        SweepTable().on_multirun_end(config_of(tmp_path))
    assert ended.value.code == 2 and capsys.readouterr().err == "error: no\n"
    assert [row["error"] for row in read_csv(tmp_path / "sweep.csv")] == ["", "error: no"]


def test_a_job_that_would_replace_the_run_of_an_earlier_one_is_refused_but_after_a_failure(tmp_path: Path) -> None:
    sweep = SweepTable()
    write_result(tmp_path, 0, None, "error: no")
    write_result(tmp_path, 1, 0.5)
    config = config_of(tmp_path)
    for config.run in ("run-0", "run-2"):
        sweep.on_job_start(config)
    config.run = "run-1"
    with pytest.raises(UserError, match=r"two jobs of this sweep have the run run-1 \(config key run\)"):
        sweep.on_job_start(config)
    sweep.on_job_start(config_of(tmp_path, mode=RunMode.RUN))


@pytest.mark.parametrize(
    ("mode", "status", "error", "score"),
    [
        (RunMode.MULTIRUN, JobStatus.COMPLETED, None, 0.7),
        (RunMode.MULTIRUN, JobStatus.COMPLETED, "error: no", None),  # an earlier attempt's score is not this job's
        (RunMode.MULTIRUN, JobStatus.FAILED, None, "no result"),
        (RunMode.RUN, JobStatus.COMPLETED, None, "no result"),
    ],
)
def test_a_job_s_result_is_the_objective_in_its_run_without_secrets(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: RunMode,
    status: JobStatus,
    error: str | None,
    score: object,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hunter2hunter2")
    for folder in ("one/merge", "0"):
        (tmp_path / folder).mkdir(parents=True)
    metrics = {"dev": 0.7, "dev_under_guard": 0.6}
    Manifest("merge", "complete", "merge of a test", {}, {}, metrics=metrics).write(tmp_path / "one" / "merge")
    job_return = JobReturn(status=status)
    job_return.return_value = error
    SweepTable().on_job_end(config_of(tmp_path, mode=mode), job_return)
    path = tmp_path / "0" / RESULT
    assert path.exists() == (score != "no result")
    if path.exists():
        made = {"job": 0, "run": "one", "score": score, "error": error}
        assert read_json(path) == made | {"overrides": ["seed=1", f"a={REDACTED}"]}


def test_a_sweep_forgets_earlier_results_and_refuses_a_second_one(tmp_path: Path) -> None:
    write_result(tmp_path, 7, 0.9)
    SweepTable().on_multirun_start(config_of(tmp_path))
    first = SweepTable.lock
    assert not (tmp_path / "7" / RESULT).exists()
    (tmp_path / "7" / RESULT).touch()  # of the sweep that runs
    with pytest.raises(UserError, match="another sweep of this name is running"):
        SweepTable().on_multirun_start(config_of(tmp_path))
    first.release()
    assert (tmp_path / "7" / RESULT).exists()


@pytest.mark.parametrize("borrow", [True, False])
def test_only_jobs_that_borrow_hold_the_lock_that_is_the_same_for_the_same_artefact(
    tmp_path: Path, borrow: bool
) -> None:
    config = Config(profile="tiny", run="one", runs=str(tmp_path), borrow=borrow)
    with sweep_lock(CHAIN["base"], config):
        held = [path.name for path in tmp_path.rglob("*.lock")]
        folder, _ = folder_and_manifest(CHAIN["base"], dataclasses.replace(config, run="two"))
        assert held == [f"{folder.fingerprint[:32]}.lock"] * borrow

"""What a user gets wrong on the command line ends in one line and exit status 2."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.application import LAUNCHED

BAD_COMMAND_LINES = {
    "an unknown key": (["nonsense=1"], "nonsense"),
    "an unknown nested key": (["data.nonsense=1"], "nonsense"),
    "a misspelt profile": (["profile=demoo"], "profile/demoo"),
    "a misspelt group choice": (["base=nonsense"], "base/nonsense"),
    "a wrong type": (["seed=many"], "seed"),
    "an impossible value": (["precision=fp8"], "config key precision"),
    "an impossible value of a part": (["launch.processes=0"], "config key launch.processes"),
    "a stage that does not exist": (["stages=[data,nonsense]"], "config key stages"),
    "a run name that is a path": (["run=../elsewhere"], "config key run"),
    "a mirror that does not exist": (["mirror=/no/such/folder"], "config key mirror"),
    "a malformed override": (["seed"], "seed"),
}


def run_module(module: str, *overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *overrides], capture_output=True, text=True, cwd=cwd)


@pytest.mark.parametrize("case", BAD_COMMAND_LINES)
def test_a_bad_command_line_is_one_line_and_status_2(case: str, repository: Path, tmp_path: Path) -> None:
    overrides, named = BAD_COMMAND_LINES[case]
    done = run_module("pipeline.run", "profile=tiny", f"runs={tmp_path}", *overrides, cwd=repository)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0] and "; " in lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not any(tmp_path.rglob("manifest.json"))


def start_application(job: str, runs: Path, repository: Path, *overrides: str) -> subprocess.Popen[str]:
    """A command of which `job` is the work, an expression of Python."""
    code = (
        "import logging, os, signal, time; from pipeline.application import hydra_application\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background\n"
        f"hydra_application(lambda config: {job})()"
    )
    command = [sys.executable, "-c", code, "profile=tiny", f"runs={runs}", *overrides]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=repository)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_with_one_line_and_its_status(
    number: signal.Signals, repository: Path, tmp_path: Path
) -> None:
    process = start_application(f"(os.kill(os.getpid(), {number:d}), time.sleep(60))", tmp_path, repository)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, "stopped; the same command goes on from here\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_that_waits_for_its_training(
    number: signal.Signals, repository: Path, tmp_path: Path
) -> None:
    silent = "__import__('pipeline.launch').launch.relay(open(os.pipe()[0], 'rb'))"
    job = f"(print(__import__('polars').__name__, flush=True), {silent})"  # polars handles SIGINT in its own way
    process = start_application(job, tmp_path, repository)
    assert process.stdout and process.stdout.readline() == "polars\n"
    time.sleep(0.5)  # until it waits
    process.send_signal(number)
    assert process.wait(timeout=10) == 128 + number


def test_a_rank_whose_launching_command_is_gone_stops(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(os.environ, LAUNCHED, "1")
    process = start_application("(print('begun', flush=True), time.sleep(60))", tmp_path, repository)
    assert process.stdout and process.stderr and process.stdout.readline() == "begun\n"
    process.stderr.close()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM


def test_a_full_disk_outside_of_any_stage_is_one_line(repository: Path, tmp_path: Path) -> None:
    full = "__import__('pathlib').Path('/dev/full').write_text('x')"
    process = start_application(full, tmp_path, repository)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("error: can't write: No space left on device") and said.count("\n") == 1


def test_a_log_that_can_t_be_opened_is_named(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "tiny/logs/run.log"
    log.mkdir(parents=True)
    _, said = start_application("None", tmp_path, repository).communicate(timeout=60)
    assert said == f"error: can't write the logs: Is a directory ({log}); set runs=<folder that can be written>\n"


def test_the_log_is_rotated(repository: Path, tmp_path: Path) -> None:
    bound = "hydra.job_logging.handlers.file.maxBytes=300"
    job = "[logging.getLogger('pipeline').info('line %d', number) for number in range(100)]"
    _, said = start_application(job, tmp_path, repository, bound).communicate(timeout=60)
    logs = sorted((tmp_path / "tiny/logs").iterdir())
    assert [path.name for path in logs] == ["run.log", "run.log.1", "run.log.2", "run.log.3"], said
    assert all(path.stat().st_size <= 300 for path in logs)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_cfg_job_prints_the_resolved_config(order: slice, repository: Path) -> None:
    parts = [["--cfg", "job"], ["profile=demo", "seed=7"]][order]
    done = run_module("pipeline.run", *parts[0], *parts[1], cwd=repository)
    assert done.returncode == 0 and "seed: 7" in done.stdout and "profile: demo" in done.stdout

"""A launched stage's error stays one line, whatever the launcher adds."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from configs.schema.config import Config, LaunchConfig
from pipeline import launch
from pipeline.application import CONFIGS, LAUNCHED, composed
from pipeline.core.errors import Died, UserError
from pipeline.launch import launch_command, relay
from tests.support.runs import finish, remove_stage, start


def relayed(code: str, capfd: pytest.CaptureFixture[str]) -> tuple[str | None, str]:
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        line = relay(process.stderr)
    return line, capfd.readouterr().err


@pytest.mark.parametrize("cut", [0, 5, 10, 20])
def test_an_error_line_is_caught_in_any_pieces_and_the_launchers_traceback_is_dropped(
    cut: int, capfd: pytest.CaptureFixture[str]
) -> None:
    written = b"step 1\nerror: no data (x); get some\nTraceback: ...\n" + b"y" * 99999
    code = f"import os, time; os.write(2, {written[:cut]}); time.sleep(0.2); os.write(2, {written[cut:]})"
    line, passed_on = relayed(code, capfd)
    assert line == "error: no data (x); get some"
    assert "Traceback" not in passed_on and "yyy" not in passed_on


def test_what_is_not_an_error_line_passes_through(capfd: pytest.CaptureFixture[str]) -> None:
    line, passed_on = relayed("import sys; sys.stderr.write('a warning, no error: here\\n' * 3000)", capfd)
    assert line is None and passed_on == "a warning, no error: here\n" * 3000


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("error: no memory (rank 1); lower it", UserError, "no memory"),
        ("W api.py:1028] Sending process 7 closing signal SIGTERM", Died, "137"),  # torchrun, after a crash
    ],
)
def test_ranks_that_wait_for_one_that_failed_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, error: type[BaseException], message: str
) -> None:
    monkeypatch.setattr(launch, "RANKS_END_SECONDS", 0.5)
    failing = """if True:
        import os, subprocess, sys, time
        rank = subprocess.Popen(["sleep", "60"], start_new_session=True)  # as torchrun starts them
        open(sys.argv[1], "w").write(str(rank.pid))
        os.write(2, sys.argv[2].encode() + b"\\n")
        rank.wait()
    """
    started = time.monotonic()
    with pytest.raises(error, match=message):
        command = [sys.executable, "-c", failing, str(tmp_path / "rank"), line]
        launch.run_command(command, dict(os.environ), "symmetric", tmp_path / "log")
    assert time.monotonic() - started < 30
    rank = int((tmp_path / "rank").read_text())
    while psutil.pid_exists(rank) and psutil.Process(rank).status() != psutil.STATUS_ZOMBIE:  # its end takes a moment
        assert time.monotonic() - started < 30
        time.sleep(0.1)


def test_an_error_round_trips_through_its_line() -> None:
    error = UserError("2 rows (of 3) are bad; see below", where="set rcb, row 1", remedy="fix; or drop them")
    again = UserError.from_line(error.line)
    assert again.line == error.line and again.remedy == error.remedy and again.where == "set rcb, row 1"


def test_the_launch_file_and_the_number_of_processes_come_from_the_config() -> None:
    config = dataclasses.replace(Config(), launch=LaunchConfig(config="cpu", processes=2))
    command = launch_command(config)
    assert Path(command[command.index("--config_file") + 1]).name == "cpu.yaml"
    assert command[command.index("--num_processes") + 1] == "2"
    assert command[command.index("--main_process_port") + 1] == "0"  # two trainings on one machine don't meet


@pytest.mark.parametrize(
    ("devices", "chosen", "file", "ranks"),
    [(0, "auto", "cpu", "1"), (1, "auto", "gpu", "1"), (2, "auto", "gpus", "2"), (4, "gpus", "gpus", "4")],
)
def test_a_machine_s_gpus_choose_the_launch_file_and_share_its_cores(
    devices: int, chosen: str, file: str, ranks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: devices)
    monkeypatch.setattr(launch, "cores", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = launch_command(dataclasses.replace(Config(), launch=LaunchConfig(config=chosen)))
    assert Path(command[command.index("--config_file") + 1]).stem == file
    assert command[command.index("--num_processes") + 1] == ranks
    assert int(command[command.index("--num_cpu_threads_per_process") + 1]) == 12 // int(ranks)


@pytest.mark.parametrize(("name", "seen"), [("cpu", ""), ("gpus", "2,3")])
def test_ranks_get_this_command_s_settings_and_to_train_on_the_cpu_see_no_gpu(
    name: str, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[list[str], dict[str, str]]] = []
    own = {"CUDA_VISIBLE_DEVICES": "2,3", "PYTHONPATH": "mine", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "7"}
    for variable, value in own.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr(launch, "passed_on", lambda: ["profile=tiny", "stages=[data,symmetric]"])
    monkeypatch.setattr(launch, "run_command", lambda command, environment, *_: given.append((command, environment)))
    launch.launch("symmetric", dataclasses.replace(Config(), run="a=1,b", launch=LaunchConfig(config=name)))
    ((command, environment),) = given
    assert command[-4:] == ["profile=tiny", "stages=[data,symmetric]", "run='a=1,b'", "stages=[symmetric]"]
    places = os.pathsep.join([str(CONFIGS.parent), "mine"])
    changed = {"CUDA_VISIBLE_DEVICES": seen, "PYTHONPATH": places, LAUNCHED: "1", "PIPELINE_JOB": "symmetric"}
    assert environment == os.environ | changed


def test_an_unknown_launch_file_is_refused_with_the_choices_before_anything_is_made() -> None:
    with pytest.raises(UserError, match=r"must be one of auto, none, cpu, .*, not tpu \(config key launch\.config\)"):
        composed("profile=tiny", "launch.config=tpu")


def until_it_trains(run_folder: Path, *overrides: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """A command that trains a side of the copied run for long, after its first steps."""
    remove_stage(run_folder / "symmetric")
    long = ["training.symmetric.max_steps=4000", "training.symmetric.checkpoint_steps=2000", "run=tiny"]
    long.append("training.symmetric.learning_rate=3e-5")  # one that the study tried: training warns about others
    launched = ["launch.config=cpu", f"runs={run_folder.parent}", "stages=[symmetric]", *overrides]
    process = start("profile=tiny", *long, *launched, env=env)
    metrics = run_folder / "symmetric/metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 2)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_save_and_end_with_the_command_that_launched_them(
    run_folder: Path, ranks: int, workers: int, number: signal.Signals
) -> None:
    of_data = f"+training.symmetric.arguments.dataloader_num_workers={workers}"
    process = until_it_trains(run_folder, f"launch.processes={ranks}", of_data)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    ended = finish(process)
    assert ended.status == (-9 if number == signal.SIGKILL else 143)
    assert ended.err == ("" if number == signal.SIGKILL else "stopped; run the same command to continue\n")
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert len(list(run_folder.glob("symmetric/checkpoints/checkpoint-*/complete.json"))) == 1


LONG_STEP = """
import os, signal, time
if "LOCAL_RANK" in os.environ:
    install = signal.signal
    signal.signal = lambda number, handler: install(number, slow(handler) if number == signal.SIGTERM else handler)
def slow(handler):
    return (lambda *signalled: (time.sleep(35), handler(*signalled))) if callable(handler) else handler
"""


@pytest.mark.slow
def test_a_step_longer_than_torchrun_s_patience_still_saves(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(LONG_STEP)
    process = until_it_trains(run_folder, "launch.processes=2", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everyone:  # as SLURM does: torchrun, which is an agent, gets it too
        one.send_signal(signal.SIGTERM)
    assert finish(process).status == 143
    assert psutil.wait_procs(everyone[1:], timeout=60)[1] == []
    assert len(list(run_folder.glob("symmetric/checkpoints/checkpoint-*/complete.json"))) == 1

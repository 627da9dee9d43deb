"""Runs one prepared side as a process of its own, so that tests can kill it: `-m tests.support.training_process`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from pipeline.application import CONFIGS
from pipeline.chain import CHAIN
from pipeline.stage import run_stage
from tests.support.planned_sets import prepared_run

CPU = CONFIGS / "accelerate" / "cpu.yaml"


def start(folder: Path, processes: int, **side: Any) -> subprocess.Popen[bytes]:
    """Train the symmetric side of the run in `folder` in fresh processes."""
    module = ["-m", "tests.support.training_process", str(folder), str(processes), json.dumps(side)]
    launcher = ["-m", "accelerate.commands.launch", "--config_file", str(CPU), "--quiet"]
    launcher += ["--num_processes", str(processes), "--main_process_port", "0"]
    command = [sys.executable, *(launcher if processes > 1 else []), *module]
    log = (folder / "log.txt").open("ab")
    return subprocess.Popen(command, cwd=CONFIGS.parent, stdout=log, stderr=log)


def finish(folder: Path, processes: int, **side: Any) -> bytes:
    """Train to the end; returns the bytes of the weights."""
    done = start(folder, processes, **side).wait(timeout=300)
    assert done == 0, (folder / "log.txt").read_text()
    return (folder / "one/symmetric/model/model.safetensors").read_bytes()


def stop_at(folder: Path, processes: int, step: int, how: signal.Signals, **side: Any) -> int:
    """Train, send the signal once `step` is done, and wait for the end; returns the exit status.

    SIGKILL goes to the launcher and the ranks, which are sessions of their own; other signals to the launcher alone.
    """
    process = start(folder, processes, **side)
    metrics = folder / "one/symmetric/metrics.jsonl"
    until = time.monotonic() + 300
    while not metrics.exists() or metrics.read_text().count("\n") < step:
        assert process.poll() is None and time.monotonic() < until, (folder / "log.txt").read_text()
        time.sleep(0.02)
    everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everyone if how == signal.SIGKILL else everyone[:1]:
        one.send_signal(how)
    psutil.wait_procs(everyone[1:], timeout=120)
    return process.wait(timeout=120)


def main(folder: str, processes: str, side: str) -> None:
    assert int(os.environ.get("WORLD_SIZE", "1")) == int(processes)
    config = prepared_run(Path(folder), {}, **json.loads(side))
    manifest = run_stage(CHAIN["symmetric"], config)
    from accelerate import PartialState

    assert PartialState().num_processes == int(processes)
    assert manifest.status == "complete"


if __name__ == "__main__":
    main(*sys.argv[1:])

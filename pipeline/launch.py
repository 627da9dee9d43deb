"""Training as a sub-process of `accelerate launch`, which owns everything distributed."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import psutil

from configs.schema.config import Config
from pipeline.application import CONFIGS, LAUNCHED, passed_on, quoted
from pipeline.core.errors import Died, UserError
from pipeline.core.machine import cores

# Seconds between SIGTERM and SIGKILL for ranks that finish a step and save a checkpoint; 30 by
# torchrun's default is too short. SLURM sends SIGTERM to all of a job's processes and kills those that take too long.
SHUTDOWN = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3600"}
RANKS_END_SECONDS = 60  # until ranks must have ended after another one failed: they may wait for it indefinitely
ERROR = b"\nerror: "
ENDING = b" closing signal SIGTERM"  # torchrun, to the other ranks after one has crashed


def launch(stage: str, config: Config) -> None:
    """Run `python -m pipeline.run stages=[stage]` under accelerate, with this process's config."""
    run = f"run={quoted(config.run)}"  # a sweep names runs by their overrides, whose `=` and `,` need quotes
    chosen = [*passed_on(), run, f"stages=[{stage}]"]
    command = [*launch_command(config), "-m", "pipeline.run", *chosen]
    paths = [str(CONFIGS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = SHUTDOWN | os.environ | {"PYTHONPATH": os.pathsep.join(paths), LAUNCHED: "1", "PIPELINE_JOB": stage}
    if config.launch.config == "cpu":  # the launcher tells its ranks nothing of use_cpu: they would take the GPUs
        environment["CUDA_VISIBLE_DEVICES"] = ""
    run_command(command, environment, stage, config.run_folder / "logs" / f"{stage}.log")


def run_command(command: list[str], environment: dict[str, str], name: str, log: Path) -> None:
    """Run a command of the pipeline that writes to this log, and stop it if this process is stopped.

    Raises UserError with the command's own error line if it printed one; on any other failure, Died.
    """
    # In its own process group: Ctrl-C reaches this process only, which then stops the launcher and a single rank.
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, start_new_session=True) as process:
        assert process.stderr is not None
        try:
            line = relay(process.stderr)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            while os.read(process.stderr.fileno(), 65536):
                pass  # until the last rank has ended: it may be saving a checkpoint
            raise
        _kill(process.pid)  # ranks still running are waiting for the one that failed
    if line:
        raise UserError.from_line(line)
    if process.returncode:
        status = process.returncode if process.returncode > 0 else 128 - process.returncode
        raise Died(name, status, str(log))


def _kill(launcher: int) -> None:
    """Kill a launcher and its ranks, which torchrun starts in separate sessions."""
    with contextlib.suppress(psutil.Error):
        for one in (*psutil.Process(launcher).children(recursive=True), psutil.Process(launcher)):
            with contextlib.suppress(psutil.Error):
                one.kill()


def launch_command(config: Config) -> list[str]:
    """`accelerate launch` with the configured file of configs/accelerate; `auto` picks one by the devices."""
    name, processes = config.launch.config, config.launch.processes
    if name in ("auto", "gpus", "nodes"):
        import torch

        devices = torch.cuda.device_count()
        processes = config.ranks(devices)  # not the file's number
        if name == "auto":
            name = "nodes" if config.launch.nodes > 1 else ("cpu", "gpu")[devices] if devices < 2 else "gpus"
    file = CONFIGS / "accelerate" / f"{name}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "--quiet"]
    if processes:
        command += ["--num_processes", str(processes)]
    # On one machine any free port will do: another training may be running.
    command += rendezvous(config.launch.nodes) if config.launch.nodes > 1 else ["--main_process_port", "0"]
    if "OMP_NUM_THREADS" not in os.environ:  # else the launcher counts the cores of CPU ranks and prints a warning
        threads = max(cores() * config.launch.nodes // (processes or 1), 1)
        command += ["--num_cpu_threads_per_process", str(threads)]
    return command


def rendezvous(nodes: int) -> list[str]:
    """The rendezvous of several machines' launchers, from the environment; raises UserError if it is not set."""
    if "MASTER_ADDR" not in os.environ:
        where, remedy = "environment variable MASTER_ADDR", "set it to the first machine's name on every machine"
        raise UserError(f"{nodes} machines need a rendezvous", where=where, remedy=remedy)
    return [
        *("--num_machines", str(nodes), "--machine_rank", os.environ.get("NODE_RANK", "0")),
        *("--main_process_ip", os.environ["MASTER_ADDR"]),
        *("--main_process_port", os.environ.get("MASTER_PORT", "29500")),
        *("--rdzv_conf", "read_timeout=600"),  # seconds that other machines wait for the first one
    ]


def relay(stream: IO[bytes]) -> str | None:
    """Forward a child's stderr; returns its `error:` line, and drops what launchers print after it.

    Ends with the stream or, once a rank has failed, after `RANKS_END_SECONDS` of silence.
    """
    signal.siginterrupt(signal.SIGINT, True)  # polars has reads resume after Ctrl-C, until training has ended
    seen = b"\n"  # a possible start of the error line, or the line itself once found
    found = failed = False
    while not failed or select.select([stream], [], [], RANKS_END_SECONDS)[0]:
        if not (chunk := os.read(stream.fileno(), 65536)):
            break
        seen += chunk
        start = -1 if found else seen.find(ERROR)
        failed = failed or start >= 0 or ENDING in seen
        if start >= 0:
            found, seen = True, seen[start + 1 :]
        elif not found:
            sys.stderr.buffer.write(chunk)
            sys.stderr.flush()
            seen = seen[-len(ENDING) :]
    return seen.split(b"\n")[0].decode(errors="replace") if found else None

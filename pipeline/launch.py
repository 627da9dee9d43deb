"""Training as a sub-process of `accelerate launch`, which owns everything distributed."""

import os
import subprocess
import sys
from typing import IO

from hydra.core.hydra_config import HydraConfig

from pipeline.application import CONFIGS
from pipeline.config import Config
from pipeline.errors import UserError


def launch(module: str, overrides: list[str], config: Config) -> None:
    """Run `python -m module` under accelerate with this process's overrides and `overrides`.

    Raises UserError with the child's own line where the child ended in one; on another failure, SystemExit.
    """
    command = [*launch_command(config), "-m", module, *HydraConfig.get().overrides.task, *overrides]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, cwd=CONFIGS.parent) as process:
        assert process.stderr is not None
        try:
            line = _relay(process.stderr)
        except BaseException:
            process.terminate()
            raise
    if line:
        what, _, remedy = line.removeprefix("error: ").rpartition("; ")
        what, _, where = what.rpartition(" (")
        raise UserError(what, where=where.rstrip(")"), remedy=remedy)
    if process.returncode:
        sys.exit(process.returncode if process.returncode > 0 else 128 - process.returncode)


def launch_command(config: Config) -> list[str]:
    """`accelerate launch` with the configured (or, for `auto`, the fitting) file of configs/accelerate."""
    name, processes = config.launch.config, config.launch.processes
    if name == "auto":
        import torch

        devices = torch.cuda.device_count()
        name = "nodes" if config.launch.nodes > 1 else ("cpu", "gpu")[devices] if devices < 2 else "gpus"
        processes = processes or max(devices, 1)
    file = CONFIGS / "accelerate" / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise UserError(
            f"no such launch file: {name}",
            where="config key launch.config",
            remedy=f"choose one of auto, {known}",
        )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), "--quiet"]
    if processes:
        command += ["--num_processes", str(processes)]
    return command


def _relay(stream: IO[bytes]) -> str | None:
    """Pass a child's stderr on as it comes; returns its `error:` line, and drops what launchers print after it."""
    tail, found = b"", False
    while chunk := os.read(stream.fileno(), 65536):
        tail += chunk
        if not found:
            start = tail.find(b"error: ") if tail.startswith(b"error: ") else tail.find(b"\nerror: ") + 1
            found = start > 0 or tail.startswith(b"error: ")
            if found:
                tail = tail[start:]
            else:
                sys.stderr.buffer.write(chunk)
                sys.stderr.flush()
                tail = tail[-8:]
    return tail.split(b"\n")[0].decode(errors="replace") if found else None

"""The machine and the process: what a manifest says of them, and `python -m pipeline.core.machine` after set-up."""

import importlib.metadata
import os
import platform
import resource
import shutil
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import PartialState

PACKAGES = ("torch", "transformers", "sentence-transformers", "datasets", "accelerate", "LM-Cocktail", "mteb")


def reset_peak_memory() -> None:
    """Start the high-water mark anew (Linux), so that stages run in one process each report their own."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def environment() -> dict[str, Any]:
    """Versions and machine, for the manifest; never part of a fingerprint."""
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "packages": versions,
    }


def joined_ranks(timeout: float) -> "PartialState":
    """This process among its ranks. The first call makes their group; its operations may take `timeout` seconds."""
    import torch
    from accelerate import PartialState

    # Without cpu=True ranks on CPU would each stand alone.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(seconds=timeout))


def torch_build() -> str:
    """Which build of torch is installed, with a warning where a GPU would stay unused."""
    import torch

    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return f"torch {torch.__version__}: WARNING, a GPU is here but this build is for CPU; install a CUDA build"
    devices = torch.cuda.device_count()
    return f"torch {torch.__version__}, {f'CUDA {torch.version.cuda}, {devices} GPUs' if devices else 'CPU'}"


if __name__ == "__main__":
    print(torch_build())

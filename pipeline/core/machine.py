"""The machine and the process, as manifests record them; `python -m pipeline.core.machine` runs after set-up."""

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError, first_line

if TYPE_CHECKING:
    from accelerate import PartialState

PACKAGES = (  # those that affect results
    *("torch", "transformers", "tokenizers", "sentence-transformers", "datasets", "accelerate", "LM-Cocktail", "mteb"),
    *("numpy", "scipy", "scikit-learn"),
)
ROOT = Path(__file__).resolve().parents[2]
# A variable that torch reads when it first uses a GPU: batches differ in length, and blocks of fixed sizes would
# fragment the memory.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def reset_peak_memory() -> None:
    """Reset the peak memory counters (the process's own on Linux only), so that each stage reports its own peak."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if cuda := _cuda_in_use():
        for device in range(cuda.device_count()):
            cuda.reset_peak_memory_stats(device)


def peak_memory() -> int:
    """Peak resident memory of this process in bytes."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_gpu_memory() -> int | None:
    """The most bytes of one GPU's memory that torch reserved for this process; None if it uses no GPU."""
    cuda = _cuda_in_use()
    return max(map(cuda.max_memory_reserved, range(cuda.device_count()))) if cuda else None


def _cuda_in_use() -> Any:
    """torch.cuda if this process uses a GPU; checking neither imports torch nor occupies a GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def cores() -> int:
    """The number of cores this process may use: a cluster job has only some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranks() -> int:
    """The number of processes that make a stage; a cluster's WORLD_SIZE without LOCAL_RANK counts machines."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def environment() -> dict[str, Any]:
    """Versions, commit and machine, for the manifest; never part of a fingerprint."""
    cuda = _cuda_in_use()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": cores(),
        "processes": ranks(),
        "gpu": cuda.get_device_name() if cuda else None,
        "gpu_driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "commit": commit(),
        "packages": dict(_versions()),
    }


@cache
def _versions() -> dict[str, str]:
    """Versions of the installed packages, read once for all stages of a chain."""
    versions = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


@cache
def commit() -> str | None:
    """The code's commit at the first call, with the suffix -dirty if files differ; None outside a checkout.

    Call it early: a process keeps running the code that it imported, whatever is committed meanwhile.
    """
    return _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _output(*command: str) -> str | None:
    """The first line that a program prints; None if it is missing, fails or hangs."""
    settings: Any = {"capture_output": True, "text": True, "timeout": 30, "check": True}
    with suppress(OSError, subprocess.SubprocessError):
        # git must not write: another command may be running in the checkout.
        printed = subprocess.run(command, env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}, **settings).stdout
        return next(iter(printed.splitlines()), None)
    return None


def joined_ranks(timeout: float) -> "PartialState":
    """The state of this rank. The first call sets up the process group, whose operations may take `timeout` seconds."""
    from accelerate import PartialState

    # Without cpu=True, ranks on CPU would form no group.
    state = PartialState(cpu=not usable_gpus(), timeout=timedelta(seconds=timeout))
    if state.device.type == "cuda":
        require_kernels(state.device)
    return state


def leave_ranks() -> None:
    """Destroy the process group; its threads might otherwise abort the process at exit, after all work is done."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def usable_gpus() -> int:
    """The number of this machine's GPUs; raises UserError where torch can't use them, as with too old a driver."""
    import torch

    count = torch.cuda.device_count()  # the driver counts them, whatever torch makes of it
    if count and not torch.cuda.is_available():
        try:
            torch.cuda.init()
        except RuntimeError as error:
            what = f"torch can't use the {count} GPU(s) here: {first_line(error).partition('. ')[0]}"
            remedy = "update the driver, install a torch build for its CUDA version, or set CUDA_VISIBLE_DEVICES= (CPU)"
            raise UserError(what, where=f"torch {torch.__version__}", remedy=remedy) from error
    return count


def require_kernels(*gpus: Any) -> None:
    """Raise UserError where torch's build can't run on one of these GPUs: torch only warns until a kernel fails.

    A kernel runs on GPUs of its major version from its minor version on, PTX on all later ones. Unlike `usable_gpus`,
    initialises CUDA.
    """
    import torch

    names = " ".join(torch.cuda.get_arch_list())  # sm_86 for a kernel, compute_90 for PTX; not ROCm's gfx90a
    built = [(kind, (int(major), int(minor))) for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", names)]
    for gpu in gpus if built else ():
        its = torch.cuda.get_device_capability(gpu)
        if not any(own <= its and (kind == "compute" or own[0] == its[0]) for kind, own in built):
            what = f"torch has no kernels for {torch.cuda.get_device_name(gpu)} (sm_{its[0]}{its[1]}), only {names}"
            remedy = "install a torch build that does (CUDA 12.6's for older GPUs), or set CUDA_VISIBLE_DEVICES= (CPU)"
            raise UserError(what, where=f"torch {torch.__version__}", remedy=remedy)


def torch_build() -> str:
    """The installed build of torch, with a warning if it can't use the machine's GPU."""
    import torch

    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return f"torch {torch.__version__}: WARNING, there is a GPU but this build is for CPU; install a CUDA build"
    try:
        devices = usable_gpus()
        require_kernels(*range(devices))
    except UserError as error:
        return f"WARNING: {error}"
    return f"torch {torch.__version__}, {f'CUDA {torch.version.cuda}, {devices} GPUs' if devices else 'CPU'}"


if __name__ == "__main__":
    print(torch_build())

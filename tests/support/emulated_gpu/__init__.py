"""A GPU in name only: tensors that report cuda:<rank> and keep their numbers on the CPU.

`run` runs a pipeline command on it, `run_ranks` one on two of them. Such a tensor mixes with CPU tensors only where
CUDA allows it; attention of packed texts requires what its kernel requires; ranks communicate over gloo, which gets
only what NCCL takes; and whatever in a training step would wait for a real device is counted, by the function of ours
that caused it. All kernels are the CPU's, so neither times nor memory mean anything.
"""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

from tests.support.runs import REPOSITORY, Ended, finish, start

LIBRARY, WAITS_FILE = "EMULATED_GPU", "waits.json"


def build(folder: Path, *options: str) -> Path:
    """The library that `run` needs, from device.cpp; `run_ranks` needs the option -DRANKS. Takes a C++ compiler."""
    torch, library = Path(sysconfig.get_paths()["purelib"]) / "torch", folder / "emulated_gpu.so"
    flags = ["-std=c++20", "-shared", "-fPIC", f"-I{torch}/include", f"-L{torch}/lib", f"-Wl,-rpath,{torch}/lib"]
    source = Path(__file__).with_name("device.cpp")
    subprocess.run(["c++", *options, *flags, str(source), "-ltorch_cpu", "-lc10", "-o", str(library)], check=True)
    return library


def run(library: Path, folder: Path, *overrides: str) -> tuple[Ended, dict[str, int]]:
    """`python -m pipeline.run overrides` on the emulated GPU; and how often training steps waited for it.

    Waits are counted by `file function` of ours; the command writes them to `folder`.
    """
    ended = run_code(library, f"device.run_pipeline({str(folder / WAITS_FILE)!r})", *overrides)
    return ended, json.loads((folder / WAITS_FILE).read_text())


def run_ranks(library: Path, *overrides: str) -> Ended:
    """`python -m pipeline.run overrides` as two ranks, each with its own emulated GPU."""
    ranks = ["--standalone", "--nproc-per-node=2", "-m", "tests.support.emulated_gpu.device", *overrides]
    return run_code(library, f"from torch.distributed.run import main; main({ranks})")


def run_code(library: Path, code: str, *arguments: str) -> Ended:
    """Run Python code in which `device` is the emulated GPU's module."""
    environment = os.environ | {
        LIBRARY: str(library),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")])),
    }
    return finish(start(*arguments, code=f"from tests.support.emulated_gpu import device; {code}", env=environment))

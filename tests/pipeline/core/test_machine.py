"""What a manifest records about the machine."""

import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.core import machine
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder

H100 = "NVIDIA H100 80GB HBM3"


class TwoGpus:
    """torch.cuda of a process that works on the first of two GPUs."""

    def __init__(self) -> None:
        self.reset: list[int] = []

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def get_device_name(self) -> str:
        return H100

    def max_memory_reserved(self, device: int) -> int:
        return (3 * 2**30, 2**30)[device]

    def reset_peak_memory_stats(self, device: int) -> None:
        self.reset.append(device)


def test_gpus_whose_driver_is_older_than_torch_are_an_error_not_a_run_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update it.\n...")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    for ranks in (machine.usable_gpus, lambda: machine.joined_ranks(10)):
        with pytest.raises(UserError, match=r"8 GPU\(s\) here: The NVIDIA driver .* \(found version 12020\) \(torch 2"):
            ranks()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert machine.torch_build().startswith("WARNING: torch can't use the 8 GPU(s)")


WHEEL = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"  # of torch 2.13 for CUDA 13


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        (WHEEL, (7, 0), False),  # V100
        (WHEEL, (7, 5), True),
        (WHEEL, (8, 9), True),  # kernels run on later GPUs of their major version
        (WHEEL, (12, 1), True),
        ("sm_50 sm_60 sm_70 sm_80 sm_90", (12, 0), False),
        ("sm_80 sm_90a compute_90", (12, 0), True),  # PTX is compiled when it is loaded
        ("sm_80 compute_80", (7, 5), False),
        ("sm_86", (8, 0), False),
        ("gfx90a gfx1100", (9, 0), True),  # ROCm's
        ("", (9, 0), True),
    ],
)
def test_a_gpu_that_torch_has_no_kernels_for_is_an_error(
    built: str, capability: tuple[int, int], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "get_arch_list", built.split)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    with nullcontext() if runs else pytest.raises(UserError, match=rf"no kernels for a GPU \(sm_{capability[0]}"):
        machine.require_kernels(0)


def test_ranks_models_checks_and_set_up_require_kernels_for_their_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    for name, answer in {"device_count": 1, "is_available": True, "get_arch_list": ["sm_80"]}.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "V100")
    rank = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr("accelerate.PartialState", lambda **_: rank)
    for use in (
        lambda: machine.joined_ranks(10),
        lambda: load_folder(tmp_path),
        lambda: load_folder(tmp_path, "cuda:0"),
    ):
        with pytest.raises(UserError, match="no kernels for V100"):
            use()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert machine.torch_build().startswith("WARNING: torch has no kernels for V100 (sm_70), only sm_80")


def test_a_process_on_cpu_names_no_gpu() -> None:
    import torch

    assert not torch.cuda.is_initialized()
    found = machine.environment()
    assert (found["gpu"], found["gpu_driver"], machine.peak_gpu_memory()) == (None, None, None)


@pytest.mark.parametrize(("launcher", "processes"), [({"LOCAL_RANK": "0"}, 2), ({}, 1)])
def test_only_a_launcher_s_processes_are_counted(
    launcher: dict[str, str], processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {"WORLD_SIZE": "2", **launcher}.items():  # an operator of a cluster counts machines
        monkeypatch.setenv(name, value)
    assert machine.environment()["processes"] == processes


def test_versions_of_what_computes_are_named() -> None:
    packages = machine.environment()["packages"]
    for name in ("torch", "numpy", "scipy", "scikit-learn", "tokenizers"):
        assert packages[name] == version(name)


def test_gpu_driver_and_peak_memory_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus = TwoGpus()
    monkeypatch.setattr("torch.cuda", gpus)
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 550.54.15\necho 550.54.15\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    machine.reset_peak_memory()
    found = machine.environment()
    assert (found["gpu"], found["gpu_driver"]) == (H100, "550.54.15")
    assert machine.peak_gpu_memory() == 3 * 2**30 and gpus.reset == [0, 1]


def test_a_process_that_never_imported_torch_does_not_import_it() -> None:
    code = "import sys; from pipeline.core import machine; machine.environment(), machine.peak_gpu_memory()"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], cwd=machine.ROOT, check=True)


def test_the_commit_of_the_code_is_named_and_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit() -> str | None:
        machine.commit.cache_clear()
        return machine.environment()["commit"]

    monkeypatch.setattr(machine, "ROOT", tmp_path)
    assert commit() is None  # no checkout
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    (tmp_path / "code.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert commit() == head
    (tmp_path / "notes.txt").write_text("not tracked")
    assert commit() == head
    (tmp_path / "code.py").write_text("2")
    assert machine.environment()["commit"] == head  # what was imported first
    assert commit() == f"{head}-dirty"
    machine.commit.cache_clear()

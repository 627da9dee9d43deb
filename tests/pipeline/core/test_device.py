"""Choices by the device, and how much freed memory a process keeps while it trains on a CPU."""

import multiprocessing
import sys
from multiprocessing.connection import Connection

import psutil
import pytest
import torch
from transformers import TrainerControl, TrainerState

from configs.schema.config import LaunchConfig
from pipeline.core import device
from pipeline.core.errors import UserError
from training.callbacks import KeptMemory

MEGABYTE = 2**20


def measure(results: Connection) -> None:
    """Send the kept memory after memory was freed, after the step, and after one that freed more; for two bounds."""
    psutil.heap_trim()  # of tests before this one
    device.keep_freed_memory()
    for most in (500, 50):
        callback, kept = KeptMemory(most * MEGABYTE), list[int]()
        callback.on_train_begin(None, TrainerState(), TrainerControl())
        torch.ones(200 * 2**18).sum()
        kept.append(device.kept_memory() - callback.before)
        callback.on_step_end(None, TrainerState(), TrainerControl())
        kept.append(device.kept_memory() - callback.before)
        torch.ones(600 * 2**18).sum()  # after steps that kept little
        callback.on_step_end(None, TrainerState(), TrainerControl())
        kept.append(device.kept_memory() - callback.before)
        results.send(kept)
        psutil.heap_trim()


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps freed memory like this")
def test_freed_memory_is_kept_up_to_a_bound() -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=measure, args=(theirs,))
    process.start()
    theirs.close()
    (freed, below, *later), (also, returned, *then) = ours.recv(), ours.recv()
    process.join()
    assert freed > 150 * MEGABYTE and also > 150 * MEGABYTE
    assert below > 150 * MEGABYTE and returned < 50 * MEGABYTE
    assert max(*later, *then) < 50 * MEGABYTE


def test_bf16_is_refused_where_the_device_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "native_bfloat16", lambda: False)
    assert device.training_precision("auto") != "bf16"
    with pytest.raises(UserError, match="no native bfloat16"):
        device.training_precision("bf16")
    monkeypatch.setattr(device, "native_bfloat16", lambda: True)
    assert device.training_precision("auto") == "bf16" != device.training_precision("fp32")


def test_a_gpu_without_bf16_trains_in_fp16_and_a_cpu_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "native_bfloat16", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device.training_precision("auto") == "fp16"
    assert device.autocast_dtype("auto") == torch.float16
    assert device.training_precision("fp32") == "fp32"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device.training_precision("auto") == "fp32"
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        device.training_precision("fp16")


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(UserError, match=r"8 processes, but 4 GPUs \(config key launch.processes\); use at most 4"):
        device.require_devices(4, LaunchConfig(processes=8))
    for devices, launch in (
        (4, LaunchConfig()),
        (4, LaunchConfig(processes=8, nodes=2)),
        (4, LaunchConfig("cpu", 8)),
        (0, LaunchConfig(processes=2)),
    ):
        device.require_devices(devices, launch)


def test_attention_keeps_its_scores_only_for_short_texts_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device.attention_implementation("auto", 256) == "eager"
    assert device.attention_implementation("auto", 257) == "sdpa"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert device.attention_implementation("auto", 256) == "sdpa"
    assert device.attention_implementation("eager", 8192) == "eager"
    assert device.attention_implementation("torch_varlen", 8192) == "sdpa"  # for texts that are padded

"""How much freed memory a process keeps while it trains on a CPU."""

import multiprocessing
import sys
from multiprocessing.connection import Connection

import psutil
import pytest
import torch
from transformers import TrainerControl, TrainerState

from pipeline.core.precision import keep_freed_memory, kept_memory
from training.callbacks import KeptMemory

MEGABYTE = 2**20


def measure(results: Connection) -> None:
    """Send the kept memory after memory was freed, after the step, and after one that freed more; for two bounds."""
    psutil.heap_trim()  # of tests before this one
    keep_freed_memory()
    for most in (500, 50):
        callback, kept = KeptMemory(most * MEGABYTE), list[int]()
        callback.on_train_begin(None, TrainerState(), TrainerControl())
        torch.ones(200 * 2**18).sum()
        kept.append(kept_memory() - callback.before)
        callback.on_step_end(None, TrainerState(), TrainerControl())
        kept.append(kept_memory() - callback.before)
        torch.ones(600 * 2**18).sum()  # after steps that kept little
        callback.on_step_end(None, TrainerState(), TrainerControl())
        kept.append(kept_memory() - callback.before)
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

"""What a process keeps of freed memory while it trains on a CPU."""

import subprocess
import sys

import pytest

from tests.support.runs import REPOSITORY

MEGABYTE = 2**20
PROGRAM = """
import torch
from transformers import TrainerControl, TrainerState
from pipeline.core.precision import keep_freed_memory, kept_memory, return_kept_memory
from training.callbacks import KeptMemory

keep_freed_memory()
for most in (500, 50):
    callback, kept = KeptMemory(most * 2**20), []
    callback.on_train_begin(None, TrainerState(), TrainerControl())
    torch.ones(200 * 2**18).sum()
    kept.append(kept_memory() - callback.before)
    callback.on_step_end(None, TrainerState(), TrainerControl())
    kept.append(kept_memory() - callback.before)
    torch.ones(600 * 2**18).sum()  # after steps that kept little
    callback.on_step_end(None, TrainerState(), TrainerControl())
    kept.append(kept_memory() - callback.before)
    print(*kept)
    return_kept_memory()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone keeps freed memory so")
def test_freed_memory_is_kept_up_to_a_bound() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    own = done.stdout.splitlines()[-2:]  # what libraries print when they are imported comes before
    (freed, below, *later), (also, returned, *then) = (map(int, line.split()) for line in own)
    assert freed > 150 * MEGABYTE and also > 150 * MEGABYTE
    assert below > 150 * MEGABYTE and returned < 50 * MEGABYTE
    assert max(*later, *then) < 50 * MEGABYTE

"""A file that goes to the disk while it is made holds what was written and copied, whatever copies it."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.core import safetensors_io as checkpoint
from pipeline.core.errors import UserError
from pipeline.core.safetensors_io import COPIED_AT_ONCE, WEIGHTS_FILE, EagerFile, SafetensorsReader

NUMBERS = np.random.default_rng(0).bytes(3 * COPIED_AT_ONCE + 5)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(NUMBERS)
    return path


def test_what_is_written_and_copied_keeps_its_order(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "STORED_AT_ONCE", COPIED_AT_ONCE)  # so that it goes to the disk in several parts
    with EagerFile(tmp_path / "target") as target, source.open("rb", buffering=0) as file:
        target.write(b"head")
        assert target.copy(file, 7, 2 * COPIED_AT_ONCE) == 2 * COPIED_AT_ONCE
        target.write(memoryview(b"middle"))
        assert target.copy(file, 0, len(NUMBERS)) == len(NUMBERS)
    expected = b"head" + NUMBERS[7 : 7 + 2 * COPIED_AT_ONCE] + b"middle" + NUMBERS
    assert (tmp_path / "target").read_bytes() == expected


def test_a_file_that_the_kernel_does_not_copy_to_gets_the_same_bytes(source: Path, tmp_path: Path) -> None:
    with EagerFile(tmp_path / "target") as target, source.open("rb", buffering=0) as file:
        target.file.close()
        target.file = (tmp_path / "target").open("ab", buffering=0)  # for appending: sendfile refuses it
        with pytest.raises(OSError) as refused:
            os.sendfile(target.file.fileno(), file.fileno(), 0, 1)
        assert refused.value.errno in checkpoint.NOT_BY_KERNEL
        assert target.copy(file, 3, len(NUMBERS) - 3) == len(NUMBERS) - 3
    assert (tmp_path / "target").read_bytes() == NUMBERS[3:]


def test_a_copy_past_the_end_says_how_much_there_was(source: Path, tmp_path: Path) -> None:
    with EagerFile(tmp_path / "target") as target, source.open("rb", buffering=0) as file:
        assert target.copy(file, len(NUMBERS) - 2, 10) == 2
    assert (tmp_path / "target").read_bytes() == NUMBERS[-2:]


def test_weights_that_lost_their_end_are_one_line(tmp_path: Path) -> None:
    save_file({"weight": np.ones(100, np.float32)}, tmp_path / WEIGHTS_FILE)
    with SafetensorsReader(tmp_path) as weights, EagerFile(tmp_path / "target") as target:
        os.truncate(tmp_path / WEIGHTS_FILE, (tmp_path / WEIGHTS_FILE).stat().st_size - 8)
        with pytest.raises(UserError, match=r"not a whole safetensors file: it ends too early"):
            weights.copy(weights.tensors["weight"], 0, 100, target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_reported(source: Path) -> None:
    with EagerFile(Path("/dev/full")) as target, source.open("rb", buffering=0) as file:
        with pytest.raises(OSError) as caught:
            target.copy(file, 0, 10)
        assert caught.value.errno == errno.ENOSPC

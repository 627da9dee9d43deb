"""Every stage on a disk that can't be written to, then fills up, then has room: one line, and nothing is lost."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability import tiny_chain
from tests.reliability.tiny_chain import STAGES, folder_of, made

pytestmark = pytest.mark.slow
PAGE = 4096
FILLED = (0.02, 0.4, 0.9)  # parts of what the stage's artefact needs
ROOMY = 200 * 2**20


class Disk:
    """A small file system in memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._mount("-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs")

    def resize(self, size: int) -> None:
        self._mount("-o", f"remount,rw,size={max(size // PAGE, 1) * PAGE}")  # a size of 0 would mean no limit

    def close_for_writing(self) -> None:
        self._mount("-o", "remount,ro")

    @property
    def used(self) -> int:
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def _mount(self, *arguments: str) -> None:
        done = subprocess.run(["mount", *arguments, str(self.folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if shutil.which("mount") is None:
        pytest.skip("there is no mount command here")
    mounted = Disk(tmp_path / "disk")
    yield mounted
    mounted.unmount()


@pytest.mark.parametrize(("stage", "ranks"), [*((stage, 1) for stage in STAGES), ("symmetric", 2)])
def test_a_full_or_read_only_disk_is_one_line_and_the_run_continues_with_space(
    places: dict[str, Path], disk: Disk, stage: str, ranks: int
) -> None:
    reference = made(places[stage])
    place = Path(shutil.copytree(places[stage], disk.folder / "place"))
    disk.close_for_writing()
    refused(place, reference, stage, ranks)
    needed = size_of(reference / folder_of(stage), places[stage])
    for part in FILLED:
        disk.resize(ROOMY)
        shutil.rmtree(place)  # leftovers of an earlier attempt, such as a checkpoint, would free space when removed
        shutil.copytree(places[stage], place)
        disk.resize(disk.used + int(part * needed))
        refused(place, reference, stage, ranks)
    disk.resize(ROOMY)
    done = tiny_chain.run(place, stage, ranks=ranks)
    assert done.status == 0, done.err
    if ranks == 1:
        assert tiny_chain.differences(place, reference, stage) == []
    assert tiny_chain.leftovers(place) == []


def refused(place: Path, reference: Path, stage: str, ranks: int) -> None:
    """Run the stage, which finds no space; it must leave nothing half-made."""
    done = tiny_chain.run(place, stage, ranks=ranks)
    assert (done.status, len(done.errors)) == (2, 1), done.err[-3000:]
    assert done.errors[0].startswith("error: can't write"), done.err
    before = STAGES[: STAGES.index(stage)]
    assert list(tiny_chain.broken_promises(place, reference, before, finished=True)) == []
    if ranks == 1:
        assert list(tiny_chain.broken_promises(place, reference, [stage])) == []
    assert [name for name in tiny_chain.leftovers(place) if name.endswith(".lock")] == []


def size_of(folder: Path, before: Path) -> int:
    """Bytes of whole pages, without files that were there `before`: these are linked from an earlier artefact."""
    earlier = {path.read_bytes() for path in before.rglob("*") if path.is_file()}
    contents = (path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return sum(-(-len(content) // PAGE) * PAGE for content in contents if content not in earlier)

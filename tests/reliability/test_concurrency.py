"""Several processes on one run: a second command, readers while a writer works."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipeline.core.artefact import file_sha256, read_manifest
from pipeline.core.errors import UserError
from tests.reliability import tiny_chain
from tests.reliability.tiny_chain import STAGES, folder_of, made, overrides_of
from tests.support.runs import finish, run_main


def test_a_second_command_begins_no_stage_that_the_first_has_yet_to_reach(tmp_path: Path) -> None:
    (tmp_path / "tiny/.locks").mkdir(parents=True)
    with FileLock(tmp_path / "tiny/.locks/report.command.lock"):
        ended = run_main("profile=tiny", f"runs={tmp_path}", "stages=[data,report]")
    where, remedy = str(tmp_path / "tiny/report"), "wait for it, or use another run=<name>"
    refusal = UserError("another process is writing this artefact", where=where, remedy=remedy)
    assert (ended.status, ended.err) == (2, f"{refusal.line}\n")
    assert not (tmp_path / "tiny/data").exists()


@pytest.mark.slow
def test_second_commands_are_refused_in_one_line_and_the_first_is_unharmed(
    places: dict[str, Path], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(places["data"], tmp_path / "place"))
    first = tiny_chain.start(place, overrides_of(STAGES))
    while not (place / "runs/tiny/data/manifest.json").exists():
        assert first.poll() is None
        time.sleep(0.05)
    others = []
    while first.poll() is None:
        others.append(finish(tiny_chain.start(place, overrides_of(STAGES))))
    done = finish(first)
    assert done.status == 0, done.err
    statuses = [each.status for each in others]
    refused = [each for each in others if each.status != 0]
    # Once the first has made its last artefact, and only has to exit, a second finds everything up to date.
    assert len(refused) >= 3 and statuses == sorted(statuses, reverse=True)
    assert {(each.status, len(each.errors)) for each in refused} == {(2, 1)}, [each.err for each in refused]
    assert all("another process is writing this artefact" in each.err for each in refused)
    for stage in STAGES:
        assert tiny_chain.differences(place, made(places["report"]), stage) == []


@pytest.mark.slow
def test_nothing_half_made_is_ever_seen_while_a_chain_is_rebuilt(places: dict[str, Path], tmp_path: Path) -> None:
    reference = made(places["report"])
    place = Path(shutil.copytree(reference, tmp_path / "place"))
    writer = tiny_chain.start(place, [*overrides_of(STAGES), "force=true"])
    looks, seen = 0, list[str]()
    while writer.poll() is None:
        seen += look(place, reference)
        looks += 1
    assert finish(writer).status == 0
    assert looks > 20 and seen == []
    assert tiny_chain.leftovers(place) == []


def look(place: Path, reference: Path) -> list[str]:
    """What a reader sees but must not; what disappears while it looks counts as missing."""
    seen = []
    for stage in STAGES:
        folder = place / folder_of(stage)
        before = read_manifest(folder)
        for path, entry in before.outputs.items() if before and before.status == "complete" else ():
            digest = if_there(lambda file=folder / path: file_sha256(file))
            if digest != entry["sha256"] and read_manifest(folder) == before:
                seen.append(f"complete, but not there or changed: {stage}/{path}")
        seen += if_there(lambda stage=stage: list(tiny_chain.half_files(place, reference, stage))) or []
    return seen


def if_there(read: Callable[[], Any]) -> Any:
    """What `read` reads, or None where the file is gone."""
    try:
        return read()
    except (FileNotFoundError, NotADirectoryError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 3.0])
def test_a_stage_whose_input_is_rebuilt_continues_or_says_so_in_one_line(
    places: dict[str, Path], tmp_path: Path, delay: float
) -> None:
    place = Path(shutil.copytree(made(places["report"]), tmp_path / "place"))
    writer = tiny_chain.start(place, [*overrides_of(["merge"]), "force=true"])
    time.sleep(delay)
    readers = [tiny_chain.start(place, [*overrides_of([stage]), "force=true"]) for stage in ("evaluate", "report")]
    for reader in readers:
        done = finish(reader)
        assert done.status in (0, 2) and len(done.errors) <= 1, done.err
    assert finish(writer).status == 0
    again = finish(tiny_chain.start(place, overrides_of(STAGES)))
    assert again.status == 0, again.err
    for stage in STAGES:
        assert tiny_chain.differences(place, made(places["report"]), stage) == []

"""The kill matrix at a few moments, and what its own checks would find."""

import random
import shutil
from pathlib import Path

import pytest

from tests.reliability import tiny_chain
from tests.reliability.torture import STATUS, Case, Operation, cases, moment, read_operations, torture


@pytest.mark.slow
def test_every_stage_killed_or_stopped_once_ends_in_the_same_bytes(tmp_path: Path) -> None:
    chosen = cases(tiny_chain.STAGES, kills=1, stops=1, pairs_of_ranks=True)
    assert {case.signal for case in chosen} == set(STATUS)
    rows = list(torture(tmp_path, chosen, seed=7, jobs=1))
    assert [row for row in rows if not row.passed] == []
    assert {row.stage for row in rows} == set(tiny_chain.STAGES)


@pytest.mark.slow
def test_the_checks_see_half_files_leftovers_and_changed_artefacts(places: dict[str, Path], tmp_path: Path) -> None:
    reference = tiny_chain.made(places["merge"])
    place = Path(shutil.copytree(reference, tmp_path / "place"))
    assert tiny_chain.differences(place, reference, "merge") == []
    weights = place / "runs/tiny/merge/model/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    (place / "runs/tiny/merge/search.csv.partial").write_text("half")
    assert {problem.split(":")[0] for problem in tiny_chain.differences(place, reference, "merge")} == {
        "differs",
        "left over",
        "complete, but not whole",
        "complete, but changed",
        "half a file",
    }
    assert tiny_chain.leftovers(place) == ["runs/tiny/merge/search.csv.partial"]


def test_moments_are_counted_in_the_stage_s_own_files(tmp_path: Path) -> None:
    record = tmp_path / "operations"
    record.write_text("10.0\topen\t/x/runs/tiny/merge/model.partial\n10.5\tos.rename\truns/tiny/merge/model.partial\n")
    operations = [
        Operation(1, 2, "open runs/tiny/merge/model.partial", 0.5),
        Operation(2, 2, "os.rename runs/tiny/merge/model.partial", 0.0),
    ]
    assert read_operations(record) == operations
    drawn = [moment(operations, random.Random(number), in_writing=False) for number in range(20)]
    assert {operation for operation, _ in drawn} == {operations[0]} and len({delay for _, delay in drawn}) == 20
    assert {moment(operations, random.Random(number), in_writing=True)[0] for number in range(20)} == {*operations}
    assert Case("base", 1, "SIGKILL", "self", None, 0).under == ["runs/bases/tiny", "runs/cache"]

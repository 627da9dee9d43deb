"""Several processes at one run."""

from pathlib import Path

from filelock import FileLock

from pipeline.errors import UserError
from tests.reliability.stage_runs import run_main


def test_a_second_command_begins_no_stage_that_the_first_has_yet_to_reach(tmp_path: Path) -> None:
    (tmp_path / "tiny/.locks").mkdir(parents=True)
    with FileLock(tmp_path / "tiny/.locks/report.command.lock"):
        ended = run_main("pipeline.run", "profile=tiny", f"runs={tmp_path}", "stages=[data,report]")
    where, remedy = str(tmp_path / "tiny/report"), "wait for it, or use another run=<name>"
    refusal = UserError("another process is writing this artefact", where=where, remedy=remedy)
    assert (ended.status, ended.err) == (2, f"{refusal.line}\n")
    assert not (tmp_path / "tiny/data").exists()

"""The real download path against a small server with the Hub's URLs, and what happens without one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.check import look
from pipeline.core.errors import UserError
from pipeline.core.hub import read_lock
from pipeline.lock import hub_revisions
from pipeline.lock import lock as lock_revisions
from tests.support.hub import COMMIT, LocalHub, in_place_of_the_hub, local_hub
from tests.support.prepared_data import Prepared, composed, run, run_config
from tests.support.runs import REPOSITORY, Ended, copy_of_runs, run_command, run_main

SETS = ["~data.sources.ru_hnp", "~data.sources.tapaco", "~data.sources.mr_tydi"]


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    """A Hub on this machine that has the bundled samples."""
    with local_hub(REPOSITORY / "data" / "samples") as running:
        yield running


@pytest.fixture
def home(chain: Path, tmp_path: Path) -> Path:
    """A folder for the client's cache and the runs; data's prerequisites exist already, as they load mteb."""
    copy_of_runs(chain / "tiny" / "benchmarks", tmp_path / "runs" / "test" / "benchmarks")
    return tmp_path


def arguments(home: Path) -> list[str]:
    """Those of a command that reads the Hub's sets."""
    return ["profile=tiny", "mirror=null", "run=test", f"runs={home}/runs", *SETS]


def data_command(endpoint: str, home: Path) -> Ended:
    """`make data` in its own process: the Hub's client reads its environment when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "home"), "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    return run_command(*arguments(home), "stages=[data]", env=environment)


def test_sets_from_the_hub_equal_those_from_a_mirror(hub: LocalHub, home: Path) -> None:
    done = data_command(hub.address, home)
    assert done.status == 0, done.err
    fetched, mirrored = Prepared(home / "runs" / "test" / "data"), run(home / "mirrored", *SETS)
    assert {line["revision"] for line in fetched.ledger.values()} == {COMMIT}
    for name, pairs in mirrored.train().items():
        assert fetched.train()[name].equals(pairs)


def test_the_pre_flight_reads_the_beginning_of_every_file(
    hub: LocalHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of_the_hub(hub, home / "cache", monkeypatch)
    done = run_main(*arguments(home), module="pipeline.check")
    assert done.status == 0, done.err
    assert done.out.count(COMMIT[:12]) == 5 and "53 rows read" in done.out and "mit" in done.out, done.out
    assert not list((home / "cache").rglob("*.parquet"))


def test_the_pre_flight_says_how_to_get_access_to_a_gated_set(
    hub: LocalHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of_the_hub(hub, home / "cache", monkeypatch)
    monkeypatch.setattr(hub, "gated", {"its5Q/panorama"})
    seen = look("data.held_out.panorama", composed().data.held_out["panorama"], None)
    line = "error: panorama: access must be requested (its5Q/panorama); accept the terms on its page and log in"
    assert seen.problem and seen.problem.line.startswith(line)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.terra.hub=no/such", r"^terra: no such repository or revision on the Hub \(no/such at refs"),
        ("data.sources.gazeta.files=[none.jsonl]", r"^gazeta: no such file"),
    ],
)
def test_what_the_hub_lacks_is_one_line(
    hub: LocalHub, override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place_of_the_hub(hub, tmp_path / "cache", monkeypatch)
    config = composed(*SETS, override)
    config.mirror = None
    with pytest.raises(UserError, match=message) as error:
        run_config(config, tmp_path)
    assert "\n" not in error.value.line


UNREACHABLE = (
    "error: panorama: the Hub can't be reached (its5Q/panorama at main);"
    " check the network, or set mirror=<folder in the Hub's layout>"
)


@pytest.mark.slow  # the Hub's client tries again for half a minute
def test_no_network_is_one_line(home: Path) -> None:
    done = data_command("http://127.0.0.1:9", home)
    assert (done.status, done.err.splitlines()[-1]) == (2, UNREACHABLE)


def test_offline_mode_is_one_line(home: Path) -> None:
    done = run_main(*arguments(home), "stages=[data]")
    assert (done.status, done.err.splitlines()[-1]) == (2, UNREACHABLE)


def test_locked_commits_are_read_and_a_moved_branch_is_refused(
    hub: LocalHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = home / "revisions.lock"
    monkeypatch.setenv("REVISIONS_LOCK", str(lock))
    in_place_of_the_hub(hub, home / "cache", monkeypatch)
    done = run_main(*arguments(home), module="pipeline.lock")
    assert done.status == 0, done.err
    assert f"dataset its5Q/panorama main {COMMIT}\n" in lock.read_text()
    assert run_main(*arguments(home), "stages=[data]").status == 0
    lock.write_text(lock.read_text().replace(f"panorama main {COMMIT}", f"panorama main {'f' * 40}"))
    done = run_main(*arguments(home), "stages=[data]")
    assert done.status == 2
    moved = f"error: its5Q/panorama at main is now {COMMIT[:12]}, not the locked {'f' * 12} ({lock}); look at what"
    assert done.err.splitlines()[-1].startswith(moved) and "then make lock PROFILE=tiny RUN=test; or" in done.err
    lock.write_text("dataset its5Q/panorama main\n")
    with pytest.raises(UserError, match=rf"not a locked revision \({lock}, line 1\)"):
        read_lock()


def test_the_lock_advises_no_mirror_as_it_reads_none() -> None:
    with pytest.raises(UserError, match=r"the Hub can't be reached .*; check the network, then make lock again$"):
        lock_revisions(composed(*SETS))


def test_the_dev_files_of_a_set_whose_rows_are_local_are_locked_too() -> None:
    config = composed("data.sources.ru_wanli.path=rows.parquet", "data.sources.terra.path=rows.parquet")
    locked = {item.hub for item in hub_revisions(config)}
    assert config.data.sources["ru_wanli"].dev_files and config.data.sources["ru_wanli"].hub in locked
    assert config.data.sources["terra"].hub not in locked

"""The true download path against a small server that speaks the Hub's URLs; and what happens without one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub import COMMIT, local_hub
from tests.support.prepared_data import Prepared, run
from tests.support.runs import REPOSITORY, Ended, copy_of_runs, run_command

SETS = ["~data.sources.ru_hnp", "~data.sources.tapaco", "~data.sources.mr_tydi"]


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """The address of a server that serves the bundled samples."""
    with local_hub(REPOSITORY / "data" / "samples") as running:
        yield running.address


@pytest.fixture
def home(chain: Path, tmp_path: Path) -> Path:
    """A folder for the client's cache and the runs; what data implies stands already, as it loads mteb."""
    copy_of_runs(chain / "tiny" / "benchmarks", tmp_path / "runs" / "test" / "benchmarks")
    return tmp_path


def command(module: str, endpoint: str, home: Path, *overrides: str, offline: str = "0") -> Ended:
    """A module in a process of its own: the Hub's client reads its environment when it is imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home / "home"), "NO_PROXY": "127.0.0.1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": offline}
    arguments = ["profile=tiny", "mirror=null", "run=test", f"runs={home}/runs", *SETS, *overrides]
    return run_command(*arguments, module=module, env=environment)


def test_sets_from_the_hub_equal_those_from_a_mirror(hub: str, home: Path) -> None:
    done = command("pipeline.run", hub, home, "stages=[data]")
    assert done.status == 0, done.err
    fetched, mirrored = Prepared(home / "runs" / "test" / "data"), run(home / "mirrored", *SETS)
    assert {line["revision"] for line in fetched.ledger.values()} == {COMMIT}
    for name, pairs in mirrored.train().items():
        assert fetched.train()[name].equals(pairs)


def test_the_pre_flight_reads_the_beginning_of_every_file(hub: str, home: Path) -> None:
    done = command("pipeline.check", hub, home)
    assert done.status == 0, done.err
    assert done.out.count(COMMIT[:12]) == 5, done.out and "53 rows read" in done.out and "mit" in done.out
    assert not list((home / "home").rglob("*.parquet"))


def test_the_pre_flight_shows_all_failures_at_once(hub: str, home: Path) -> None:
    wrong = [
        "data.sources.terra.hub=no/such",
        "data.sources.gazeta.files=[none.jsonl]",
        "data.sources.ru_wanli.columns.label=gold",
    ]
    done = command("pipeline.check", hub, home, *wrong)
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith("error: 3 of 9 checks failed (")
    for message in ("terra: no such repository or revision", "gazeta: no file none.jsonl", "ru_wanli: no column gold"):
        assert message in done.err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.terra.hub=no/such", "error: terra: no such repository or revision on the Hub (no/such at refs"),
        ("data.sources.gazeta.files=[none.jsonl]", "error: gazeta: no such file"),
    ],
)
def test_what_the_hub_has_not_is_one_line(hub: str, override: str, message: str, home: Path) -> None:
    done = command("pipeline.run", hub, home, "stages=[data]", override)
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith(message)


UNREACHABLE = (
    "error: panorama: the Hub can't be reached (its5Q/panorama at main);"
    " check the network, or set mirror=<folder in the Hub's layout>"
)


@pytest.mark.slow  # the Hub's client tries again for half a minute
def test_no_network_is_one_line(home: Path) -> None:
    done = command("pipeline.run", "http://127.0.0.1:9", home, "stages=[data]")
    assert (done.status, done.err.splitlines()[-1]) == (2, UNREACHABLE)


def test_offline_mode_is_one_line(home: Path) -> None:
    done = command("pipeline.run", "http://127.0.0.1:9", home, "stages=[data]", offline="1")
    assert (done.status, done.err.splitlines()[-1]) == (2, UNREACHABLE)


def test_locked_commits_are_read_and_a_moved_branch_is_refused(
    hub: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = home / "revisions.lock"
    monkeypatch.setenv("REVISIONS_LOCK", str(lock))
    done = command("pipeline.lock", hub, home)
    assert done.status == 0, done.err
    assert f"dataset its5Q/panorama main {COMMIT}\n" in lock.read_text()
    assert command("pipeline.run", hub, home, "stages=[data]").status == 0
    lock.write_text(lock.read_text().replace(f"panorama main {COMMIT}", f"panorama main {'f' * 40}"))
    done = command("pipeline.run", hub, home, "stages=[data]")
    assert done.status == 2
    moved = f"error: its5Q/panorama at main is now {COMMIT[:12]}, not the locked {'f' * 12} ({lock}); look at what"
    assert done.err.splitlines()[-1].startswith(moved)
    lock.write_text("dataset its5Q/panorama main\n")
    assert f"not a locked revision ({lock}, line 1)" in command("pipeline.run", hub, home, "stages=[data]").err

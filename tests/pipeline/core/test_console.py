"""Progress in a log file, and which processes log it."""

from types import SimpleNamespace

import pytest

from pipeline.core.console import console, is_main_process, progress, show_table


def test_a_log_file_shows_progress_and_the_time_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not console.is_terminal
    clock = iter([0.0, 30.0, 90.0, 100.0, 160.0])
    monkeypatch.setattr("pipeline.core.console.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("INFO", "pipeline"):
        assert list(progress("абвг", "reading")) == ["а", "б", "в", "г"]
    assert caplog.messages == ["reading …", "reading: 2 of 4, 1.5 minutes to go"]  # at most one line a minute


def test_a_table_shows_brackets_and_colons_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("sweep: runs/languages=[ru,en]", ["overrides"], [["languages=[ru,en]"], ["no [/data/a]"], [":cat:"]])
    shown = capsys.readouterr().out
    assert shown.count("languages=[ru,en]") == 2 and "no [/data/a]" in shown and ":cat:" in shown


def test_of_a_table_without_rows_only_the_title_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("benchmarks: 0.2 s", ["what", "value"], [])
    assert capsys.readouterr().out == "benchmarks: 0.2 s\n"


@pytest.mark.parametrize(
    ("variables", "is_main"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"RANK": "1", "WORLD_SIZE": "2"}, True),  # of a machine, by an operator of a cluster
    ],
)
def test_only_a_launcher_s_rank_makes_a_process_silent(
    variables: dict[str, str], is_main: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == is_main

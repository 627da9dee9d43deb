"""What a person who waits is told."""

from types import SimpleNamespace

import pytest

from pipeline.core.console import console, progress


def test_a_log_file_tells_how_far_and_how_long(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not console.is_terminal
    clock = iter([0.0, 30.0, 90.0, 100.0, 160.0])
    monkeypatch.setattr("pipeline.core.console.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("INFO", "pipeline"):
        assert list(progress("абвг", "reading")) == ["а", "б", "в", "г"]
    assert caplog.messages == ["reading …", "reading: 2 of 4, 1.5 minutes to go"]  # at most one line a minute

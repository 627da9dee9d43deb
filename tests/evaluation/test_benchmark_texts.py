"""What can't be had of one benchmark hides no other one, and is looked for again before pairs are made."""

import json
from pathlib import Path
from typing import Any

import pytest

from evaluation.suites.encodechka import files
from pipeline.core.artefact import file_sha256
from pipeline.run import make
from tests.support.prepared_data import composed

STS = "sentence1,sentence2,score\nКошка лакает молоко,Кот пьёт из миски,1\n"


@pytest.fixture
def encodechka(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the layout of the reference code, with one small file that counts as encodechka's."""
    file = tmp_path / "encodechka" / "data" / "stsb_dev.csv"
    file.parent.mkdir(parents=True)
    file.write_text(STS, encoding="utf-8")
    monkeypatch.setitem(files.SHA256, file.name, file_sha256(file))
    monkeypatch.delenv("ENCODECHKA_DATA_PATH", raising=False)
    return file.parents[1]


def account(runs: Path, *overrides: str) -> dict[str, dict[str, Any]]:
    """What the stage benchmarks says of the evaluations after it was made."""
    config = composed(f"runs={runs}", "run=test", *overrides)
    make("benchmarks", config)
    return json.loads((config.folder("benchmarks") / "checked.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("place", ["folder", "download"])
def test_encodechka_is_read_where_evaluate_reads_it(
    place: str, encodechka: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ADDRESS", (encodechka / "data").as_uri())
    given = [f"evaluation.encodechka={encodechka}"] if place == "folder" else []
    found = account(tmp_path / "runs", "data.decontamination.suites=[encodechka]", *given)
    assert found["checked"] == {"encodechka stsb_dev": 2}
    assert len(found["not_checked"]) == 8

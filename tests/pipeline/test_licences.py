"""`make licences`: every locked package is there, with what its own metadata says."""

import csv
from pathlib import Path

import pytest

from pipeline.core.errors import UserError
from pipeline.licences import NOT_STATED, Licence, licences
from tests.reliability.stage_runs import run_main


def test_every_locked_package_is_listed_and_unstated_licences_are_named(tmp_path: Path, repository: Path) -> None:
    ended = run_main("pipeline.licences", "profile=tiny", f"runs={tmp_path}")
    assert ended.status == 0, ended
    with (tmp_path / "licences.csv").open(newline="", encoding="utf-8") as file:
        found = {row["name"].lower().replace("_", "-"): row for row in csv.DictReader(file)}
    lines = [line for line in (repository / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    for name, version in (line.split("==") for line in lines):
        row = found[name.lower().replace("_", "-")]
        assert row["version"].partition("+")[0] == version and row["locked"] == "yes" and row["licence"]
    assert "MIT" in found["rich"]["licence"] and found["rich"]["stated_in"] == "License"
    unstated = [row["name"] for row in found.values() if row["licence"] == NOT_STATED]
    assert all(name in ended.out.rpartition("look these up yourself")[2] for name in unstated)


METADATA = {
    "a field that settles it": ("License-Expression: MIT\nLicense: BSD", "MIT", "License-Expression"),
    "a name in a field": ("License: Apache 2.0\nClassifier: License :: OSI Approved :: BSD", "Apache 2.0", "License"),
    "a whole text in the field": (
        "License: Copyright 2001\n  All rights\nClassifier: License :: OSI Approved :: BSD License",
        "BSD License",
        "Classifier",
    ),
    "a field that says nothing": ("License: UNKNOWN", NOT_STATED, ""),
    "a file with a title": ("License-File: LICENSE", "The Small License", "LICENSE"),
    "a file that is not there": ("License-File: COPYING", NOT_STATED, ""),
    "nothing at all": ("Classifier: License :: OSI Approved", NOT_STATED, ""),
}


@pytest.mark.parametrize("case", METADATA)
def test_the_most_exact_statement_of_a_package_is_taken(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, licence, place = METADATA[case]
    folder = tmp_path / "Some_Package-1.0.dist-info"
    (folder / "licenses").mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: Some_Package\nVersion: 1.0\n{fields}\n")
    (folder / "licenses" / "LICENSE").write_text("=====\n  The Small License\n=====\nDo as you like.\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert Licence("Some_Package", "1.0", "yes", licence, place) in licences("some-package==1.0")


def test_a_locked_package_that_is_not_installed_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no-such-package not installed.*make setup"):
        licences("# a comment\nno_such.package==1.0\n")

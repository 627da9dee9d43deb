"""Tokens in the environment and in addresses never reach a file or an output line."""

from pathlib import Path

import pytest

from pipeline.core.errors import redacted
from tests.support.runs import remove_stage, run_main

TOKEN = "hf_" + "Zq7" * 11
PLANTED = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": "0badc0de" * 5, "AWS_SECRET_ACCESS_KEY": "plantedSecret/12345"}
ADDRESS = "https://somebody:plantedPassword@example.org/x?token=plantedParameter&page=2"
SECRETS = [*PLANTED.values(), "plantedPassword", "plantedParameter"]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_replaced_wherever_it_occurs(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    shown = redacted({"where": [f"{ADDRESS} {' '.join(PLANTED.values())}"], "steps": 3})
    assert secret not in str(shown) and shown["steps"] == 3
    assert "somebody" not in str(shown) and "page=2" in str(shown)


def test_ordinary_texts_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIN_TOKEN", "yes")
    for text in ("https://example.org/a:b?page=2", "yes, hf_transfer", "data.sources.rcb: 12:30", "user@example.org"):
        assert redacted(text) == text


def test_no_file_and_no_line_of_a_run_holds_a_secret(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    common = ["profile=tiny", f"runs={run_folder.parent}"]
    address = f"tracking.project='{ADDRESS} {TOKEN}'"
    for stage in ("data", "report"):
        remove_stage(run_folder / stage)
    made = run_main("stages=[data]", *common, address, f"data.sources.gazeta.note='{ADDRESS}'")
    reported = run_main("stages=[report]", *common, address)
    refused = run_main("stages=[data]", *common, f"+nonsense='{ADDRESS} {TOKEN}'")
    missing = run_main("stages=[data]", *common, "run=other", f"data.sources.gazeta.path='{ADDRESS}'")
    assert [made.status, reported.status, refused.status, missing.status] == [0, 0, 2, 2], missing
    written = b"".join(path.read_bytes() for path in run_folder.parent.rglob("*") if path.is_file())
    shown = "".join(ended.out + ended.err for ended in (made, reported, refused, missing))
    for secret in SECRETS:
        assert secret.encode() not in written and secret not in shown, secret
    assert b"https://***@example.org" in written

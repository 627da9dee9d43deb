"""An unavailable benchmark hides no other one, and is tried again before pairs are made."""

import json
from pathlib import Path
from typing import Any

import pytest

from configs.schema.config import Config
from configs.schema.evaluation import MtebTaskConfig, SuiteConfig
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


def account(config: Config, runs: Path) -> dict[str, dict[str, Any]]:
    """What the stage benchmarks, once made, records about the evaluations."""
    config.runs, config.run = str(runs), "test"
    make("benchmarks", config)
    return json.loads((config.folder("benchmarks") / "checked.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("place", "suite"), [("folder", "encodechka"), ("download", "encodechka"), ("folder", "encodechka_model")]
)
def test_encodechka_is_read_where_evaluate_reads_it(
    place: str, suite: str, encodechka: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ADDRESS", (encodechka / "data").as_uri())
    given = [f"evaluation.encodechka={encodechka}"] if place == "folder" else []
    found = account(composed(f"data.decontamination.suites=[{suite}]", *given), tmp_path / "runs")
    assert found["checked"] == {"encodechka stsb_dev": 2}
    assert len(found["not_checked"]) == 8


def test_what_is_wrong_with_one_task_s_data_is_one_line_and_hides_no_other_task(tmp_path: Path) -> None:
    tasks = {"RuSTSBenchmarkSTS": "ai-forever/ru-stsbenchmark-sts", "RUParaPhraserSTS": "merionum/ru_paraphraser"}
    empty, broken = (tmp_path / "mirror" / folder for folder in tasks.values())
    empty.mkdir(parents=True)
    broken.mkdir(parents=True)
    (broken / "test.jsonl").write_text("{")
    config = composed(f"mirror={tmp_path}/mirror")
    config.data.decontamination.suites = ["few"]
    config.evaluation.suite["few"] = SuiteConfig(tasks={name: MtebTaskConfig() for name in (*tasks, "TERRa")})
    reasons = account(config, tmp_path / "runs")["not_checked"]
    assert "doesn't contain any data files" in reasons["RuSTSBenchmarkSTS"]
    assert reasons["RUParaPhraserSTS"].startswith("mteb can't read its data: ")
    assert reasons["TERRa"].startswith("the Hub can't be reached: Couldn't reach 'mteb/TERRa'")

"""The published card's usage example, scored with a run's model."""

import dataclasses
from pathlib import Path

import pytest

from configs.schema.evaluation import ReportConfig
from evaluation.report.usage_example import example_texts, usage_similarities
from pipeline.chain import CHAIN
from pipeline.stage import run_stage
from tests.support.runs import read_csv
from tests.support.sample_run import write_run
from tests.support.small_bases import tiny_model

TEXTS = ["Когда замерзает река?", "Рецепт борща", "Лёд\nвстаёт в ноябре.", "Свёклу тушат отдельно."]
LINES = ",\n".join(f"  {text!r}" for text in TEXTS)
CARD = f"# Model\n```python\ninput_texts = [\n{LINES}\n]\nmodel = load()\n```\n"


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "mirror" / "organisation" / "name"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return tmp_path / "mirror"


def test_texts_are_read_from_the_card() -> None:
    assert example_texts(CARD) == TEXTS


@pytest.mark.parametrize(
    "card", ["no code", "input_texts = [\n open('x')\n]", "input_texts = [\n 1, 2, 3, 4\n]", "input_texts = [\n 'a'\n]"]
)
def test_a_card_in_another_format_has_no_texts(card: str) -> None:
    assert example_texts(card) == []


def test_similarities_are_those_of_the_model_with_its_prompts(mirror: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "query: ", "document": "passage: "}
    folder = tiny_model(pooling="mean", prompts=prompts)
    found = usage_similarities(folder, ReportConfig(card="organisation/name"), str(mirror))
    model = SentenceTransformer(str(folder), device="cpu")
    given = [*(f"query: {text}" for text in TEXTS[:2]), *(f"passage: {text}" for text in TEXTS[2:])]
    embeddings = model.encode(given, prompt="")
    expected = {(i, j): float(embeddings[i] @ embeddings[2 + j]) for i in range(2) for j in range(2)}
    assert found == {key: pytest.approx(value, abs=1e-5) for key, value in expected.items()}


def test_the_report_compares_them_with_the_card(mirror: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path / "runs")
    evaluation = dataclasses.replace(config.evaluation, report=ReportConfig(card="organisation/name"))
    run_stage(CHAIN["report"], dataclasses.replace(config, evaluation=evaluation, mirror=str(mirror)))
    claims = read_csv(config.folder("report") / "claims.csv")
    rows = [row for row in claims if row["claim"].startswith("Usage example")]
    assert [row["card"] for row in rows] == ["0.5567", "0.3014", "0.1701", "0.7122"]
    assert all(-1 <= float(row["ours"]) <= 1 and row["verdict"] in ("equal", "close", "differs") for row in rows)


@pytest.mark.parametrize("card", ["organisation/no-such-model", "no/hub/id"])
def test_without_a_readable_card_the_example_is_not_run(
    card: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert usage_similarities(tmp_path, ReportConfig(card=card), None) == {}
    assert f"the card of {card} can't be read" in caplog.text

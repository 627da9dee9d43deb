"""What smaller forms cost, on page and card: every figure from an artefact, nothing where nothing was measured."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from configs.schema.config import Config
from configs.schema.evaluation import SuiteConfig
from evaluation.report.about_cost import cost, fewer_dimensions, table
from evaluation.report.build import render_page
from evaluation.report.card import render_card
from evaluation.report.record import RunRecord, read_run
from evaluation.results import Difference, Score
from tests.support.facts import require_figures_of_artefacts
from tests.support.sample_run import finish, write_run

FORMS = {  # set and form -> dimensions, precision, bytes, nDCG@10
    "terms-full": (384, "float32", 1536, 0.484),
    "terms-128": (128, "float32", 512, 0.441),
    "terms-64": (64, "float32", 256, 0.397),
    "terms-int8": (384, "int8", 384, 0.481),
    "news-full": (384, "float32", 1536, 0.713),
}
EXPORT = {
    "texts": 226,
    "torch texts per second": 41.5,
    "onnx-int8 bytes a vector": 1536,
    "onnx-int8 correlation of pairs' cosines": 0.9815,
    "onnx-int8 cosine mean": 0.9965,
    "onnx-int8 cosine min": 0.9933,
    "onnx-int8 texts per second": 124.4,
    "onnx-int8 bytes": 28_953_823,
}


def add_forms(config: Config) -> None:
    """Scores of cut and quantised vectors, as the stage evaluate leaves them."""
    folder = config.folder("evaluate")
    scores, differences = Score.read(folder / "scores.csv"), Difference.read(folder / "comparison.csv")
    (folder / "units").mkdir()
    for task, (dimensions, precision, size, value) in FORMS.items():
        for model, own in (("base", value - 0.1), ("merge", value)):
            scores.append(Score(model, "vectors", task, "ndcg_at_10", own, own - 0.02, own + 0.02, 1500, 0.4))
        of, _, form = task.partition("-")
        stored = {"of": of, "full": f"{of}-full", "dimensions": dimensions, "precision": precision, "bytes": size}
        record = {"fingerprint": "f", "outputs": {}, "result": {"notes": {"stored": stored}}}
        (folder / "units" / f"merge--vectors--{task}.json").write_text(json.dumps(record), encoding="utf-8")
        if form != "full":
            change = value - FORMS[f"{of}-full"][3]
            numbers = (change, change - 0.005, change + 0.005, 0.0002, 0.0306, "bootstrap", 1500, True)
            differences.append(Difference("merge", f"merge on {of}-full", "vectors", task, "ndcg_at_10", *numbers))
    Score.write(folder / "scores.csv", scores)
    Difference.write(folder / "comparison.csv", differences)
    finish(config, "evaluate", {"tasks": 7})


def add_export(config: Config) -> None:
    (config.folder("export") / "onnx").mkdir(parents=True)
    (config.folder("export") / "onnx" / "model_int8.onnx").write_bytes(b"graph")
    finish(config, "export", EXPORT)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    runs = tmp_path_factory.mktemp("cost")
    config = write_run(runs)
    config.evaluation.suite["vectors"] = SuiteConfig(kind="vectors", dimensions=[128, 64])
    add_forms(config)
    add_export(config)
    return config


@pytest.fixture(scope="module")
def run(config: Config) -> RunRecord:
    return read_run(config.folder("report").parent)


def test_a_row_has_a_form_s_bytes_its_score_and_its_change(run: RunRecord) -> None:
    rows = {row[0]: dict(zip(table(run, "{}|{}|{}")[0][1:], row[1:], strict=True)) for row in table(run, "{}|{}|{}")}
    cut = rows["128 dimensions, float32"]
    assert cut["bytes a vector"] == "512" and cut["terms, ndcg_at_10"] == "0.441|0.421|0.461"
    assert cut["terms, change"] == "−0.043 (p 0.031)" and cut["texts a second"] == "–"
    assert rows["384 dimensions, float32"]["terms, change"] == "–"
    assert rows["torch"]["texts a second"] == "42"
    export = rows["onnx-int8"]
    assert (export["texts a second"], export["file, bytes"], export["cosine mean"]) == ("124", "28,953,823", "0.9965")
    assert rows["384 dimensions, float32"]["news, ndcg_at_10"] == "0.713|0.693|0.733"
    assert len(rows) == 1 + 4 + 2  # with the head


def test_the_page_has_the_table_the_picture_and_no_forms_among_the_models_scores(
    config: Config, run: RunRecord
) -> None:
    (section,) = cost(run)
    page = render_page(run, [])
    assert f'<section id="{section.anchor}">' in page and page.count("−0.043 (p 0.031)") == 1
    (picture,) = re.findall(r'aria-label="(ndcg_at_10 on terms against bytes a vector: [^"]*)"', page)
    assert picture.endswith(": 1536 bytes 0.484; 512 bytes 0.441; 256 bytes 0.397; 384 bytes 0.481")
    scores = page.partition('id="scores"')[2].partition('id="cost"')[0]
    assert "Scores have 95 % intervals" in page
    assert "term_to_definition" in scores and "terms-128" not in scores.partition("All ")[0]


def test_a_picture_has_a_point_a_form_and_powers_of_two_on_its_axis(run: RunRecord) -> None:
    svg = cost(run)[0].blocks[2].partition("</svg>")[0]
    assert [svg.count(f'r="3" fill="{colour}"') for colour in ("var(--merge)", "var(--accent)")] == [3, 1]
    marks = re.findall(r'text-anchor="middle">([\d,]+)</text>', svg)
    assert marks and all((number := int(mark.replace(",", ""))) & (number - 1) == 0 for mark in marks)


def test_the_card_shows_truncate_dim_the_quantised_file_and_the_dimensions_in_its_index(
    config: Config, run: RunRecord
) -> None:
    folder = run.model_folder("merge").as_posix()
    card = render_card(run, config, folder)
    assert fewer_dimensions(run) == 128 and f'SentenceTransformer("{folder}", truncate_dim=128)' in card
    assert f'onnxruntime.InferenceSession("{config.folder("export").as_posix()}/onnx/model_int8.onnx")' in card
    results = {(found.dataset_config, found.metric_type): found.metric_value for found in index(card)}
    assert results["terms-128", "ndcg_at_10"] == 0.441 and results["terms-int8", "ndcg_at_10"] == 0.481
    require_figures_of_artefacts(card, config.folder("report").parent)


def index(card: str) -> list[object]:
    return list(ModelCard(card).data.eval_results)


def test_a_published_card_loads_the_files_of_its_own_repository(config: Config, run: RunRecord) -> None:
    config.evaluation.publish.repo = "organisation/name"
    card = render_card(run, config, "organisation/name")
    assert (
        "it (in the folder of `hf download organisation/name --local-dir .`):" in card
        and 'InferenceSession("./onnx/model_int8.onnx")' in card
    )


def test_without_forms_and_exports_nothing_mentions_them(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    run = read_run(config.folder("report").parent)
    card = render_card(run, config, run.model_folder("merge").as_posix())
    assert cost(run) == [] and "truncate_dim" not in card and "InferenceSession" not in card

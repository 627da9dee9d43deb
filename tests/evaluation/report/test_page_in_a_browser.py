"""The page in a real browser, at the width of a phone and of a desktop, in light and dark."""

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from configs.schema.config import Config
from evaluation.results import Difference, Score
from pipeline.chain import CHAIN
from pipeline.core.artefact import read_manifest
from pipeline.stage import run_stage
from tests.support.browser import render
from tests.support.facts import require_facts_of_artefacts
from tests.support.sample_run import CHAIN_INPUTS, finish, write_csv, write_json, write_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = write_run(tmp_path_factory.mktemp("page"))
    run_stage(CHAIN["report"], config)
    return config


FURTHER = ("intfloat/multilingual-e5-large-instruct", "BAAI/bge-m3")
LICENCE = "none stated; SNLI CC-BY-SA-4.0, MNLI OANC and others, ANLI CC-BY-NC-4.0"


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run as wide as real ones are: 21 sets, two guard sets, further models, GPUs, long names and terms."""
    config = write_run(tmp_path_factory.mktemp("wide"))
    data, merge, evaluate = (config.folder(name) for name in ("data", "merge", "evaluate"))
    ledger = json.loads((data / "ledger.json").read_text(encoding="utf-8"))
    names = [f"set_of_pairs_number_{number}" for number in range(21)]
    lines = [
        ledger["sets"][1] | {"name": name, "title": name.replace("_", " ").capitalize(), "licence": LICENCE}
        for name in names
    ]
    big = {"card": 2_240_961, "built": 2_240_961, "kept": 2_136_723, "train": 2_115_094, "negatives": 1_792_644}
    ledger["sets"] += [line | big | {"source": "sentence-transformers/all-nli-triplets"} for line in lines]
    write_json(data / "ledger.json", ledger)
    with (merge / "search.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    by_set = {f"dev/{name}": 0.5 for name in names} | {f"guard/{name}": 0.5 for name in names[:2]}
    bounds = {"guard_loss_low": -0.0123, "guard_loss_high": 0.0456}
    write_csv(merge / "search.csv", [{**row, **bounds, **by_set, "compared_as": "search lm_cocktail"} for row in rows])
    weights = json.loads((merge / "weights.json").read_text(encoding="utf-8"))
    weights["compared"] = {name: row | bounds for name, row in weights["compared"].items()}
    write_json(merge / "weights.json", weights)
    scores, differences = Score.read(evaluate / "scores.csv"), Difference.read(evaluate / "comparison.csv")
    of_merge = [score for score in scores if score.model == "merge"]
    scores += [dataclasses.replace(score, model=name) for name in FURTHER for score in of_merge]
    differences += [dataclasses.replace(found, model=name) for name in FURTHER for found in differences]
    Score.write(evaluate / "scores.csv", scores)
    Difference.write(evaluate / "comparison.csv", differences)
    for stage in CHAIN_INPUTS:
        finish(config, stage, {"candidates": 27, "dev_under_guard": 0.4567, "method": "search", "weight_init": 0.125})
        manifest = read_manifest(config.folder(stage))
        assert manifest
        manifest.environment |= {"gpu": "NVIDIA H100 80GB HBM3", "gpu_driver": "550.54.15", "processes": 16}
        manifest.environment["packages"] = {f"package-of-some-length-{n}": "2.13.0+cu126" for n in range(11)}
        manifest.peak_gpu_bytes = 71_500_000_000
        manifest.write(config.folder(stage))
    run_stage(CHAIN["report"], config)
    return config


@pytest.mark.parametrize("width", [1200, 1600])
def test_nothing_is_cut_off_on_a_desk(wide: Config, tmp_path: Path, width: int) -> None:
    seen = render(wide.folder("report") / "index.html", width, tmp_path)
    assert seen.cut == [] and seen.content <= width and seen.console == []
    assert seen.tallest < 170


def test_the_browser_would_see_a_table_that_is_cut_off(tmp_path: Path) -> None:
    page = tmp_path / "wide.html"
    inside = '<div style="width:2000px">x</div>'
    page.write_text(f'<div class="scroll" aria-label="Scores" style="overflow-x:auto">{inside}</div>', encoding="utf-8")
    assert [found.partition(":")[0] for found in render(page, 1200, tmp_path).cut] == ["Scores"]


@pytest.mark.parametrize("width", [390, 1280])
def test_no_console_messages_no_sideways_scroll_and_all_pictures(run: Config, tmp_path: Path, width: int) -> None:
    seen = render(run.folder("report") / "index.html", width, tmp_path)
    assert seen.console == []
    assert seen.width == width and seen.content <= width
    assert seen.images and all(seen.images)
    assert 0 < seen.tallest < 170  # a head that wraps letter by letter makes its row far taller
    assert len(seen.charts) >= 5 and all(100 < chart <= width for chart in seen.charts)


def test_the_browser_would_see_a_sideways_scroll_and_a_console_error(tmp_path: Path) -> None:
    page = tmp_path / "wide.html"
    page.write_text('<div style="width:2000px">x</div><script>console.error("no")</script>', encoding="utf-8")
    seen = render(page, 390, tmp_path)
    assert seen.content > 2000 and len(seen.console) == 1


def test_facts_on_the_page_are_the_artefacts_facts(run: Config, tmp_path: Path) -> None:
    text = render(run.folder("report") / "index.html", 1280, tmp_path).text
    require_facts_of_artefacts(text, run.folder("report").parent)


def test_the_page_follows_the_dark_scheme(run: Config, tmp_path: Path) -> None:
    page = run.folder("report") / "index.html"
    light, dark = (
        render(page, 390, tmp_path, *flags).colour for flags in ([], ["--blink-settings=preferredColorScheme=0"])
    )
    assert light == "rgb(252, 251, 248)" and dark == "rgb(21, 24, 27)"

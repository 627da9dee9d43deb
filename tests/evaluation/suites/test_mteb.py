"""Tasks of mteb: cached by contents, resumed, read from a mirror, with per-item results that give mteb's scores."""

import contextlib
import dataclasses
import json
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Column, Dataset, DatasetDict
from mteb.abstasks import AbsTask, AbsTaskMultilabelClassification

from configs.schema.evaluation import MtebTaskConfig, SuiteConfig
from evaluation.encoder import Encoder
from evaluation.metrics import STATISTICS
from evaluation.models import folder_fingerprint
from evaluation.outcome import Outcome, read_outcome
from evaluation.suites.mteb_run import DenseEncoder, run_task
from evaluation.suites.mteb_tasks import hub_task, suite_tasks
from evaluation.suites.samples import MTEB_SAMPLES
from pipeline.application import composed
from pipeline.chain import CHAIN
from pipeline.core.artefact import PARTIAL
from pipeline.core.errors import UserError
from pipeline.stage import run_stage
from tests.evaluation.conftest import MakeModel
from tests.support.mteb_tasks import TYPES, sentences, task_of_type, with_data

RNG = np.random.default_rng(0)


def encoder(folder: Path) -> DenseEncoder:
    return DenseEncoder(Encoder(folder, device="cpu"), folder_fingerprint(folder))


@pytest.fixture(scope="module")
def model(model_folder: Path) -> DenseEncoder:
    return encoder(model_folder)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds mteb's results for the small tasks of each type, for tests of what is derived from them."""
    return tmp_path_factory.mktemp("evaluated")


def made_task(kind: str) -> tuple[AbsTask, list[str]]:
    """A real task of mteb with a little data in its format, and the requested metrics."""
    if kind == "Reranking":
        return task_of_type(kind), ["map_at_1000", "ndcg_at_10"]
    if kind != "two_splits":
        return task_of_type(kind), []
    texts, _ = sentences(100)
    columns = {"sentence1": texts[:50], "sentence2": texts[50:], "score": RNG.random(50).tolist()}
    one, other = Dataset.from_dict(columns), Dataset.from_dict({**columns, "score": RNG.random(50).tolist()})
    data = {"ru": DatasetDict(dev=one, test=other.select(range(30)))}
    choice = {"subsets": ["ru"], "splits": ["dev", "test"]}
    return with_data("STSBenchmarkMultilingualSTS", data, **choice), ["cosine_spearman", "cosine_pearson"]


def recomputed(outcome: Outcome, position: int) -> float:
    measure = outcome.measures[position]
    parts = outcome.columns["part"]
    values = []
    for part in dict.fromkeys(parts.tolist()):
        columns = [outcome.columns[name][parts == part] for name in measure.columns]
        ones = np.ones((1, len(columns[0])))
        values.append(STATISTICS[measure.statistic](ones, *columns)[0])
    return float(np.mean(values))


@pytest.mark.parametrize("kind", [*TYPES, "two_splits"])
def test_items_yield_mtebs_own_score(kind: str, model: DenseEncoder, evaluated: Path, tmp_path: Path) -> None:
    task, metrics = made_task(kind)
    outcome = run_task(model, task, metrics, evaluated)
    for position, measure in enumerate(outcome.measures):
        assert recomputed(outcome, position) == pytest.approx(measure.score, abs=1e-12), measure.metric
        results = [json.loads(path.read_text()) for path in (evaluated / "results").rglob(f"{task.metadata.name}.json")]
        theirs = [entry[measure.metric] for entries in results[0]["scores"].values() for entry in entries]
        assert np.mean(theirs) == pytest.approx(measure.score, abs=1e-5), measure.metric
    outcome.write(tmp_path / "outcome.parquet")
    again = read_outcome(tmp_path / "outcome.parquet")
    assert again.measures == outcome.measures
    for name, values in outcome.columns.items():
        np.testing.assert_array_equal(again.columns[name], values)


def test_of_many_texts_with_several_labels_the_items_are_those_that_mteb_chose(
    model: DenseEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AbsTaskMultilabelClassification, "max_eval_samples", 40)
    outcome = run_task(model, task_of_type("MultilabelClassification"), [], tmp_path)
    assert outcome.items == 40 and len(set(outcome.columns["item"])) == 40


def test_labels_are_not_decoded_again_in_every_metric_of_every_draw(
    model: DenseEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, original = list[str](), Column.__iter__
    monkeypatch.setattr(Column, "__iter__", lambda column: read.append(column.column_name) or original(column))
    task = task_of_type("Classification")
    run_task(model, task, [], tmp_path)
    assert read.count("label") < 10 * task.n_experiments


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("Classification", "f2"),
        ("Classification", "ap"),  # mteb gives None where there are more than two classes
        ("Clustering", "v_measure_std"),
        ("PairClassification", "max_f1"),
        ("Retrieval", "mrr_at_10"),
        ("Retrieval", "ndcg_at_7"),
        ("STS", "cosine_kendall"),
        ("STS", "languages"),
        ("STS", "main_score"),
    ],
)
def test_a_metric_that_mteb_does_not_report_item_by_item_is_one_line(
    kind: str, metric: str, model: DenseEncoder, evaluated: Path
) -> None:
    with pytest.raises(UserError, match=rf"mteb has no {metric} per item \(task .*correct the task's metrics"):
        run_task(model, task_of_type(kind), [metric], evaluated)


def test_metrics_of_texts_and_of_draws_can_t_be_combined(model: DenseEncoder, evaluated: Path) -> None:
    with pytest.raises(UserError, match="f1 and accuracy are not over the same items"):
        run_task(model, task_of_type("Classification"), ["accuracy", "f1"], evaluated)


def test_symmetric_tasks_take_the_query_prompt_and_retrieval_both(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = encoder(model_folder)
    seen: set[str] = set()
    tokenise = model.encoder.tokenise

    def watching(texts: list[str], prompt: str = "", max_length: int | None = None):
        seen.add(prompt)
        return tokenise(texts, prompt, max_length)

    monkeypatch.setattr(model.encoder, "tokenise", watching)
    run_task(model, MTEB_SAMPLES["mteb_pairs"](), [], tmp_path)
    assert seen == {"query: "}
    run_task(model, MTEB_SAMPLES["long_documents"](), [], tmp_path)
    assert seen == {"query: ", "passage: "}


def test_two_checkpoints_under_one_path_get_their_own_scores(make_model: MakeModel, tmp_path: Path) -> None:
    scores = []
    for seed in (1, 2, 1):
        folder = make_model(seed=seed, folder=tmp_path / "model", pooling="mean")
        outcome = run_task(encoder(folder), MTEB_SAMPLES["mteb_sts"](), [], tmp_path / "cache")
        scores.append(outcome.measures[0].score)
    assert scores[0] != scores[1] and scores[0] == scores[2]
    assert len(list((tmp_path / "cache").rglob("SampleSTS.json"))) == 2


def test_a_second_run_encodes_nothing_and_returns_the_same(model: DenseEncoder, tmp_path: Path) -> None:
    first = run_task(model, MTEB_SAMPLES["long_documents"](), [], tmp_path)
    model.encode = None  # type: ignore[method-assign, assignment]
    try:
        second = run_task(model, MTEB_SAMPLES["long_documents"](), [], tmp_path)
    finally:
        del model.encode
    assert first.measures == second.measures
    np.testing.assert_array_equal(*(found.columns["ndcg_at_10:value"] for found in (first, second)))


@pytest.mark.parametrize("force", [False, True])
def test_a_forced_run_scores_again(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """As after an edit of the code, which no fingerprint covers."""
    settings = [f"runs={tmp_path}", "evaluation.suites=[samples]", "evaluation.tasks=[mteb_sts]", "evaluation.chain=[]"]
    config = composed("profile=tiny", *settings, f"evaluation.models=[{model_folder}]")
    run_stage(CHAIN["evaluate"], config)
    encoded, encode = list[int](), DenseEncoder.encode
    monkeypatch.setattr(DenseEncoder, "encode", lambda *given, **named: encoded.append(1) or encode(*given, **named))
    run_stage(CHAIN["evaluate"], dataclasses.replace(config, force=force))
    assert bool(encoded) == force


def test_scores_that_were_kept_have_the_same_bytes_as_fresh_ones(model: DenseEncoder, tmp_path: Path) -> None:
    paths = [tmp_path / "fresh.parquet", tmp_path / "read.parquet"]
    for path in paths:
        run_task(model, MTEB_SAMPLES["mteb_sts"](), [], tmp_path).write(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text(path.read_text()[:99])])
def test_kept_scores_that_are_lost_or_damaged_are_computed_again(
    model: DenseEncoder, tmp_path: Path, harm: Callable[[Path], Any]
) -> None:
    first = run_task(model, MTEB_SAMPLES["mteb_sts"](), [], tmp_path)
    (file,) = (tmp_path / "parts").rglob("*.json")
    harm(file)
    assert run_task(model, MTEB_SAMPLES["mteb_sts"](), [], tmp_path).measures == first.measures


def test_kept_scores_serve_other_metrics_too(model: DenseEncoder, tmp_path: Path) -> None:
    run_task(model, task_of_type("Retrieval"), ["ndcg_at_10"], tmp_path)
    unread = task_of_type("Retrieval")
    unread.dataset, unread.data_loaded = None, False
    found = run_task(model, unread, ["recall_at_100", "map_at_10"], tmp_path)
    assert [measure.metric for measure in found.measures] == ["recall_at_100", "map_at_10"]


def score_in(model_folder: Path, cache: Path, task: Callable[[], AbsTask] = lambda: task_of_type("Retrieval")) -> None:
    run_task(encoder(model_folder), task(), [], cache)


def test_two_runs_that_score_one_model_at_once_leave_each_other_s_files(model_folder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    runs = [context.Process(target=score_in, args=(model_folder, tmp_path)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(PARTIAL)]
    assert len(list((tmp_path / "parts").rglob("*.json"))) == 1


def test_two_devices_that_score_one_model_on_two_tasks_keep_both(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = multiprocessing.get_context("fork")
    both, copy = context.Barrier(2), shutil.copyfile

    def met(source: Path, target: Path) -> None:
        copy(source, target)
        if source.name == "model_meta.json":  # of the model: the two have it in common
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(2)

    monkeypatch.setattr(shutil, "copyfile", met)
    chosen = [MTEB_SAMPLES[name] for name in ("mteb_sts", "mteb_pairs")]
    runs = [context.Process(target=score_in, args=(model_folder, tmp_path, task)) for task in chosen]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert len(list((tmp_path / "parts").rglob("*.json"))) == 2


def test_a_killed_run_leaves_nothing_that_looks_finished(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    process = multiprocessing.get_context("fork").Process(target=score_in, args=(model_folder, tmp_path))
    process.start()
    while process.is_alive() and not list((tmp_path / "parts").rglob(f"*{PARTIAL}")):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert not list((tmp_path / "parts").rglob("*.json"))
    assert run_task(encoder(model_folder), task_of_type("Retrieval"), [], tmp_path).items == 20
    assert not list(tmp_path.rglob(f"*{PARTIAL}"))


def mirrored(mirror: Path, task: AbsTask) -> Path:
    folder = mirror / task.metadata.dataset["path"]
    folder.mkdir(parents=True)
    return folder


def similarity_in(mirror: Path, count: int) -> AbsTask:
    """mteb's task whose data set in the mirror has this many new pairs."""
    folder = mirrored(mirror, mteb.get_task("RuSTSBenchmarkSTS"))
    texts, _ = sentences(2 * count)
    rows = {"sentence1": texts[:count], "sentence2": texts[count:], "score": RNG.random(count).tolist()}
    Dataset.from_dict(rows).to_json(folder / "test.jsonl", force_ascii=False)
    return hub_task("RuSTSBenchmarkSTS", SuiteConfig(), MtebTaskConfig(splits=["test"]), str(mirror))


def test_task_data_come_from_the_mirror(model: DenseEncoder, tmp_path: Path) -> None:
    task = similarity_in(tmp_path / "mirror", 30)
    assert run_task(model, task, ["cosine_spearman", "cosine_pearson"], tmp_path).items == 30


def test_other_data_of_the_same_name_are_scored_again(model: DenseEncoder, tmp_path: Path) -> None:
    one, other = (similarity_in(tmp_path / mirror, 30) for mirror in ("one", "other"))
    run_task(model, one, ["cosine_spearman"], tmp_path / "cache")
    found = run_task(model, other, ["cosine_spearman"], tmp_path / "cache")
    assert found.measures == run_task(model, other, ["cosine_spearman"], tmp_path / "new cache").measures


def test_data_that_can_t_be_built_are_one_line_with_the_cause(model: DenseEncoder, tmp_path: Path) -> None:
    task = similarity_in(tmp_path / "mirror", 30)
    (file,) = tmp_path.rglob("test.jsonl")
    file.write_bytes(file.read_bytes()[:-40])  # as a download that broke leaves it
    with pytest.raises(UserError, match=r"data isn't available: .*JSON.*task RuSTSBenchmarkSTS"):
        run_task(model, task, ["cosine_spearman"], tmp_path)


def test_retrieval_data_come_from_the_mirror(model: DenseEncoder, tmp_path: Path) -> None:
    folder = mirrored(tmp_path / "mirror", mteb.get_task("RuBQRetrieval"))
    pool, _ = sentences(30)
    files = {
        "corpus": [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(pool)],
        "queries": [{"_id": f"q{n}", "text": text} for n, text in enumerate(pool[:9])],
        "qrels": [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(9)],
    }
    configs = []
    for name, rows in files.items():
        (folder / name).mkdir()
        Dataset.from_list(rows).to_json(folder / name / "test.jsonl", force_ascii=False)
        config = "default" if name == "qrels" else name
        configs.append(f"- config_name: {config}\n  data_files:\n  - split: test\n    path: {name}/test.jsonl\n")
    (folder / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    task = hub_task("RuBQRetrieval", SuiteConfig(), MtebTaskConfig(), str(tmp_path / "mirror"))
    outcome = run_task(model, task, ["ndcg_at_10", "recall_at_100"], tmp_path)
    assert outcome.items == 9 and outcome.measures[1].score == 1


def test_items_are_named_by_what_they_share(model: DenseEncoder, evaluated: Path, tmp_path: Path) -> None:
    names = {}
    for name, place in (("XNLI", "ru"), ("XNLIV2", "russian")):
        texts, _ = sentences(60, seed=len(name))  # translated again: other texts, of the same meaning
        pairs = [{"sentence1": texts[:30], "sentence2": texts[30:], "labels": [n % 2 for n in range(30)]}]
        task = with_data(name, {place: {"test": pairs}}, subsets=[place], splits=["test"])
        names[name] = run_task(model, task, ["max_ap"], tmp_path).columns["item"].tolist()
    assert names["XNLI"] == names["XNLIV2"] and len(set(names["XNLI"])) == 30
    parts, _ = made_task("two_splits")
    found = run_task(model, parts, ["cosine_spearman"], tmp_path)
    assert len(set(found.columns["item"])) == 50  # one split's pairs are the other's first 30
    clustering = run_task(model, task_of_type("Clustering"), [], evaluated)
    assert "item" not in clustering.columns and clustering.measures[0].statistic == "mean_of_draws"


def test_no_network_and_no_mirror_is_one_line(model: DenseEncoder, tmp_path: Path) -> None:
    task = hub_task("TERRa", SuiteConfig(), MtebTaskConfig(), None)
    with pytest.raises(UserError, match=r"data isn't available.*task TERRa"):
        run_task(model, task, [], tmp_path)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("TERRRa", MtebTaskConfig(), "no such task"),
        ("TERRa", MtebTaskConfig(splits=["train"]), "no split train"),
        ("MassiveIntentClassification", MtebTaskConfig(subsets=["ru", "xx"]), "no subset xx"),
    ],
)
def test_an_unknown_task_split_or_subset_is_one_line(name: str, config: MtebTaskConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hub_task(name, SuiteConfig(), config, None)


def test_an_exception_of_a_benchmark_s_task_counts_in_its_suite_and_in_no_other() -> None:
    name, suite = "MassiveIntentClassification", SuiteConfig(benchmark="MTEB(rus, v1.1)")
    special = hub_task(name, suite, MtebTaskConfig(subsets=["en"], splits=["validation"]), None)
    assert (list(special.hf_subsets), list(special.eval_splits)) == (["en"], ["validation"])
    task = hub_task(name, suite, MtebTaskConfig(), None)
    assert (list(task.hf_subsets), list(task.eval_splits)) == (["ru"], ["validation", "test"])


def test_an_unknown_benchmark_is_one_line() -> None:
    with pytest.raises(UserError, match=r"no benchmark MTEB\(rus, v9\)"):
        suite_tasks(SuiteConfig(benchmark="MTEB(rus, v9)"))


def test_no_guard_of_the_reproduction_is_a_benchmarks_data() -> None:
    config = composed("profile=bge_m3")
    names = {name for suite in config.evaluation.suite.values() for name in suite.tasks}
    tasks = [*mteb.get_benchmark("MTEB(rus, v1.1)"), *mteb.get_tasks(tasks=sorted(names - {"nli", "sts"}))]
    hubs = {str(task.metadata.dataset["path"]).lower() for task in tasks}
    guards = [config.data.held_out[name] for name in config.merging.guard_sources]
    assert len(hubs) >= 30
    assert not hubs & {guard.hub.lower() for guard in guards if guard.hub}

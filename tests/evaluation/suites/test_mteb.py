"""Tasks of mteb: cached by contents, resumed, read from a mirror, with per-item results that give mteb's scores."""

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask

from configs.schema.evaluation import MtebTaskConfig, SuiteConfig
from evaluation.encoder import Embedder
from evaluation.models import folder_fingerprint
from evaluation.outcome import Outcome, read_outcome
from evaluation.significance import STATISTICS
from evaluation.suites.mteb_run import CheckedEncoder, run_task
from evaluation.suites.mteb_tasks import hub_task, suite_tasks
from evaluation.suites.samples import MTEB_SAMPLES
from pipeline.application import composed
from pipeline.core.errors import UserError
from tests.evaluation.conftest import MakeModel

RNG = np.random.default_rng(0)
WORDS = ["река", "музей", "маяк", "борщ", "город", "закон", "зима", "поезд", "театр", "число", "книга", "дождь"]


def sentences(count: int) -> list[str]:
    return [" ".join(RNG.choice(WORDS, 5)) for _ in range(count)]


def encoder(folder: Path) -> CheckedEncoder:
    return CheckedEncoder(Embedder(folder, device="cpu"), folder_fingerprint(folder))


@pytest.fixture(scope="module")
def model(model_folder: Path) -> CheckedEncoder:
    return encoder(model_folder)


def with_data(name: str, data: object, **choice: list[str]) -> AbsTask:
    task = hub_task(name, SuiteConfig(), MtebTaskConfig(**choice), None)
    task.dataset, task.data_loaded = data, True
    return task


def made_task(kind: str) -> tuple[AbsTask, list[str]]:
    """A real task of mteb with a little data of its form."""
    if kind == "multilabel":
        rows = [{"text": text, "label": [n % 6, (n + 1) % 6]} for n, text in enumerate(sentences(60))]
        data = DatasetDict(train=Dataset.from_list(rows), test=Dataset.from_list(rows[:40]))
        return with_data("CEDRClassification", data), []
    if kind == "clustering":
        data = DatasetDict(test=Dataset.from_dict({"sentences": sentences(60), "labels": [n % 4 for n in range(60)]}))
        return with_data("GeoreviewClusteringP2P", data), []
    if kind == "reranking":
        pool = sentences(40)
        parts = {
            "corpus": Dataset.from_list([{"id": f"d{n}", "title": "", "text": text} for n, text in enumerate(pool)]),
            "queries": Dataset.from_list([{"id": f"q{n}", "text": pool[n][:12]} for n in range(10)]),
            "relevant_docs": {f"q{n}": {f"d{n}": 1, f"d{n + 20}": 1} for n in range(10)},
            "top_ranked": {f"q{n}": [f"d{m}" for m in range(n, n + 30)] for n in range(10)},
        }
        return with_data("RuBQReranking", {"default": {"test": parts}}), ["map_at_1000", "ndcg_at_10"]
    columns = {"sentence1": sentences(50), "sentence2": sentences(50), "score": RNG.random(50).tolist()}
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
        values.append(STATISTICS[measure.statistic](ones, lambda size: np.ones((1, size)), *columns)[0])
    return float(np.mean(values))


@pytest.mark.parametrize("kind", [*MTEB_SAMPLES, "multilabel", "clustering", "reranking", "two_splits"])
def test_items_give_mtebs_own_score(kind: str, model: CheckedEncoder, tmp_path: Path) -> None:
    task, metrics = (MTEB_SAMPLES[kind](), []) if kind in MTEB_SAMPLES else made_task(kind)
    outcome = run_task(model, task, metrics, tmp_path, {})
    for position, measure in enumerate(outcome.measures):
        assert recomputed(outcome, position) == pytest.approx(measure.score, abs=1e-12), measure.metric
        results = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob(f"{task.metadata.name}.json")]
        theirs = [entry[measure.metric] for entries in results[0]["scores"].values() for entry in entries]
        assert np.mean(theirs) == pytest.approx(measure.score, abs=1e-5), measure.metric
    outcome.write(tmp_path / "outcome.parquet")
    again = read_outcome(tmp_path / "outcome.parquet")
    assert again.measures == outcome.measures
    for name, values in outcome.columns.items():
        np.testing.assert_array_equal(again.columns[name], values)


def test_symmetric_tasks_take_the_query_prompt_and_retrieval_both(model: CheckedEncoder, tmp_path: Path) -> None:
    seen: set[str] = set()
    preprocess = model.model.preprocess

    def watching(inputs: list[str], prompt: str | None = None, **kwargs: object):
        seen.add(prompt or "")
        return preprocess(inputs, prompt=prompt, **kwargs)

    model.model.preprocess = watching
    try:
        run_task(model, MTEB_SAMPLES["mteb_sts"](), [], tmp_path, {})
        assert seen == {"query: "}
        run_task(model, MTEB_SAMPLES["long_documents"](), [], tmp_path, {})
        assert seen == {"query: ", "passage: "}
    finally:
        del model.model.preprocess


def test_two_checkpoints_under_one_path_get_their_own_scores(make_model: MakeModel, tmp_path: Path) -> None:
    scores = []
    for seed in (1, 2, 1):
        folder = make_model(seed=seed, folder=tmp_path / "model", pooling="mean")
        outcome = run_task(encoder(folder), MTEB_SAMPLES["mteb_sts"](), [], tmp_path / "cache", {})
        scores.append(outcome.measures[0].score)
    assert scores[0] != scores[1] and scores[0] == scores[2]
    assert len(list((tmp_path / "cache").rglob("SampleSTS.json"))) == 2


def test_a_second_run_encodes_nothing_and_gives_the_same(model: CheckedEncoder, tmp_path: Path) -> None:
    first = run_task(model, MTEB_SAMPLES["long_documents"](), [], tmp_path, {})
    model.encode = None  # type: ignore[method-assign, assignment]
    try:
        second = run_task(model, MTEB_SAMPLES["long_documents"](), [], tmp_path, {})
    finally:
        del model.encode
    assert first.measures == second.measures
    np.testing.assert_array_equal(*(found.columns["ndcg_at_10:value"] for found in (first, second)))


def test_scores_read_from_mteb_s_files_give_the_same_bytes_as_fresh_ones(model: CheckedEncoder, tmp_path: Path) -> None:
    paths = [tmp_path / "fresh.parquet", tmp_path / "read.parquet"]
    for path in paths:
        run_task(model, MTEB_SAMPLES["mteb_sts"](), [], tmp_path, {}).write(path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("")])
@pytest.mark.parametrize("kind", ["predictions", "results"])
def test_what_a_kill_left_out_or_half_is_made_anew(
    model: CheckedEncoder, tmp_path: Path, kind: str, harm: Callable[[Path], Any]
) -> None:
    first = run_task(model, MTEB_SAMPLES["mteb_sts"](), [], tmp_path, {})
    (file,) = [path for path in (tmp_path / kind).rglob("*.json") if path.name != "model_meta.json"]
    harm(file)
    assert run_task(model, MTEB_SAMPLES["mteb_sts"](), [], tmp_path, {}).measures == first.measures


def evaluate_slowly(folder: Path, cache: Path) -> None:
    """Two splits, the second one so slow that the process is killed in it."""
    model, (task, metrics) = encoder(folder), made_task("two_splits")
    evaluate = task.evaluate

    def slow(wrapped: object, split: str, **kwargs: object):
        if split == "test":
            (cache / "begun").touch()
            time.sleep(60)
        return evaluate(wrapped, split, **kwargs)

    task.evaluate = slow  # type: ignore[method-assign, assignment]
    run_task(model, task, metrics, cache, {})


def test_a_killed_run_goes_on_after_its_last_split(model_folder: Path, tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=evaluate_slowly, args=(model_folder, tmp_path))
    process.start()
    deadline = time.monotonic() + 30
    while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.join()
    task, metrics = made_task("two_splits")
    done: list[str] = []
    evaluate = task.evaluate
    task.evaluate = lambda model, split, **kwargs: (done.append(split), evaluate(model, split, **kwargs))[1]  # type: ignore[method-assign]
    outcome = run_task(encoder(model_folder), task, metrics, tmp_path, {})
    assert done == ["test"]
    assert outcome.items == 80


def mirrored(mirror: Path, task: AbsTask) -> Path:
    folder = mirror / task.metadata.dataset["path"]
    folder.mkdir(parents=True)
    return folder


def similarity_in(mirror: Path, count: int) -> AbsTask:
    """mteb's task whose data set in the mirror has so many new pairs."""
    folder = mirrored(mirror, mteb.get_task("RuSTSBenchmarkSTS"))
    rows = {"sentence1": sentences(count), "sentence2": sentences(count), "score": RNG.random(count).tolist()}
    Dataset.from_dict(rows).to_json(folder / "test.jsonl", force_ascii=False)
    return hub_task("RuSTSBenchmarkSTS", SuiteConfig(), MtebTaskConfig(splits=["test"]), str(mirror))


def test_task_data_come_from_the_mirror(model: CheckedEncoder, tmp_path: Path) -> None:
    task = similarity_in(tmp_path / "mirror", 30)
    assert run_task(model, task, ["cosine_spearman", "cosine_pearson"], tmp_path, {}).items == 30


def test_other_data_of_the_same_name_are_scored_anew(model: CheckedEncoder, tmp_path: Path) -> None:
    one, other = (similarity_in(tmp_path / mirror, 30) for mirror in ("one", "other"))
    run_task(model, one, ["cosine_spearman"], tmp_path / "cache", {})
    found = run_task(model, other, ["cosine_spearman"], tmp_path / "cache", {})
    assert found.measures == run_task(model, other, ["cosine_spearman"], tmp_path / "new cache", {}).measures


def test_retrieval_data_come_from_the_mirror(model: CheckedEncoder, tmp_path: Path) -> None:
    folder = mirrored(tmp_path / "mirror", mteb.get_task("RuBQRetrieval"))
    pool = sentences(30)
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
    outcome = run_task(model, task, ["ndcg_at_10", "recall_at_100"], tmp_path, {})
    assert outcome.items == 9 and outcome.measures[1].score == 1


def test_no_network_and_no_mirror_is_one_line(model: CheckedEncoder, tmp_path: Path) -> None:
    task = hub_task("TERRa", SuiteConfig(), MtebTaskConfig(), None)
    with pytest.raises(UserError, match=r"data can't be had.*task TERRa"):
        run_task(model, task, [], tmp_path, {})


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("TERRRa", MtebTaskConfig(), "no such task"),
        ("TERRa", MtebTaskConfig(splits=["train"]), "no split train"),
    ],
)
def test_an_unknown_task_or_split_is_one_line(name: str, config: MtebTaskConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        hub_task(name, SuiteConfig(), config, None)


def test_an_unknown_benchmark_is_one_line() -> None:
    with pytest.raises(UserError, match=r"no benchmark MTEB\(rus, v9\)"):
        suite_tasks(SuiteConfig(benchmark="MTEB(rus, v9)"))


def test_results_hold_the_versions(model: CheckedEncoder, tmp_path: Path) -> None:
    run_task(model, MTEB_SAMPLES["mteb_sts"](), [], tmp_path, {})
    result = json.loads(next((tmp_path / "results").rglob("SampleSTS.json")).read_text())
    assert result["mteb_version"] == mteb.__version__


def test_no_guard_of_the_reproduction_is_a_benchmarks_data() -> None:
    config = composed("profile=bge_m3")
    names = {name for suite in config.evaluation.suite.values() for name in suite.tasks}
    tasks = [*mteb.get_benchmark("MTEB(rus, v1.1)"), *mteb.get_tasks(tasks=sorted(names - {"nli", "sts"}))]
    hubs = {str(task.metadata.dataset["path"]).lower() for task in tasks}
    guards = [config.data.held_out[name] for name in config.merging.guard_sources]
    assert len(hubs) >= 30
    assert not hubs & {guard.hub.lower() for guard in guards if guard.hub}

"""The stage: scores, predictions and comparison of several models; resumed, repeatable, and safe from bad input."""

import dataclasses
import importlib.metadata
import multiprocessing
import os
import shutil
import signal
import time
import weakref
from pathlib import Path
from threading import Thread, main_thread
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.schema.config import Config
from evaluation.evaluate import chosen_tasks
from evaluation.models import ScoredModel, folder_fingerprint, further_model, scored_models
from evaluation.outcome import Measure, Outcome
from evaluation.report.record import outdated_inputs, read_run
from evaluation.scoring import Scorer, score_units, unit_fingerprint
from evaluation.suites.task import Task
from pipeline.application import composed
from pipeline.chain import CHAIN
from pipeline.core.artefact import UNITS, Manifest, StageFolder, is_complete, read_manifest
from pipeline.core.errors import Stopped, UserError
from pipeline.core.heads import Heads, write_heads
from pipeline.stage import folder_and_manifest, locked, run_stage
from tests.evaluation.conftest import MakeModel
from tests.reliability.faults import number_at
from tests.support.runs import put, read_csv
from tests.support.zoo import animal

SAMPLE_TASKS = ("sts", "paraphrase", "topics", "mteb_sts", "mteb_pairs", "mteb_topics", "long_documents")


def make_config(runs: Path, *overrides: str) -> Config:
    settings = ["profile=tiny", f"runs={runs}", "evaluation.chain=[]", "evaluation.suites=[samples]"]
    return composed(*settings, *overrides)


@pytest.fixture(scope="module")
def models(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    parent = tmp_path_factory.mktemp("models")
    return {name: make_model(seed=seed, folder=parent / name) for seed, name in enumerate(("first", "second"), 1)}


@pytest.fixture(scope="module")
def scored(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    config = make_config(tmp_path_factory.mktemp("runs"), f"evaluation.models=[{','.join(map(str, models.values()))}]")
    run_stage(CHAIN["evaluate"], config)
    return config


def test_every_model_has_every_score_with_its_interval(scored: Config) -> None:
    rows = read_csv(scored.folder("evaluate") / "scores.csv")
    assert list(rows[0]) == ["model", "suite", "task", "metric", "score", "ci_low", "ci_high", "items", "seconds"]
    assert {(row["model"], row["task"]) for row in rows} == {(m, t) for m in ("first", "second") for t in SAMPLE_TASKS}
    assert all(float(row["ci_low"]) <= float(row["score"]) <= float(row["ci_high"]) for row in rows)


def test_models_are_compared_in_pairs(scored: Config) -> None:
    rows, scores = (read_csv(scored.folder("evaluate") / f"{name}.csv") for name in ("comparison", "scores"))
    by_model = {(row["model"], row["task"]): float(row["score"]) for row in scores}
    assert {row["task"] for row in rows} == set(SAMPLE_TASKS)
    for row in rows:
        difference = by_model["second", row["task"]] - by_model["first", row["task"]]
        assert float(row["difference"]) == pytest.approx(difference, abs=2e-6)
        assert float(row["p_value"]) <= float(row["p_holm"]) <= 1
        resampled = row["task"] == "mteb_topics" or row["metric"] in ("spearman", "cosine_spearman", "max_ap")
        assert row["test"] == ("bootstrap" if resampled else "permutation")


def test_predictions_are_listed_item_by_item(scored: Config) -> None:
    folder = scored.folder("evaluate") / "predictions"
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")} == {
        f"{model}/samples/{task}.parquet" for model in ("first", "second") for task in SAMPLE_TASKS
    }


def without_seconds(folder: Path) -> dict[str, object]:
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_csv(folder / "scores.csv")]
    files = {path.name: path.read_bytes() for path in folder.rglob("*.parquet")}
    return {"scores": rows, "comparison": (folder / "comparison.csv").read_bytes(), **files}


def test_a_run_without_any_cache_ends_in_the_same_bytes(scored: Config, tmp_path: Path) -> None:
    again = dataclasses.replace(scored, runs=str(tmp_path))
    run_stage(CHAIN["evaluate"], again)
    assert without_seconds(again.folder("evaluate")) == without_seconds(scored.folder("evaluate"))


@pytest.mark.slow
def test_two_devices_share_the_units_and_end_in_the_bytes_of_one(
    scored: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluation.scoring.Encoder", None)  # this process loads nothing: the two it starts do
    settings = dataclasses.replace(scored.evaluation, devices=["cpu", "cpu"])
    shared = dataclasses.replace(scored, runs=str(tmp_path), evaluation=settings)
    run_stage(CHAIN["evaluate"], shared)
    assert without_seconds(shared.folder("evaluate")) == without_seconds(scored.folder("evaluate"))


def sleeping(config: Config, stage: StageFolder) -> list[Task]:
    """The tasks that a device's process asks for, and waits for."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in a process that is not a fork
    (Path(config.runs) / f"{os.getpid()}").touch()
    time.sleep(600)
    return []


def test_a_stop_ends_the_processes_of_all_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forks = multiprocessing.get_context("fork")  # spawned ones, which a slow test has, import for 10 s
    chosen = Mock(return_value=forks)
    monkeypatch.setattr(multiprocessing, "get_context", chosen)
    config, model = make_config(tmp_path, "evaluation.devices=[cpu,cpu]"), ScoredModel("first", tmp_path, "contents")

    def stop_when_both_are_at_work() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        signal.pthread_kill(main_thread().ident or 0, signal.SIGTERM)

    def stopped(number: int, frame: object) -> None:
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stopped)
    try:
        Thread(target=stop_when_both_are_at_work, daemon=True).start()
        with pytest.raises(Stopped):
            score_units(config, StageFolder("evaluate", tmp_path, "made", {}), [model], sleeping)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not multiprocessing.active_children()
    assert chosen.call_args.args == ("spawn",)


def test_a_second_machine_scores_units_of_the_stage_that_the_first_one_holds(
    models: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(
        tmp_path, f"evaluation.models=[{models['first']}]", "evaluation.tasks=[sts,mteb_sts]", "launch.nodes=2"
    )
    folder, manifest = folder_and_manifest(CHAIN["evaluate"], config)
    folder.path.mkdir(parents=True)
    second = Thread(target=run_stage, args=(CHAIN["evaluate"], config))
    with locked(folder.path), folder.claim("first/samples/sts"):
        second.start()
        time.sleep(0.5)
        assert not (folder.path / UNITS).exists()  # the first machine has not begun to make this state
        manifest.write(folder.path)
        unit = folder.path / UNITS / "first--samples--mteb_sts.json"
        while second.is_alive() and not unit.exists():
            time.sleep(0.05)
        with folder.claim("first/samples/mteb_sts"):  # until it is made: before, its record says what it will own
            made = unit.read_bytes()
        time.sleep(0.5)
        assert second.is_alive() and not (folder.path / "scores.csv").exists()
        assert [path.name for path in (folder.path / UNITS).iterdir()] == [unit.name]  # not what the first one holds
    second.join(60)
    assert is_complete(folder.path) and unit.read_bytes() == made
    assert [row["task"] for row in read_csv(folder.path / "scores.csv")] == ["sts", "mteb_sts"]


def test_a_model_leaves_the_device_when_it_is_done(models: dict[str, Path], tmp_path: Path) -> None:
    (model,) = scored_models(make_config(tmp_path, f"evaluation.models=[{models['first']}]"))
    with Scorer(model, make_config(tmp_path)) as scorer:
        scorer.encoder.sentences(["Река замерзает."])
        loaded = weakref.ref(scorer.encoder.model)
        assert loaded() is not None
    assert loaded() is None


def test_a_further_model_leaves_the_scores_of_the_others(
    scored: Config, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(scored.runs, tmp_path / "runs")
    third = make_model(seed=3, folder=tmp_path / "third")
    settings = dataclasses.replace(scored.evaluation, models=[*scored.evaluation.models, str(third)])
    config, loaded = dataclasses.replace(scored, runs=str(tmp_path / "runs"), evaluation=settings), list[str]()
    from evaluation import scoring

    original = scoring.Encoder
    monkeypatch.setattr(
        scoring, "Encoder", lambda folder, **rest: loaded.append(folder.name) or original(folder, **rest)
    )
    run_stage(CHAIN["evaluate"], config)
    assert loaded == ["third"]
    assert len({row["model"] for row in read_csv(config.folder("evaluate") / "scores.csv")}) == 3


@pytest.mark.parametrize(("suite", "rescored"), [("samples", False), ("card_30", True)])
def test_another_mirror_rescores_mteb_s_tasks_and_no_others(suite: str, rescored: bool) -> None:
    overrides = ["profile=tiny", f"evaluation.suites=[{suite}]"]
    one, other = (
        CHAIN["evaluate"].settings(composed(*overrides, f"mirror={mirror}")) for mirror in ("data/samples", ".")
    )
    assert (one != other) == rescored


@pytest.mark.parametrize(("suite", "rescored"), [("samples", False), ("held_out", True)])
def test_other_languages_rescore_where_bm25_takes_their_stems(suite: str, rescored: bool) -> None:
    overrides = ["profile=tiny", f"evaluation.suites=[{suite}]"]
    one, other = (CHAIN["evaluate"].settings(composed(*overrides, f"languages=[{code}]")) for code in ("ru", "kk"))
    assert (one != other) == rescored


@pytest.mark.parametrize(("suite", "rescored"), [("samples", True), ("card_30", True), ("encodechka", False)])
def test_another_release_of_mteb_rescores_what_it_scores(
    suite: str, rescored: bool, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, f"evaluation.models=[{models['first']}]", f"evaluation.suites=[{suite}]")
    before = CHAIN["evaluate"].reads(config)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.0")
    assert (CHAIN["evaluate"].reads(config) != before) == rescored


def test_those_of_the_chain_s_models_that_are_complete_are_scored(models: dict[str, Path], tmp_path: Path) -> None:
    config = make_config(tmp_path, "evaluation.chain=[base,init,symmetric,merge]")
    for name, folder in (("base", config.folder("base")), ("init", config.folder("init"))):
        shutil.copytree(models["first"], folder)
        Manifest(name, "complete", f"fingerprint of {name}", {}, {}).write(folder)
    shutil.copytree(models["second"], config.folder("merge") / "model")
    Manifest("merge", "running", "unfinished", {}, {}).write(config.folder("merge"))
    assert [model.name for model in scored_models(config)] == ["base", "init"]
    assert CHAIN["evaluate"].needs(config) == ["base", "init"]


def test_merge_is_scored_with_the_heads_that_were_fitted_to_it_and_with_no_others(
    models: dict[str, Path], tmp_path: Path
) -> None:
    config = make_config(tmp_path, "evaluation.chain=[merge]")
    for name, inputs in (("merge", {}), ("heads", {"merge": "fingerprint of merge"})):
        shutil.copytree(models["first"], config.folder(name) / "model")
        Manifest(name, "complete", f"fingerprint of {name}", inputs, {}).write(config.folder(name))
    (model,) = scored_models(config)
    assert (model.name, model.folder) == ("merge", config.folder("heads") / "model")
    assert CHAIN["evaluate"].needs(config) == ["heads"] == CHAIN["export"].needs(config)
    assert read_run(config.folder("merge").parent).model_folder("merge") == model.folder
    config.training.heads.kind = "none"
    (model,) = scored_models(config)
    assert model.folder == config.folder("merge") / "model"
    assert CHAIN["evaluate"].needs(config) == ["merge"] == CHAIN["export"].needs(config)
    assert "heads" not in CHAIN["publish"].needs(config) + CHAIN["report"].needs(config)
    assert read_run(config.run_folder, dataclasses.asdict(config)).model_folder("merge") == model.folder
    config.training.heads.kind = "frozen"
    Manifest("merge", "complete", "rebuilt", {}, {}).write(config.folder("merge"))
    (model,) = scored_models(config)
    assert model.folder == config.folder("merge") / "model" and CHAIN["evaluate"].needs(config) == ["merge"]
    assert read_run(config.folder("merge").parent).model_folder("merge") == model.folder


@pytest.mark.parametrize("name", ["export", "evaluate"])
def test_what_was_made_from_merge_before_heads_were_fitted_is_outdated(name: str) -> None:
    of_merge, of_heads = {"merge": "merge 1"}, {"heads": "heads 1"}
    found = {"merge": Manifest("merge", "complete", "merge 1", {}, {})}
    found[name] = Manifest(name, "complete", "of merge", of_merge, {})
    assert outdated_inputs(name, found) == []
    found["heads"] = Manifest("heads", "complete", "heads 1", of_merge, {})
    assert outdated_inputs(name, found) == ["heads"]
    found[name] = Manifest(name, "complete", "of heads", of_heads, {})
    assert outdated_inputs(name, found) == []
    assert outdated_inputs(name, {one: of for one, of in found.items() if one != "heads"}) == ["merge"]  # heads=none


class Scored(Task):
    def score(self, scorer: Scorer) -> Outcome:
        raise NotImplementedError


def test_heads_change_no_dense_score_and_their_own(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["first"], tmp_path / "model"))
    config = make_config(tmp_path / "runs", f"evaluation.models=[{folder}]")
    dense, both = Scored("suite", "task", {}), Scored("suite", "task", {})
    both.takes_heads = True
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        write_heads(folder, Heads(torch.nn.Linear(32, 1), torch.nn.Linear(32, 24)))
        (model,) = scored_models(config)
        found.append([unit_fingerprint(model, task, config) for task in (dense, both)])
        found[-1].append(CHAIN["evaluate"].reads(config)[model.name])
    assert [one == other for one, other in zip(*found, strict=True)] == [True, False, False]


def test_the_same_stage_of_several_runs_can_be_compared(models: dict[str, Path], tmp_path: Path) -> None:
    runs = [Path(shutil.copytree(models["first"], tmp_path / run / "merge" / "model")) for run in ("a", "b", "c")]
    config = make_config(tmp_path, f"evaluation.models=[{','.join(map(str, runs))}]")
    assert [model.name for model in scored_models(config)] == ["merge", "b/merge", "c/merge"]


def test_a_model_in_a_container_s_root_is_named_by_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.models.hub_model", lambda wanted: None)
    monkeypatch.setattr("evaluation.models.resolve_model", lambda wanted, *where: (Path(wanted), None))
    monkeypatch.setattr("evaluation.models.folder_fingerprint", str)
    assert further_model("/model", None).name == "model"


def test_a_first_look_at_the_card_leaves_out_the_largest_corpora_and_is_part_of_the_whole(tmp_path: Path) -> None:
    chosen = {}
    for name in ("card", "card_fast"):
        config = composed("profile=bge_m3", f"evaluation={name}", f"runs={tmp_path}")
        tasks = chosen_tasks(config, StageFolder("evaluate", tmp_path, "f", {}))
        model = ScoredModel("merge", tmp_path, "contents")
        chosen[name] = {task.key: unit_fingerprint(model, task, config) for task in tasks}
    assert config.evaluation.chain == ["base", "merge"]
    left_out = {key.partition("/")[2] for key in chosen["card"].keys() - chosen["card_fast"]}
    assert left_out == {"RiaNewsRetrieval", "MultiLongDocRetrieval"}
    assert chosen["card_fast"].items() <= chosen["card"].items()  # so that nothing is scored twice
    config = make_config(tmp_path, "evaluation.without=[nothing]")
    with pytest.raises(UserError, match=r"no chosen suite has the task nothing \(config key evaluation.without\)"):
        chosen_tasks(config, StageFolder("evaluate", tmp_path, "f", {}))


def test_a_fingerprint_is_of_what_changes_embeddings(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["first"], tmp_path / "elsewhere"))
    (folder / "README.md").write_text("other words")
    assert folder_fingerprint(folder) == folder_fingerprint(models["first"])
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("true", "TRUE").replace("false", "true").replace("TRUE", "false"))
    assert folder_fingerprint(folder) != folder_fingerprint(models["first"])


def test_a_score_that_is_not_a_number_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    collapsed = Path(shutil.copytree(models["first"], tmp_path / "collapsed"))
    tensors = load_file(collapsed / "model.safetensors")
    for name in [name for name in tensors if name.endswith("LayerNorm.weight")]:
        tensors[name].zero_()  # every text has the same embedding, and ranks have no correlation
    tensors[name.replace("weight", "bias")].fill_(1.0)
    save_file(tensors, collapsed / "model.safetensors", metadata={"format": "pt"})
    config = make_config(tmp_path / "runs", f"evaluation.models=[{collapsed}]", "evaluation.tasks=[sts]")
    with pytest.raises(UserError, match=r"spearman is not a finite number \(model collapsed, task samples/sts\)"):
        run_stage(CHAIN["evaluate"], config)


def test_a_score_that_differs_from_its_items_is_a_defect(models: dict[str, Path], tmp_path: Path) -> None:
    class Wrong(Task):
        def score(self, scorer: Scorer) -> Outcome:
            right = np.array([1.0, 0.0, 1.0, 1.0])
            return Outcome({"correct": right}, (Measure("accuracy", 0.75 + 2e-6, "mean", ("correct",)),))

    (model,) = scored_models(make_config(tmp_path, f"evaluation.models=[{models['first']}]"))
    with pytest.raises(UserError, match=r"accuracy is 0.750002, but its items give 0.750000 \(model first"):
        Scorer(model, make_config(tmp_path)).score(Wrong("suite", "wrong", {}), tmp_path)


def test_a_suite_is_logged_once_per_model_and_a_task_if_it_took_minutes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Instant(Task):
        def score(self, scorer: Scorer) -> Outcome:
            return Outcome({"correct": np.ones(4)}, (Measure("accuracy", 1.0, "mean", ("correct",)),))

    clock = iter([0.0, 3.0, 3.0, 123.0, 123.0, 130.0])
    monkeypatch.setattr("evaluation.scoring.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with caplog.at_level("INFO", "pipeline"):
        scorer = Scorer(ScoredModel("first", tmp_path, "contents"), make_config(tmp_path))
        for key in ("one/a", "one/b", "other/a"):
            scorer.score(Instant(*key.split("/"), {}), tmp_path)
    assert caplog.messages == [
        "evaluate: first on one",
        "evaluate: first on one/b took 2.0 minutes",
        "evaluate: first on other",
    ]


@pytest.mark.parametrize("devices", ["[cpu]", pytest.param("[cpu,cpu]", marks=pytest.mark.slow)])
def test_a_task_that_fails_does_not_lose_the_others(models: dict[str, Path], tmp_path: Path, devices: str) -> None:
    broken = Path(shutil.copytree(models["first"], tmp_path / "broken"))
    put(
        broken / "model.safetensors",
        number_at("LayerNorm.weight", float("nan"))((broken / "model.safetensors").read_bytes()),
    )
    chosen = [f"evaluation.models=[{broken},{models['second']}]", "evaluation.tasks=[sts,mteb_sts]"]
    config = make_config(tmp_path / "runs", *chosen, f"evaluation.devices={devices}")
    with pytest.raises(UserError, match=r"2 of 4 scores failed.*NaN.*the other scores are kept"):
        run_stage(CHAIN["evaluate"], config)
    folder = config.folder("evaluate")
    assert [(row["model"], row["task"]) for row in read_csv(folder / "scores.csv")] == [
        ("second", "sts"),
        ("second", "mteb_sts"),
    ]
    manifest = read_manifest(folder)
    assert manifest and manifest.status == "failed"


def test_the_order_of_the_chain_changes_the_tables(tmp_path: Path) -> None:
    first, second = (make_config(tmp_path, f"evaluation.chain=[{names}]") for names in ("base,merge", "merge,base"))
    assert CHAIN["evaluate"].settings(first) != CHAIN["evaluate"].settings(
        second
    )  # it decides who is compared with whom


def test_models_of_other_kinds_are_scored_too(tmp_path: Path) -> None:
    """One without a transformer, and one whose transformer is in another folder."""
    names = ("static", "old 0_Transformer layout")
    models = [shutil.copytree(animal(name), tmp_path / str(number)) for number, name in enumerate(names)]
    tasks = ["evaluation.tasks=[sts,mteb_sts]", "evaluation.resamples=100"]
    config = make_config(tmp_path / "runs", f"evaluation.models=[{','.join(map(str, models))}]", *tasks)
    run_stage(CHAIN["evaluate"], config)
    rows = read_csv(config.folder("evaluate") / "scores.csv")
    assert {row["model"] for row in rows} == {"0", "1"} and len(rows) == 4

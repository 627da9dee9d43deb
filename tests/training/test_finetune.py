"""The training stages: their outputs, what each side reads, and what they refuse."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from sentence_transformers import SentenceTransformer

from configs.schema.config import Config
from configs.schema.training import AdapterConfig, SetConfig, SideConfig
from data.artefact import read_dev_sets
from pipeline.chain import CHAIN
from pipeline.core.device import NARROW_FROM
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder
from pipeline.stage import folder_and_manifest, prepare_ranks, run_stage
from tests.support.planned_sets import prepared_run, rows
from tests.support.runs import file_names, read_metrics
from tests.support.small_bases import tiny_model
from tests.support.zoo import animal
from training import losses
from training.batch_plan import BatchPlan, GlobalBatch, SetRows
from training.dev_scores import DevEvaluator
from training.finetune import (
    plan_run,
    require_angle_batches,
    require_even_shares,
    require_launcher,
)
from training.model_files import load_model
from training.sets import prepare_sets
from training.trainer import TRAINED_WEIGHTS

SETS = {
    "symmetric/pairs": rows(64, seed=1),
    "symmetric/scored": rows(64, seed=2, scored=True),
    "asymmetric/questions": rows(80, seed=3, negatives=2),
    "dev/questions": rows(24, seed=4),
    "dev/scored": rows(24, seed=5, scored=True),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A finished joint run, with dev scores and the best checkpoint kept."""
    config = prepared_run(tmp_path_factory.mktemp("joint"), SETS, max_steps=8, dev_steps=4, angle_weight=0.1)
    init = config.folder("init")
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        torch.save({"weight": torch.ones(1, 4)}, init / name)
    run_stage(CHAIN["joint"], config)
    return config


def entries(config: Config) -> list[dict[str, Any]]:
    return read_metrics(config.folder("joint"))


def test_the_model_keeps_everything_of_init_but_the_weights(trained: Config) -> None:
    init, model = trained.folder("init"), trained.folder("joint") / "model"
    names = file_names(init) - {"manifest.json"}
    assert file_names(model) == names
    assert {"tokenizer.json", "modules.json", "1_Pooling/config.json", "sparse_linear.pt"} <= names
    for name in names - {"model.safetensors"}:
        assert (model / name).read_bytes() == (init / name).read_bytes(), name
    assert (model / "model.safetensors").read_bytes() != (init / "model.safetensors").read_bytes()


def test_metrics_have_a_line_per_step_and_dev_scores_at_the_start_and_on_schedule(trained: Config) -> None:
    assert [line["step"] for line in entries(trained)] == list(range(9))
    steps = [line for line in entries(trained) if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 9))
    assert {line["set"] for line in steps} == {"pairs", "scored", "questions"}
    keys = {
        "step",
        "loss",
        "contrastive",
        "angle",
        "angle_gradient_share",
        "grad_norm",
        "learning_rate",
        "tokens_per_second",
        "padding_share",
    }
    assert all(keys | {"set"} <= set(line) for line in steps)
    for line in steps:
        assert line["loss"] == pytest.approx(line["contrastive"] + 0.1 * line["angle"], abs=2e-4)
        assert bool(line["angle"]) == (line["set"] == "scored")  # symmetric, and with different labels
        assert 0 < line["angle_gradient_share"] < 1 if line["angle"] else line["angle_gradient_share"] == 0
    dev = [line for line in entries(trained) if "dev_score" in line]
    assert [line["step"] for line in dev] == [0, 4, 8]  # the saved weights' is one of these, and in the manifest
    scored = {"dev_questions_score", "dev_scored_score", "dev_questions_loss", "dev_scored_loss"}
    assert all(scored <= set(line) for line in dev)


@pytest.mark.parametrize("name", ["BERT with word pieces", "ModernBERT", "DistilBERT", "ALBERT", "T5", "Qwen3"])
def test_a_base_with_another_tokenizer_is_trained(name: str, tmp_path: Path) -> None:
    sets = {name: SETS[name] for name in ("asymmetric/questions", "dev/questions")}
    config = prepared_run(tmp_path, sets, max_steps=14, dropout=0.1)
    shutil.rmtree(config.folder("init") / "1_Pooling")
    shutil.copytree(animal(name), config.folder("init"), dirs_exist_ok=True)
    run_stage(CHAIN["asymmetric"], config)
    losses = [line["loss"] for line in read_metrics(config.folder("asymmetric")) if "loss" in line]
    assert np.mean(losses[-2:]) < 0.9 * np.mean(losses[:2])
    assert load_folder(config.folder("asymmetric") / "model", "cpu").encode(["река"]).shape == (1, 32)


def test_angles_share_is_computed_only_for_logged_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times, norms = [], losses.gradient_norms
    monkeypatch.setattr(losses, "gradient_norms", lambda *args: (times.append(1), norms(*args))[1])
    sets = {"symmetric/scored": SETS["symmetric/scored"]}
    config = prepared_run(tmp_path, sets, max_steps=6, logging_steps=3, angle_weight=0.1)
    run_stage(CHAIN["symmetric"], config)
    lines = [line for line in read_metrics(config.folder("symmetric")) if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6] and len(times) == 2
    assert all(0 < line["angle_gradient_share"] < 1 for line in lines)


def test_the_score_at_step_0_is_that_of_init(trained: Config) -> None:
    init = SentenceTransformer(str(trained.folder("init")), device="cpu")
    sets = [pairs.spread(trained.training.dev_rows) for pairs in read_dev_sets(trained.folder("data"))]
    first = DevEvaluator(sets, init, trained.training.dev_length)(init)
    assert {f"dev_{name}": pytest.approx(value) for name, value in first.items()}.items() <= entries(trained)[0].items()


def test_the_saved_weights_are_those_of_the_best_dev_score(trained: Config) -> None:
    scores = {line["step"]: line["dev_score"] for line in entries(trained)[1:] if "dev_score" in line}
    manifest = json.loads((trained.folder("joint") / "manifest.json").read_text())
    assert manifest["metrics"]["dev_score"] == pytest.approx(max(scores.values()), abs=1e-6)


def test_the_plan_counts_rows_tokens_and_padding(trained: Config) -> None:
    plan = json.loads((trained.folder("joint") / "plan.json").read_text())
    assert plan["batches"] == 8 == sum(entry["batches"] for entry in plan["sets"].values())
    assert plan["rows_seen"] == 8 * 16
    assert 0 <= plan["padding_share"] < 0.5
    assert plan["sets"]["scored"]["angle_share"] == 1.0
    assert plan["sets"]["questions"]["angle_share"] == 0.0


def test_a_finished_side_is_not_trained_again(trained: Config) -> None:
    before = (trained.folder("joint") / "manifest.json").stat().st_mtime_ns
    trained.training.joint.logging_steps = 2  # doesn't change the result
    run_stage(CHAIN["joint"], trained)
    assert (trained.folder("joint") / "manifest.json").stat().st_mtime_ns == before


def refused(folder: Path, message: str, sets: dict[str, list[dict[str, Any]]] | None = None, **side: Any) -> None:
    config = prepared_run(folder, sets or {"symmetric/pairs": rows(32)}, **{"max_steps": 2, **side})
    with pytest.raises(UserError, match=message) as error:
        run_stage(CHAIN["symmetric"], config)
    assert "\n" not in error.value.line
    assert not (config.folder("symmetric") / "model").exists()


def test_no_pairs_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no pairs to train on", {"asymmetric/other": rows(32)})


def test_a_set_below_one_multiple_is_refused(tmp_path: Path) -> None:
    message = "7 rows yield no batch.*training.symmetric.sets={few:{weight:0}}"
    refused(tmp_path, message, {"symmetric/pairs": rows(32), "symmetric/few": rows(7)})


def test_a_length_beyond_the_bases_positions_is_refused(tmp_path: Path) -> None:
    refused(
        tmp_path, "65 tokens are more than the base's 64 .*key training.symmetric.positive_length", positive_length=65
    )
    config = prepared_run(tmp_path / "set", {"symmetric/pairs": rows(32)})
    config.training.symmetric.sets = {"pairs": SetConfig(anchor_length=100)}
    with pytest.raises(UserError, match=r"sets\.pairs\.anchor_length"):
        run_stage(CHAIN["symmetric"], config)


def test_a_dimension_beyond_the_bases_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "33 dimensions are more than the base's 32 .*symmetric.dimensions", dimensions=[33, 16])


def test_an_adapter_for_missing_layers_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    message = "no linear layer of the base is called q_proj .*symmetric.adapter.targets.; choose among dense, key, "
    refused(tmp_path, message, adapter=AdapterConfig(rank=4, targets=["q_proj"]))


def test_unknown_sets_are_refused(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)})
    config.training.symmetric.sets = {"paris": SetConfig(weight=2.0)}
    with pytest.raises(UserError, match="no set of this side is called paris"):
        run_stage(CHAIN["symmetric"], config)


def test_angle_without_different_labels_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "AnglE would do nothing", angle_weight=0.02)
    config = prepared_run(tmp_path / "other", {"asymmetric/triplets": rows(32, negatives=1)}, angle_weight=0.02)
    with pytest.raises(UserError, match="no batch of a symmetric set"):  # other sets have labels, but no AnglE
        run_stage(CHAIN["asymmetric"], config)


def test_one_batch_with_different_labels_among_very_many_is_enough() -> None:
    each = np.arange(2)
    rows = SetRows("pairs", each, each, [], each, np.array([1.0, 0.5], np.float32), 0, 1.0, 1, angle=True)
    alone, both = (GlobalBatch("pairs", of, np.zeros((len(of), 0), np.int64)) for of in (each[:1], each))
    sets: Any = {"pairs": SimpleNamespace(rows=rows)}
    require_angle_batches(BatchPlan([alone] * 20_000 + [both], {}), sets, "symmetric", SideConfig(angle_weight=1.0))


def test_processes_that_do_not_divide_the_multiple_are_refused() -> None:
    with pytest.raises(UserError, match=r"multiple of the 3 processes, not 8 \(config key training.symmetric"):
        require_even_shares(Config(), "symmetric", 3)


def test_ranks_of_different_precision_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to float16 gradients times their scale, the other ranks' would have no weight."""
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)})
    monkeypatch.setattr("training.finetune.gather_object", lambda own: [*own, "bf16"], raising=False)
    with pytest.raises(UserError, match=r"in bf16, some in fp32 \(config key precision\); set precision=fp32"):
        run_stage(CHAIN["symmetric"], config)


def test_several_gpus_with_one_process_are_refused_unless_one_was_requested() -> None:
    with pytest.raises(UserError, match=r"8 GPUs, but only one process.*accelerate launch --num_processes 8"):
        require_launcher(8, processes=1, asked=None)
    for devices, processes, asked in ((8, 8, None), (8, 1, 1), (1, 1, None), (0, 2, 2)):
        require_launcher(devices, processes, asked)


def test_eager_attention_weights_are_the_same_with_the_mask_in_16_bit() -> None:
    folder, side = tiny_model(), SideConfig(anchor_length=32, positive_length=32)
    narrow, wide = load_model(folder, "eager", side), load_model(folder, "eager", side)
    wide[0].model.encoder._forward_pre_hooks.clear()
    mask = torch.ones(6, NARROW_FROM, dtype=torch.int64)
    mask[1, 4:] = mask[3, 11:] = 0
    features = {"input_ids": torch.randint(4, 100, (6, NARROW_FROM)), "attention_mask": mask}
    found, gradients = [], []
    for model in (narrow, wide):
        with torch.autocast("cpu", torch.bfloat16):
            vectors = model(dict(features))["sentence_embedding"]
        (vectors.float() ** 3).sum().backward()
        found.append(vectors)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(*found)
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[1].norm()


def test_a_single_set_s_long_texts_are_among_a_side_s_lengths() -> None:
    side = SideConfig(sets={"mldr": SetConfig(positive_length=2048), "rcb": SetConfig()})
    lengths = {"anchor_length": 512, "positive_length": 512, "sets.mldr.positive_length": 2048}
    assert side.lengths() == lengths


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(64)}, max_steps=2, learning_rate=1e30, max_grad_norm=0.0)
    with pytest.raises(UserError):  # not finite: the stage stays unfinished
        run_stage(CHAIN["symmetric"], config)
    folder = config.folder("symmetric") / "checkpoints/checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "complete.json").write_text('{"run": "another"}')
    with pytest.raises(UserError, match="belongs to another configuration"):
        run_stage(CHAIN["symmetric"], config)


def test_a_damaged_set_is_refused(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)})
    path = config.folder("data") / "symmetric/pairs.parquet"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="not a parquet file"):
        run_stage(CHAIN["symmetric"], config)


def test_a_side_stopped_after_its_last_step_logs_its_dev_scores_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = prepared_run(tmp_path, SETS, max_steps=3, checkpoint_steps=3)
    stopped_before_saving(config, monkeypatch)
    run_stage(CHAIN["joint"], config)
    lines = entries(config)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert ["dev_score" in line for line in lines] == [True, False, False, True]
    assert "step 0 of 3: dev score 0." in caplog.text and "step 3 of 3: dev score 0." in caplog.text


AVERAGED = {"max_steps": 5, "dev_steps": 2, "checkpoint_steps": 4, "average": 2, "arguments": {"save_total_limit": 5}}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a joint run that was stopped after its last step. Copy it before resuming."""
    runs = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as monkeypatch:
        stopped_before_saving(prepared_run(runs, SETS, **AVERAGED), monkeypatch)
    return runs


def copy_of(stopped: Path, runs: Path) -> tuple[Config, Path]:
    """A copy of the stopped run under `runs`, another folder, and its checkpoints."""
    shutil.copytree(stopped, runs)
    config = prepared_run(runs, {}, **AVERAGED)
    return config, config.folder("joint") / "checkpoints"


def weights_in(checkpoint: Path) -> dict[str, np.ndarray]:
    """A checkpoint's weights under their names in a model folder."""
    return {name.removeprefix("0.model."): each for name, each in load_file(checkpoint / TRAINED_WEIGHTS).items()}


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_mean_of_the_last_evaluations_is_saved_also_by_a_run_resumed_between_them(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_best: bool
) -> None:
    if keep_best:
        config, checkpoints = copy_of(stopped, tmp_path / "runs")
    else:
        config = prepared_run(tmp_path, SETS, **AVERAGED, keep_best=False)
        checkpoints = stopped_before_saving(config, monkeypatch) / "checkpoints"
    last = [weights_in(checkpoints / f"checkpoint-{step}") for step in (4, 5)]
    shutil.rmtree(checkpoints / "checkpoint-5")
    metrics = run_stage(CHAIN["joint"], config).metrics
    saved = load_file(config.folder("joint") / "model/model.safetensors")
    if metrics["weights"] == "best":  # chance, with a model that knows nothing
        assert keep_best and metrics["dev_score"] == metrics["best_dev_score"] > metrics["mean_dev_score"]
    else:
        assert metrics["dev_score"] == metrics["mean_dev_score"]
        assert not keep_best or metrics["mean_dev_score"] >= metrics["best_dev_score"]
        for name in last[1]:
            np.testing.assert_allclose(saved[name], np.mean([one[name] for one in last], axis=0), rtol=1e-6, atol=1e-9)
        assert any((saved[name] != weight).any() for name, weight in last[1].items())
    assert [line["step"] for line in entries(config) if "dev_score" in line] == [0, 2, 4, 5]
    init = SentenceTransformer(str(config.folder("joint") / "model"), device="cpu")
    assert DevEvaluator(read_dev_sets(config.folder("data")), init, 64)(init)["score"] == pytest.approx(
        metrics["dev_score"], abs=1e-6
    )


def test_a_mean_that_scores_below_the_best_evaluation_is_not_used(stopped: Path, tmp_path: Path) -> None:
    config, checkpoints = copy_of(stopped, tmp_path / "runs")
    for path in (checkpoints / "averaged").iterdir():
        save_file({name: 0 * weight for name, weight in load_file(path).items()}, path)
    metrics = run_stage(CHAIN["joint"], config).metrics
    assert metrics["weights"] == "best" and metrics["mean_dev_score"] < metrics["best_dev_score"]
    assert metrics["dev_score"] == metrics["best_dev_score"]


def test_best_weights_that_can_t_be_read_are_not_replaced_by_the_last(stopped: Path, tmp_path: Path) -> None:
    config, checkpoints = copy_of(stopped, tmp_path / "runs")
    best, state = checkpoints / "checkpoint-2", checkpoints / "checkpoint-5/trainer_state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"best_global_step": 2}))
    weights = best / TRAINED_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=r"can't be read: .*checkpoint-2\); remove .*/checkpoints: training then starts"
    ):
        run_stage(CHAIN["joint"], config)
    shutil.rmtree(checkpoints)
    assert run_stage(CHAIN["joint"], config).status == "complete"


def test_the_best_weights_are_found_after_the_runs_folder_was_moved(stopped: Path, tmp_path: Path) -> None:
    config, checkpoints = copy_of(stopped, tmp_path / "runs")
    best, state = checkpoints / "checkpoint-2", checkpoints / "checkpoint-5/trainer_state.json"
    chosen = {"best_global_step": 2, "best_model_checkpoint": str(tmp_path / "elsewhere" / best.name)}
    state.write_text(json.dumps(json.loads(state.read_text()) | chosen))
    expected = weights_in(best)
    for path in (checkpoints / "averaged").iterdir():  # so that their mean is not taken
        save_file({name: 0 * weight for name, weight in load_file(path).items()}, path)
    run_stage(CHAIN["joint"], config)
    saved = load_file(config.folder("joint") / "model/model.safetensors")
    assert all((saved[name] == weight).all() for name, weight in expected.items())


def stopped_before_saving(config: Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a joint run that ended after its last step."""

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("training.finetune.save_model", stopped)
        run_stage(CHAIN["joint"], config)
    return config.folder("joint")


def test_a_mean_of_more_evaluations_than_exist_is_refused(tmp_path: Path) -> None:
    message = r"5 steps have 3 evaluation\(s\), one every 2 steps .*symmetric.average"
    refused(tmp_path, message, max_steps=5, dev_steps=2, average=4)


def test_ranks_only_read_what_was_prepared_before_they_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*arguments: object) -> None:
        raise AssertionError("made a second time")

    symmetric, runs = CHAIN["symmetric"], [prepared_run(tmp_path / name, SETS, max_steps=3) for name in ("one", "two")]
    run_stage(symmetric, runs[0])
    prepare_ranks(symmetric, runs[1])
    for name in ("training.sets._tokenise", "training.finetune.plan_batches", "training.finetune.plan_report"):
        monkeypatch.setattr(name, again)
    with monkeypatch.context() as patched:
        patched.setattr("training.finetune.load_model", again)
        prepare_ranks(symmetric, runs[1])  # the command again, after a kill
    monkeypatch.setattr("training.finetune.plan_dev", lambda *arguments: {})
    run_stage(symmetric, runs[1])
    files = [
        [config.folder("symmetric") / name for config in runs] for name in ("plan.json", "model/model.safetensors")
    ]
    assert all(one.read_bytes() == other.read_bytes() for one, other in files)
    assert not list((tmp_path / "two").rglob("plan.npz"))  # no longer needed


def test_damaged_prepared_data_is_an_error_that_names_it(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)}, max_steps=2)
    stage, _ = folder_and_manifest(CHAIN["symmetric"], config)
    prepare_ranks(CHAIN["symmetric"], config)
    model = load_model(config.folder("init"), "auto", config.training.symmetric)
    files = [path for path in (tmp_path / "one/.prepared").rglob("*") if path.stat().st_size and path.is_file()]
    assert len(files) == 4
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 8 * 4])
        with pytest.raises(UserError, match=r"the prepared data can't be read: .*\.prepared/.*; remove it"):
            plan_run(config, stage, model)
        path.write_bytes(whole)


def test_too_few_steps_are_warned_of_where_training_starts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)})
    stage, _ = folder_and_manifest(CHAIN["symmetric"], config)
    stage.path.mkdir(exist_ok=True)
    plan_run(config, stage, load_model(config.folder("init"), "auto", config.training.symmetric))
    assert "symmetric: 2 steps, but the study's shortest run has 60" in caplog.text


def test_a_forced_run_is_prepared_again(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)}, max_steps=2)
    forced = replace(config, force=True)
    prepare_ranks(CHAIN["symmetric"], config)
    (folder,) = (tmp_path / "one/.prepared").iterdir()
    made = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {"plan.json", "plan.npz", "pairs.npz", "pairs.passages"} <= {path.name for path in made}
    for path in made:
        path.write_bytes(b"of other code")
    prepare_ranks(CHAIN["symmetric"], config)
    assert (folder / "plan.json").read_bytes() == b"of other code"
    prepare_ranks(CHAIN["symmetric"], forced)
    assert (folder / "plan.json").read_bytes() == made[folder / "plan.json"]
    for name in ("plan.npz", "train/pairs.passages"):
        assert (folder / name).read_bytes() == made[folder / name]
    (folder / "plan.json").write_bytes(b"of other code")
    run_stage(CHAIN["symmetric"], replace(forced, launch=replace(config.launch, config="none")))  # no command prepares


def test_a_model_without_weights_has_the_tokens_and_prompts_of_the_whole_one(trained: Config) -> None:
    whole, empty = (
        load_model(trained.folder("init"), "auto", trained.side("joint"), weights=weights) for weights in (True, False)
    )
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    assert empty.prompts == whole.prompts and empty.get_embedding_dimension() == whole.get_embedding_dimension()
    assert empty.tokenizer("зимняя река")["input_ids"] == whole.tokenizer("зимняя река")["input_ids"]


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("launch", "processes", 3, "multiple of the 3 processes"),
        ("base", "attention", "torch_varlen", "torch_varlen needs"),
        ("base", "compile", True, "compilation needs"),
    ],
)
def test_what_ranks_would_refuse_is_refused_before_texts_are_tokenised(
    tmp_path: Path, section: str, name: str, value: object, message: str
) -> None:
    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)})
    setattr(config, section, replace(getattr(config, section), **{name: value}))
    with pytest.raises(UserError, match=message):
        prepare_ranks(CHAIN["symmetric"], config)
    assert not (tmp_path / "one/.prepared").exists()


def test_small_sets_share_a_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sets = {"symmetric/terra": rows(20, seed=1), "dev/terra": rows(6, seed=2), "symmetric/rcb": rows(99, seed=3)}
    sets |= {"symmetric/lenta": rows(1100, seed=4), "dev/lenta": rows(150, seed=5)}
    config = prepared_run(tmp_path, sets)
    model = load_model(config.folder("init"), "auto", config.side("symmetric"))
    with caplog.at_level("INFO", "pipeline"):
        prepare_sets("symmetric", config.side("symmetric"), model, config.folder("data"), tmp_path / "tokens")
    assert caplog.messages == ["lenta: 1,100 rows and 150 dev rows tokenised", "2 sets under 100 rows tokenised"]

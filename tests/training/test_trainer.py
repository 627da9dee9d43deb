"""Training runs that are killed, stopped, resumed, and given data that can't be learned from."""

import dataclasses
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformerTrainer
from transformers import TrainerControl, TrainerState

from configs.schema.training import HeadsConfig
from pipeline.chain import CHAIN
from pipeline.core.artefact import StageFolder
from pipeline.core.errors import UserError
from pipeline.stage import run_stage
from tests.support.planned_sets import planned_loss, prepared_run, rows, tiny_model
from tests.support.runs import read_metrics
from tests.support.training_process import finish, stop_at
from training.batch_plan import GlobalBatch, read_plan
from training.batches import MiniBatchCollator
from training.callbacks import Checkpoints, MetricsLog, Preemption, StepBar, StepLines
from training.memory import Budget
from training.trainer import MARK, PlannedTrainer, _start_worker, last_checkpoint, readable, training_arguments

SETS = {
    "symmetric/pairs": rows(160, seed=1),
    "symmetric/scored": rows(100, seed=2, scored=True),
    "symmetric/triplets": rows(64, seed=3, negatives=2),
}
OPTIONS = {
    "dimensions": [32, 8],
    "guide": "init",
    "teacher": "init",
    "adapter": {"rank": 2, "targets": ["query", "value"]},
}
MEAN = {"average": 3, "keep_best": False}
SLOW = ((2, {}), (2, MEAN), (1, OPTIONS), (2, OPTIONS))
LONG = {"max_steps": 24, "checkpoint_steps": 4, "dropout": 0.1, "angle_weight": 0.1}


def lines(folder: Path) -> list[dict[str, float]]:
    return read_metrics(folder / "one/symmetric")


def without_rates(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in entries]


@pytest.mark.parametrize(
    ("processes", "options"),
    [(1, {}), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_a_run_killed_at_any_step_ends_in_the_same_bytes(
    tmp_path: Path, processes: int, options: dict[str, Any]
) -> None:
    if "adapter" in options:
        pytest.importorskip("peft")
    whole, killed, scored = tmp_path / "whole", tmp_path / "killed", LONG | {"dev_steps": 6} | options
    for folder in (whole, killed):
        prepared_run(folder, {**SETS, "dev/pairs": rows(16, seed=9), "dev/scored": rows(16, seed=8, scored=True)})
    expected = finish(whole, processes, **scored)
    step = random.Random(os.getpid()).randint(6, 14)  # after the first checkpoint, at step 4, is whole
    assert stop_at(killed, processes, step, signal.SIGKILL, **scored) != 0
    assert list((killed / "one/symmetric/checkpoints").glob(f"checkpoint-*/{MARK}"))
    assert not (killed / "one/symmetric/model").exists()
    assert finish(killed, processes, **scored) == expected, f"killed after step {step}"
    assert without_rates(lines(killed)) == without_rates(lines(whole))
    assert [line["step"] for line in lines(killed)] == list(range(25))
    assert [line["step"] for line in lines(killed) if "dev_score" in line] == [0, 6, 12, 18, 24]
    assert not (killed / "one/symmetric/checkpoints").exists()


def test_checkpoints_are_as_frequent_as_requested_where_the_best_weights_are_kept(tmp_path: Path) -> None:
    rarely_scored = {"max_steps": 20, "dev_steps": 10, "checkpoint_steps": 1}
    config = prepared_run(tmp_path, {**SETS, "dev/pairs": rows(16, seed=9)}, **rarely_scored, learning_rate=1e30)
    with pytest.raises(UserError, match=r"at step [2-9] "):  # such a rate ends in numbers that are not finite
        run_stage(CHAIN["symmetric"], config)
    assert list((tmp_path / "one/symmetric/checkpoints").glob(f"checkpoint-*/{MARK}"))


def test_a_resumed_log_continues_after_its_checkpoint_with_the_rates_of_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock, tracked = tmp_path / "metrics.jsonl", [0.0], list[dict[str, Any]]()
    path.write_bytes(b'{"step": 1}\n{"step": 2, "loss": 3}\n{"step": 3}\n{"loss": 1}\n4\n{"step": 5, "set": "\xd0')
    monkeypatch.setattr("training.callbacks.time", SimpleNamespace(monotonic=lambda: clock[0]))
    batches = [GlobalBatch(name, np.zeros(0, np.int64), np.zeros((0, 0), np.int64)) for name in "abcdeё"]
    state, control, ranks = TrainerState(global_step=2, max_steps=6), TrainerControl(), SimpleNamespace(world_size=2)
    log, other = MetricsLog(path, batches, tracked.append), MetricsLog(tmp_path / "none", batches, tracked.append)
    other_state = TrainerState(is_world_process_zero=False, global_step=3)
    logs = {"loss": 1.0, "tokens": 50, "grad_norm": math.inf, "learning_rate": 0.1, "padding_share": 0.5}
    log.on_train_begin(ranks, state, control)
    file = path.stat().st_ino
    log.on_log(ranks, state, control, logs={"eval_score": 0.4})  # once more, where a kill came after the last step
    assert path.stat().st_ino == file  # not written again as a whole, which may be 100,000 lines, for each dev figure
    MetricsLog(tmp_path / "fresh", batches, tracked.append).on_train_begin(ranks, state, control)
    other.on_train_begin(ranks, other_state, control)
    clock[0], state.global_step = 10.0, 3
    log.on_log(ranks, state, control, logs=dict(logs))
    other.on_log(ranks, other_state, control, logs=dict(logs))
    log.on_log(ranks, state, control, logs={"eval_score": 0.5, "eval_runtime": 9})
    clock[0] = 100.0
    log.on_evaluate(ranks, state, control)  # takes time in which no token is trained on
    clock[0], state.global_step = 110.0, 5
    log.on_log(ranks, state, control, logs=logs | {"grad_norm": 2.0})
    clock[0], state.global_step = 140.0, 6
    log.on_log(ranks, state, control, logs=logs | {"grad_norm": 2.0, "contrastive": 0.7})
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert found[:2] == [{"step": 1}, {"step": 2, "loss": 3, "dev_score": 0.4}]
    keys = ("step", "tokens_per_second", "grad_norm", "set", "dev_score")
    assert [tuple(line.get(key) for key in keys) for line in found[2:]] == [
        (3, 10.0, None, "c", 0.5),
        (5, 20.0, 2.0, None, None),
        (6, 3.3, 2.0, "ё", None),
    ]
    given = {"loss": 1.0, "contrastive": 0.7, "learning_rate": 0.1, "padding_share": 0.5}
    assert {name: found[-1].get(name) for name in given} == given and "ё" in path.read_text(encoding="utf-8")
    assert [line["step"] for line in tracked] == [2, 3, 3, 5, 6]
    assert (tmp_path / "fresh").read_bytes() == b""
    assert found[2] == tracked[1] | tracked[2] and not (tmp_path / "none").exists()


def test_checkpoints_are_saved_every_n_steps_and_the_best_is_looked_for_next_to_them() -> None:
    callback, state, arguments = Checkpoints(5), TrainerState(), SimpleNamespace(output_dir="here")
    callback.on_train_begin(arguments, state, TrainerControl())
    assert state.best_model_checkpoint is None
    state.best_global_step, state.best_model_checkpoint = 4, "/elsewhere/checkpoint-4"  # before the folder was moved
    callback.on_train_begin(arguments, state, TrainerControl())
    assert state.best_model_checkpoint == "here/checkpoint-4"
    for step, before, after in ((4, False, False), (5, False, True), (6, True, True)):
        state.global_step, control = step, TrainerControl(should_save=before)
        callback.on_step_end(arguments, state, control)
        assert control.should_save == after


def test_sigterm_is_seen_after_the_step_in_which_it_comes() -> None:
    state, control = TrainerState(global_step=7, max_steps=20), TrainerControl()
    arguments: Any = SimpleNamespace(world_size=1)
    preemption, before = Preemption(), signal.getsignal(signal.SIGTERM)
    preemption.on_train_begin(arguments, state, control)
    try:
        preemption.on_step_end(arguments, state, control)
        assert not control.should_save
        os.kill(os.getpid(), signal.SIGTERM)
        preemption.on_step_end(arguments, state, control)
        assert control.should_save and control.should_training_stop
        state.global_step, control = 20, TrainerControl()  # the last step ends the run anyway
        preemption.on_step_end(arguments, state, control)
        assert not control.should_save and not control.should_training_stop
    finally:
        preemption.on_train_end(arguments, state, control)
    assert signal.getsignal(signal.SIGTERM) == before


def test_sigterm_of_one_rank_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_rank_that_was_asked(own: torch.Tensor, op: Any) -> None:
        own.fill_({torch.distributed.ReduceOp.MAX: 1}.get(op, own.item()))

    monkeypatch.setattr(torch.distributed, "all_reduce", with_a_rank_that_was_asked)
    control, arguments = TrainerControl(), SimpleNamespace(device=torch.device("cpu"), world_size=2)
    Preemption().on_step_end(arguments, TrainerState(global_step=7, max_steps=20), control)
    assert control.should_save and control.should_training_stop


def test_sigterm_during_the_all_reduce_is_seen_by_all_after_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preemption, arguments, stops = Preemption(), SimpleNamespace(device=torch.device("cpu"), world_size=2), []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda own, op: preemption._ask())
    for step in (7, 8):
        control = TrainerControl()
        preemption.on_step_end(arguments, TrainerState(global_step=step, max_steps=20), control)
        stops.append(control.should_save and control.should_training_stop)
    assert stops == [False, True]  # at once it would be only this rank


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems a stop ends workers as well")
def test_a_worker_of_the_loader_obeys_only_its_rank_s_sigterm() -> None:
    def work() -> None:
        _start_worker(0)
        ready.set()
        time.sleep(60)

    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    worker = fork.Process(target=work, daemon=True)
    worker.start()
    assert ready.wait(10)
    subprocess.run(["kill", str(worker.pid)], check=True)  # as a scheduler does with all processes of a job
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()  # as multiprocessing does at the exit of a rank that failed, and then waits
    worker.join(10)
    assert worker.exitcode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="on other systems the library sets up workers")
def test_a_worker_s_batches_need_no_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    trainer: Any = object.__new__(PlannedTrainer)
    trainer.args = SimpleNamespace(process_index=0, world_size=1, dataloader_num_workers=1, dataloader_pin_memory=False)
    trainer.args.device = torch.device("cpu")
    trainer.data_collator = SimpleNamespace(collate=lambda rows: {"tokens": torch.tensor(rows), "longest": [7]})
    trainer.batches = [GlobalBatch("a", np.arange(2), np.zeros((2, 0), np.int64))]
    loader = trainer._planned(SimpleNamespace(__getitems__=lambda batch: batch.rows.tolist()), trainer.batches)
    loader.timeout = 20  # seconds
    (batch,) = loader
    assert batch["tokens"].tolist() == [0, 1] and batch["longest"] == [7]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_saves_and_ends_cleanly(tmp_path: Path, processes: int) -> None:
    prepared_run(tmp_path, SETS)
    endless = {**LONG, "max_steps": 2000, "checkpoint_steps": 1000}
    status = stop_at(tmp_path, processes, 6, signal.SIGTERM, **endless)
    assert status == 143 if processes == 1 else status != 0  # torch's launcher has its own status
    checkpoints = tmp_path / "one/symmetric/checkpoints"
    (mark,) = checkpoints.glob(f"checkpoint-*/{MARK}")
    assert int(mark.parent.name.split("-")[1]) == lines(tmp_path)[-1]["step"] >= 6


@pytest.mark.slow
def test_tokenising_may_take_longer_than_the_ranks_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared_run(tmp_path, {"symmetric/pairs": rows(32)})
    monkeypatch.setenv("TOKENISING", "25")  # seconds
    assert finish(tmp_path, 2, max_steps=2, arguments={"ddp_timeout": 15})


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {name: OPTIONS[name] for name in ("dimensions", "guide", "teacher")}])
def test_two_processes_train_the_model_of_one(tmp_path: Path, options: dict[str, Any]) -> None:
    from safetensors.torch import load

    side = {"max_steps": 6, "angle_weight": 0.1, "learning_rate": 1e-4, **options}
    for name in ("one", "two"):
        prepared_run(tmp_path / name, SETS)
    first, second = load(finish(tmp_path / "one", 1, **side)), load(finish(tmp_path / "two", 2, **side))
    start = load((tmp_path / "one/one/init/model.safetensors").read_bytes())
    # The keys' biases have no effect on attention: their gradient is only rounding, which AdamW makes large.
    names = [name for name in first if "key.bias" not in name and name in start]
    moved = torch.cat([(first[name] - start[name]).flatten() for name in names])
    apart = torch.cat([(first[name] - second[name]).flatten() for name in names])
    assert moved.norm() > 0
    assert apart.norm() / moved.norm() < 1e-2
    assert [line["loss"] for line in lines(tmp_path / "two")] == pytest.approx(
        [line["loss"] for line in lines(tmp_path / "one")], rel=1e-4
    )
    plans = [json.loads((tmp_path / name / "one/symmetric/plan.json").read_text()) for name in ("one", "two")]
    assert plans[0] == plans[1]


def test_an_unfinished_checkpoint_is_not_used(tmp_path: Path) -> None:
    for step, whole in ((4, True), (8, True), (12, True), (16, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if whole:
            (folder / MARK).write_text('{"run": "mine"}')
            (folder / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path, "mine") == tmp_path / "checkpoint-12"
    assert last_checkpoint(tmp_path / "nowhere", "mine") is None
    with pytest.raises(UserError, match="another configuration"):
        last_checkpoint(tmp_path, "yours")


def test_a_checkpoint_that_does_not_fit_the_disk_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    config = prepared_run(tmp_path, SETS, max_steps=4, checkpoint_steps=2)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="can't write: the disk is full or fails"):
        run_stage(CHAIN["symmetric"], config)
    assert not list((tmp_path / "one/symmetric/checkpoints").glob("checkpoint-*"))


def test_a_kill_while_the_last_checkpoints_are_removed_leaves_no_partial_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = prepared_run(tmp_path, SETS, max_steps=4, checkpoint_steps=2)
    stage, unlink = tmp_path / "one/symmetric", os.unlink

    def killed(path: object, **options: Any) -> None:
        unlink(path, **options)
        if (stage / "model").exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "unlink", killed)
        run_stage(CHAIN["symmetric"], config)
    assert not (stage / "checkpoints").exists()
    assert run_stage(CHAIN["symmetric"], config).status == "complete"
    assert not list(stage.rglob("*checkpoint*"))


def test_a_loss_that_is_not_finite_stops_with_step_set_and_rows(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, SETS, max_steps=6, learning_rate=1e30, warmup=0.0, max_grad_norm=0.0)
    named = r"at step (\d) \(set (\w+), rows ([\d ]+)\); check these rows of data/<side>/\2\.parquet, counted from 0"
    with pytest.raises(UserError) as caught:
        run_stage(CHAIN["symmetric"], config)
    found = re.search(named, caught.value.line)
    assert found
    (plan,) = (tmp_path / "one/.prepared").glob("*/plan.npz")
    batch = read_plan(plan).batches[int(found[1]) - 1]
    assert (found[2], [*map(int, found[3].split())]) == (batch.set, batch.rows.tolist()) and "1" < found[1] < "7"
    assert not (tmp_path / "one/symmetric/model").exists()


def test_any_argument_of_the_library_passes_through(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {}, arguments={"adam_beta2": 0.9, "lr_scheduler_type": "cosine"})
    config.training.arguments = {"adam_beta1": 0.8, "adam_beta2": 0.5}
    made = training_arguments(config, StageFolder("symmetric", tmp_path, "", {}), 10, has_dev=False)
    assert (made.adam_beta1, made.adam_beta2, made.lr_scheduler_type) == (0.8, 0.9, "cosine")
    assert made.logging_nan_inf_filter is False


def test_rates_of_single_layers_leave_joint_heads_their_own(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {}, arguments={"learning_rate_mapping": {"embeddings": 1e-6}})
    config.training.heads = HeadsConfig(kind="joint", learning_rate=1e-2)
    made = training_arguments(config, StageFolder("symmetric", tmp_path, "", {}), 10, has_dev=False)
    assert made.learning_rate_mapping == {r"\.heads\.": 1e-2, "embeddings": 1e-6}
    config.training.symmetric.arguments["learning_rate_mapping"] = 1e-3
    with pytest.raises(UserError, match=r"training\.arguments\.learning_rate_mapping"):
        training_arguments(config, StageFolder("symmetric", tmp_path, "", {}), 10, has_dev=False)


def test_a_sides_settings_are_the_librarys_arguments(tmp_path: Path) -> None:
    side = {"learning_rate": 3e-5, "weight_decay": 0.02, "max_grad_norm": 0.7, "logging_steps": 3}
    every = side | {"lr_scheduler_type": "cosine", "warmup_steps": 5, "max_steps": 20, "seed": 7}
    kept = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    for dev_steps, has_dev, keep_best, chosen in (
        (4, True, True, {"save_steps": 4, "eval_strategy": "steps", "eval_steps": 4, **kept}),
        (4, True, False, {"save_steps": 6, "eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": False}),
        (4, False, True, {"save_steps": 6, "eval_strategy": "no", "load_best_model_at_end": False}),
        (None, True, True, {"save_steps": 6, "eval_strategy": "no", "load_best_model_at_end": False}),
    ):
        own = {"schedule": "cosine", "warmup": 0.25, "checkpoint_steps": 6, "dev_steps": dev_steps}
        config = dataclasses.replace(prepared_run(tmp_path, {}, **side, **own, keep_best=keep_best), seed=7)
        made = training_arguments(config, StageFolder("symmetric", tmp_path, "", {}), 20, has_dev)
        assert {name: getattr(made, name) for name in every | chosen} == every | chosen


def test_a_norm_beyond_float16_is_left_to_the_scaler_until_its_factor_is_used_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loss that is not finite is not caused by the factor."""
    monkeypatch.setattr(SentenceTransformerTrainer, "_get_grad_norm", lambda *given: torch.tensor(math.inf))
    trainer: Any = object.__new__(PlannedTrainer)
    trainer.batches, trainer.state = [GlobalBatch("a", np.arange(2), np.zeros((2, 0), np.int64))], TrainerState()
    for scale, loss, stops in ((1024.0, 0.5, False), (1.0, 0.5, True), (1024.0, math.nan, True)):
        trainer.accelerator = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda scale=scale: scale))
        trainer.last_loss = torch.tensor(loss)
        with pytest.raises(UserError, match="gradient norm inf at step 1") if stops else nullcontext():
            assert trainer._get_grad_norm(None) == math.inf


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adam_beta3": 1}, "adam_beta3"),
        ({"gradient_accumulation_steps": 4}, "the pipeline sets or ignores it"),
        ({"auto_find_batch_size": True}, "the pipeline sets or ignores it"),
        ({"eval_steps": 1}, "the pipeline sets or ignores it"),
        ({"ignore_data_skip": True}, "the pipeline sets or ignores it"),
        ({"metric_for_best_model": "scored_loss"}, "the pipeline sets or ignores it"),
        ({"per_device_train_batch_size": 4}, "the pipeline sets or ignores it"),
        ({"warmup_ratio": 0.5}, "the pipeline sets or ignores it"),
        ({"save_only_model": True}, "the pipeline sets or ignores it"),
        ({"neftune_noise_alpha": 5.0}, "the pipeline sets or ignores it"),
        ({"label_smoothing_factor": 0.1}, "the pipeline sets or ignores it"),
        ({"fsdp": "full_shard"}, "the pipeline sets or ignores it"),
        ({"per_device_eval_batch_size": 0}, "the pipeline sets or ignores it"),
        ({"label_names": ["score"]}, "the pipeline sets or ignores it"),
        ({"deepspeed": "zero.json"}, "the pipeline sets or ignores it"),
        ({"parallelism_config": {"dp_replicate_size": 1}}, "the pipeline sets or ignores it"),
        ({"report_to": "nonsense"}, "no tracker nonsense is installed"),
        ({"report_to": ["wandb", "mlflow"]}, "no tracker mlflow is installed"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    config = prepared_run(tmp_path, {}, arguments=arguments)
    with pytest.raises(UserError, match=message):
        training_arguments(config, StageFolder("symmetric", tmp_path, "", {}), 10, has_dev=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optim": "galore_adamw", "optim_target_modules": ["query"]}, r"galore_torch.*arguments\.optim"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, r"num_decay_steps.*arguments\.lr_scheduler_kwargs"),
        ({"learning_rate_mapping": {"[": 1e-3}}, r"unterminated.*or learning_rate_mapping\)"),
        ({"learning_rate_mapping": 1e-3}, r"'items'.*or learning_rate_mapping\)"),
        ({"dataloader_num_workers": -1}, r"non-negative.*arguments\.dataloader_num_workers"),
    ],
)
def test_an_impossible_optimizer_schedule_or_loader_is_an_error_of_one_line(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    config = prepared_run(tmp_path, {}, arguments=arguments)
    trainer: Any = object.__new__(PlannedTrainer)
    trainer.args = training_arguments(config, StageFolder("symmetric", tmp_path, "", {}), 10, has_dev=False)
    trainer.model, trainer.loss, trainer.optimizer = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), None
    trainer.optimizer_cls_and_kwargs, trainer.lr_scheduler = None, None
    trainer.train_dataset, trainer.batches, trainer.data_collator = [], [], MiniBatchCollator(1, Budget(64, overhead=8))
    with pytest.raises(UserError, match=message):
        trainer.create_optimizer()
        trainer.create_scheduler(num_training_steps=10)
        trainer.get_train_dataloader()


def test_a_damaged_scaler_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    torch.save({"scale": 1.0}, tmp_path / "scaler.pt")
    (tmp_path / "scaler.pt").write_bytes((tmp_path / "scaler.pt").read_bytes()[:200])
    trainer: Any = object.__new__(PlannedTrainer)
    trainer.accelerator = SimpleNamespace(scaler=torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match="the checkpoint can't be read"):
        trainer._load_scaler(str(tmp_path))


def test_a_full_device_is_not_reported_as_a_damaged_checkpoint() -> None:
    with pytest.raises(torch.OutOfMemoryError), readable("checkpoint-1"):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_every_trained_parameter_gets_a_gradient_but_the_pooler_does_not() -> None:
    model = tiny_model()
    ids = torch.randint(4, 100, (4, 8))
    features = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    labels = {"position": torch.tensor([[0, 1], [2, 3]]), "score": torch.full((2,), torch.nan), "angle_weight": 0.0}
    planned_loss(model, 10**6)(features, labels).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == ("pooler" not in name), name


@pytest.mark.parametrize("every", [1, 7, 50])
def test_a_log_has_about_ten_lines_per_run_however_often_it_is_logged(
    every: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "pipeline"):
        for step, first_rank in product(range(every, 448, every), (True, False)):
            state = TrainerState(global_step=step, max_steps=447, logging_steps=every, is_world_process_zero=first_rank)
            StepLines().on_log(None, state, TrainerControl(), logs={"loss": 1.0})
            if step == 350:
                StepLines().on_log(None, state, TrainerControl(), logs={"eval_score": 0.5})
        for step in range(1, 6):
            state = TrainerState(global_step=step, max_steps=5, logging_steps=1)
            StepLines().on_log(None, state, TrainerControl(), logs={"loss": 2.0})
    assert len([line for line in caplog.messages if "of 5: loss 2.0000" in line]) == 5
    assert 8 <= len([line for line in caplog.messages if "of 447: loss 1.0000" in line]) <= 11
    assert caplog.messages.count("step 350 of 447: dev score 0.5000") == 1


def test_a_bar_shows_the_last_loss_and_the_last_dev_score(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, state, shown = StepBar(), TrainerState(max_steps=2), list[dict[str, str]]()
    StepBar().on_log(None, state, TrainerControl(), logs={"loss": 1.0})  # of a rank that shows none
    bar.on_train_begin(None, state, TrainerControl())
    monkeypatch.setattr(bar.training_bar, "set_postfix", lambda latest: shown.append(dict(latest)))
    for logs in ({"loss": 1.23456, "grad_norm": 2.0}, {"eval_score": 0.5}):
        bar.on_log(None, state, TrainerControl(), logs=logs)
    assert shown == [{"loss": "1.235"}, {"loss": "1.235", "dev": "0.500"}]

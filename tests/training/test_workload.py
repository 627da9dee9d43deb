"""The work stated for a run, against the planned batches and the source files."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from configs.schema.training import HeadsConfig
from pipeline.application import composed
from pipeline.core.artefact import result_settings
from pipeline.core.errors import UserError
from pipeline.core.heads import first_heads
from tests.support.planned_sets import prepared_run, rows
from tests.support.small_bases import tiny_base
from training.cost_model import (
    KNOWN,
    Devices,
    Shape,
    devices_of,
    shape_of,
    side_memory,
    trained_parameters,
    training_flops,
)
from training.workload import Work, estimates, work_of


def test_the_plan_of_a_side_with_an_adapter_has_fewer_hours() -> None:
    pytest.importorskip("peft")
    options = ["profile=bge_m3", "training.teraflops=100", "launch.processes=8"]
    shape, hours, operations = KNOWN["BAAI/bge-m3"], [], []
    for adapter in ([], ["training.symmetric.adapter.rank=16"]):
        config = composed(*options, *adapter)
        gpus = devices_of(config)
        work = work_of(config, "symmetric", shape, gpus)
        hours.append(work.hours(gpus, shape))
        operations.append(work.flops)
    assert 2 / 3 < operations[1] / operations[0] < 0.71  # two thirds and the adapter's own
    assert hours[1] < operations[1] / operations[0] * hours[0]  # small gradients to exchange, with small moments


def test_the_plan_counts_the_gpus_of_all_machines() -> None:
    assert devices_of(composed("profile=bge_m3", "launch.nodes=2")).number == 2 * max(torch.cuda.device_count(), 1)


@pytest.mark.parametrize(("precision", "teraflops"), [("bf16", 320), ("fp32", 160)])
def test_without_a_gpu_the_plan_assumes_h100s(monkeypatch: pytest.MonkeyPatch, precision: str, teraflops: int) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    devices = devices_of(composed("profile=bge_m3", f"precision={precision}"))
    assert devices.teraflops == teraflops and f"{teraflops} TFLOP/s sustained" in devices.description


def test_the_plan_tells_why_gpus_can_t_be_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.init", mock.Mock(side_effect=RuntimeError("The NVIDIA driver is too old")))
    devices = devices_of(composed("profile=bge_m3", "launch.processes=4"))
    assert (devices.number, devices.description[:18]) == (4, "no usable GPU here")
    assert "torch can't use the 8 GPU(s) here: The NVIDIA driver is too old" in caplog.text
    with pytest.raises(UserError, match="driver is too old"):  # no training runs on the CPU meanwhile
        devices_of(composed("profile=demo"))


def test_work_is_that_of_the_planned_batches(tmp_path: Path) -> None:
    sets = {"asymmetric/one": rows(100, negatives=1), "asymmetric/two": rows(30, seed=1)}
    config = prepared_run(tmp_path, sets, mini_batch_tokens=128)
    config.training.teraflops = 1.0  # otherwise measuring it takes a second
    shape = shape_of(tiny_base())
    work = work_of(config, "asymmetric", shape, devices_of(config))
    assert (work.source, work.batches, work.rows) == ("the planned batches", 6 + 2, 96 + 24)
    assert work.tokens <= work.padded <= 1.5 * work.tokens
    assert work.cached_batches == work.batches
    assert work.largest > 128 and work.passes > 4 * work.batches
    uncached = training_flops(shape, round(work.padded), 0.0, passes=3)
    assert uncached < work.flops < 4 / 3 * training_flops(shape, round(work.padded), 32.0**2, passes=3)
    assert {name: (seen.batches, seen.rows) for name, seen in work.seen.items()} == {"one": (6, 96), "two": (2, 24)}
    assert work.seen["one"].anchors <= 100


def test_packed_work_has_no_padding_and_one_forward_pass_per_step(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"asymmetric/one": rows(100, negatives=1)})
    gpus = Devices(2, "", True, True, 100.0, 10**10, 1e12, 1e11, 1e-4)
    work = work_of(config, "asymmetric", shape_of(tiny_base()), gpus)
    assert work.padded == work.tokens
    assert (work.passes, work.cached_batches) == (work.batches, 0)


def test_fitting_heads_takes_one_pass_and_trains_two_layers(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"asymmetric/one": rows(100, negatives=1), "symmetric/two": rows(30, seed=1)})
    config.training.heads = HeadsConfig(batch_size=16, anchor_length=32, positive_length=32)
    config.training.teraflops = 1.0
    shape, devices = shape_of(tiny_base()), devices_of(config)
    work = work_of(config, "heads", shape, devices)
    side = work_of(config, "asymmetric", shape, devices)
    assert (work.batches, work.rows, work.tokens, work.cached_batches) == (6, 96, side.tokens, 0)
    assert training_flops(shape, round(work.tokens), 0.0, passes=1) < work.flops < side.flops / 2
    heads = first_heads(tmp_path, shape.hidden_size, seed=1)
    trained = trained_parameters(shape, config.training.heads)
    assert trained == work.trained == sum(weight.numel() for weight in heads.parameters())
    assert work.hours(devices, shape) < side.hours(devices, shape)
    memory = side_memory(config, "heads", shape, 16384, half=False, tokens=round(work.largest))
    assert memory.keys() == side_memory(config, "asymmetric", shape, 16384, half=False).keys()
    assert memory["gradients"] == 4 * trained and memory["parameters"] == 4 * (shape.parameters + trained)


def test_hours_count_operations_launches_the_optimizer_and_the_all_reduce() -> None:
    shape, gpus = Shape(2, 4, 8, 10, 6, 1), Devices(4, "", True, True, 1.0, 10**9, 1e3, 1e4, 1e-3)
    work = Work("", shape.parameters, batches=10, flops=36e12, passes=10)
    step = 7 * 4 * shape.parameters / 1e3 + 2 * 0.75 * 4 * shape.parameters / 1e4
    assert work.hours(gpus, shape) == pytest.approx((9 + 10 * step) / 3600)
    launched = replace(work, flops=0.0, passes=1000)
    assert launched.hours(gpus, shape) == pytest.approx((1000 * 2 * 1e-3 + 10 * step) / 3600)


def test_an_estimate_has_the_sizes_and_lengths_of_the_source_files() -> None:
    config = composed("profile=bge_m3")
    sets = {side: estimates(config, side) for side in ("symmetric", "asymmetric", "joint")}
    assert all(item.assumed for item in sets["joint"])
    assert {item.name for item in sets["joint"]} == config.data.sources.keys()
    pairs = {side: sum(item.pairs for item in items) for side, items in sets.items()}
    entailments, counted = 155, 392  # of RCB
    assert pairs["joint"] == pairs["symmetric"] + pairs["asymmetric"] == 2_240_961 - counted + entailments
    texts, summaries = (item for item in sets["asymmetric"] if item.name == "gazeta")
    assert (texts.pairs, texts.tokens, summaries.tokens) == (60_964, 14 + 512, 14 + 50)  # 767 tokens are cut at 512
    mined = next(item for item in sets["asymmetric"] if item.name == "mr_tydi")
    assert (mined.tokens, mined.squares) == (11 + 112 + 112, 11**2 + 112**2 + 112**2)  # one of its negatives a row


def test_an_estimate_knows_which_sets_are_used_once_and_which_are_capped() -> None:
    config = composed("profile=e5_small", "data.sources.terra.max_rows=100000", "data.sources.miracl.max_rows=500")
    pairs = {item.name: item.pairs for side in ("symmetric", "asymmetric") for item in estimates(config, side)}
    assert (pairs["mr_tydi"], pairs["terra"], pairs["miracl"]) == (5_366, 1_359, 500)


def test_an_estimate_s_work_is_that_of_its_rows() -> None:
    config = composed("profile=bge_m3", "training.symmetric.max_steps=100", "training.symmetric.batch_size=256")
    sets, shape = estimates(config, "symmetric"), KNOWN["BAAI/bge-m3"]
    work = work_of(config, "symmetric", shape, devices_of(config))
    rows = 100 * 256
    a_row = sum(item.pairs * item.tokens for item in sets) / sum(item.pairs for item in sets)
    padded = work.tokens if not torch.cuda.is_available() else work.padded  # a GPU is assumed, which packs
    assert (work.batches, round(work.rows), work.padded, work.cached_batches) == (100, rows, padded, 0)
    assert work.tokens == pytest.approx(rows * a_row, rel=1e-6)
    least = training_flops(shape, round(work.tokens), 0.0, passes=3)
    assert least < work.flops < 1.01 * least  # short texts cost little attention


def test_the_faithful_profile_shows_each_question_of_mr_tydi_a_hundred_times_and_ours_does_not() -> None:
    configs = {profile: composed(f"profile={profile}") for profile in ("bge_m3", "bge_m3_ours")}
    shape = KNOWN["BAAI/bge-m3"]
    works = {name: work_of(config, "asymmetric", shape, devices_of(config)) for name, config in configs.items()}
    shown = {name: work.seen["mr_tydi"] for name, work in works.items()}
    assert shown["bge_m3"].anchors == shown["bge_m3_ours"].anchors == 5_366
    assert shown["bge_m3"].batches / works["bge_m3"].batches == pytest.approx(536_600 / 1_326_175, rel=1e-3)
    assert shown["bge_m3"].rows / 5_366 == pytest.approx(100, rel=1e-3)
    assert shown["bge_m3_ours"].batches / works["bge_m3_ours"].batches < 0.05
    assert 2 < shown["bge_m3_ours"].rows / 5_366 < 5
    for work in works.values():
        assert sum(seen.batches for seen in work.seen.values()) == pytest.approx(work.batches)
        assert sum(seen.rows for seen in work.seen.values()) == pytest.approx(work.rows, abs=1)


def test_an_estimate_counts_several_negatives_mined_ones_and_smaller_batches_of_long_texts() -> None:
    config = composed("profile=bge_m3_ours")
    sets, side = {item.name: item for item in estimates(config, "asymmetric")}, config.training.asymmetric
    assert len(sets["miracl"].texts["negatives"]) == len(sets["mldr"].texts["negatives"]) == 7
    assert sets["pravo_israel"].texts["negatives"] == [140.0]  # one mined, as long as the answers
    assert sets["fialka"].texts["negatives"] == []
    assert (sets["mldr"].batch_rows(side), sets["miracl"].batch_rows(side)) == (256, 1024)


def test_a_source_without_assumed_lengths_counts_as_long_as_allowed() -> None:
    config = composed("profile=bge_m3")
    config.data.sources["terra"].tokens = {}
    terra = next(item for item in estimates(config, "symmetric") if item.name == "terra")
    assert not terra.assumed and terra.tokens == 512 + 512


def test_assumed_lengths_are_not_in_a_fingerprint() -> None:
    source = composed("profile=bge_m3").data.sources["terra"]
    assert "tokens" not in result_settings(source) and "tokens" not in result_settings(source, "unit")

"""`make plan`: its arithmetic against the real model, and its table against the planned batches."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from configs.schema.data import unit_settings
from configs.schema.init import BaseConfig
from configs.schema.training import AdapterConfig, HeadsConfig, SideConfig
from pipeline.application import composed
from pipeline.core.artefact import result_settings
from pipeline.core.errors import UserError
from tests.support.planned_sets import prepared_run, rows
from tests.support.runs import run_command, run_main
from tests.support.small_bases import tiny_base
from training.batches import warn_of_small_steps, warn_of_untried
from training.estimate import (
    KNOWN,
    Devices,
    Shape,
    Work,
    devices_of,
    estimates,
    measured_teraflops,
    memory_bytes,
    shape_of,
    side_memory,
    trained_parameters,
    training_operations,
    work_of,
)
from training.heads.layers import first_heads
from training.model_files import load_model


def test_operations_are_those_that_torch_counts() -> None:
    model = AutoModel.from_pretrained(tiny_base(), attn_implementation="eager", add_pooling_layer=False)
    ids = torch.randint(4, 100, (5, 24))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    expected = training_operations(shape_of([tiny_base()], BaseConfig()), 5 * 24, 24.0, passes=1)
    assert counter.get_total_flops() == expected


def test_beside_an_adapter_operations_are_those_that_torch_counts() -> None:
    pytest.importorskip("peft")
    side = SideConfig(anchor_length=32, positive_length=32, adapter=AdapterConfig(rank=4))
    model, shape = load_model(tiny_base(), "eager", side).train(), shape_of([tiny_base()], BaseConfig())
    ids = torch.randint(4, 100, (5, 24))
    with FlopCounterMode(display=False) as counter:
        model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["token_embeddings"].sum().backward()
    # The first layer's queries, keys and values come from frozen embeddings, which need no gradient.
    unneeded = 5 * 24 * 3 * 2 * (shape.width**2 + 4 * shape.width)
    pooler = 5 * 2 * shape.width**2  # of a text; it runs, though nothing reads it
    expected = training_operations(shape, 5 * 24, 24.0, 3, trained_parameters(shape, side))
    assert counter.get_total_flops() == expected - unneeded + pooler


def test_the_plan_of_a_side_with_an_adapter_has_fewer_hours() -> None:
    pytest.importorskip("peft")
    options = ["profile=bge_m3", "training.teraflops=100", "launch.processes=8"]
    shape, hours, operations = KNOWN["BAAI/bge-m3"], [], []
    for adapter in ([], ["training.symmetric.adapter.rank=16"]):
        config = composed(*options, *adapter)
        gpus = devices_of(config)
        work = work_of(config, "symmetric", shape, gpus)
        hours.append(gpus.hours(work, shape))
        operations.append(work.operations)
    assert 2 / 3 < operations[1] / operations[0] < 0.71  # two thirds and the adapter's own
    assert hours[1] < operations[1] / operations[0] * hours[0]  # small gradients go round, and have small moments


def test_parameters_are_those_that_train() -> None:
    model = load_model(tiny_base(), "auto", SideConfig(anchor_length=32, positive_length=32))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert shape_of([tiny_base()], BaseConfig()).parameters == trained


def test_of_an_adapter_only_its_own_parameters_have_gradients_and_moments() -> None:
    pytest.importorskip("peft")
    side = SideConfig(anchor_length=32, positive_length=32, adapter=AdapterConfig(rank=4, targets=["value", "dense"]))
    model, shape = load_model(tiny_base(), "auto", side), shape_of([tiny_base()], BaseConfig())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained_parameters(shape, side) == trained < shape.parameters / 3
    bge_m3 = KNOWN["BAAI/bge-m3"]
    assert trained_parameters(bge_m3, SideConfig(adapter=AdapterConfig(rank=8, targets=["query"]))) == 24 * 8 * 2 * 1024
    memory = memory_bytes(shape, 1000, half=True, trained=trained)
    assert memory["parameters"] + memory["gradients"] + memory["optimizer"] == 4 * shape.parameters + 12 * trained


def test_the_known_shape_of_bge_m3_has_its_parameters() -> None:
    assert KNOWN["BAAI/bge-m3"].parameters == 567_754_752 - 1_049_600  # all but the pooler
    memory = memory_bytes(KNOWN["BAAI/bge-m3"], 1000, half=True)
    assert memory["parameters"] + memory["gradients"] + memory["optimizer"] == 16 * KNOWN["BAAI/bge-m3"].parameters


def test_attention_scores_and_a_batch_s_size_are_counted_as_training_keeps_them() -> None:
    model = load_model(tiny_base(), "eager", SideConfig(anchor_length=32, positive_length=32)).train()
    shape = shape_of([tiny_base()], BaseConfig())
    ids = torch.randint(4, 100, (50, 24))
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (24, 24):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    for bfloat16, size in ((False, 4), (True, 2)):
        kept.clear()
        features = {"input_ids": ids, "attention_mask": mask}
        with (
            torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            alive = model(features)
        scores = memory_bytes(shape, 50 * 24, bfloat16, eager_length=24)["attention scores"]
        assert sum(kept.values()) == scores == 50 * 24 * 24 * size * shape.heads * shape.layers
        del alive


def test_the_memory_of_a_side_is_bounded_by_its_budget_and_by_its_largest_batch() -> None:
    config, shape = composed("profile=demo"), KNOWN["intfloat/multilingual-e5-small"]
    most = side_memory(config, "asymmetric", shape, 16384, half=False)
    longer = side_memory(config, "asymmetric", shape, 16384, half=False, tokens=10**9)
    assert most == longer  # 64 rows of three texts of 96 tokens are over it
    half = side_memory(config, "asymmetric", shape, 16384, half=False, tokens=8192)
    assert half["activations"] == most["activations"] // 2 and half["optimizer"] == most["optimizer"]
    assert sum(side_memory(config, "symmetric", shape, 16384, half=False).values()) < sum(most.values())  # 32 rows


@pytest.mark.parametrize(("tokens", "peak"), [(7_800, 4.83e9), (13_812, 7.64e9)])
def test_the_memory_of_a_side_on_a_cpu_is_what_runs_have_taken(
    tokens: int, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = composed("profile=study")  # on two cores, of which the manifests said peak_rss_bytes
    shape = Shape(layers=12, width=384, inner=1536, vocabulary=31_489, positions=512, heads=12)
    told = side_memory(config, "asymmetric", shape, 16384, half=True, tokens=tokens)
    assert sum(told.values()) == pytest.approx(peak, rel=0.05)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UserError, match="shape isn't known"):
        shape_of([Path("nowhere")], BaseConfig(name="other", kind="hub", hub="some/model"))


def test_work_is_that_of_the_planned_batches(tmp_path: Path) -> None:
    sets = {"asymmetric/one": rows(100, negatives=1), "asymmetric/two": rows(30, seed=1)}
    config = prepared_run(tmp_path, sets, mini_batch_tokens=128)
    shape = shape_of([tiny_base()], config.base)
    work = work_of(config, "asymmetric", shape, devices_of(config))
    assert (work.source, work.batches, work.rows) == ("the planned batches", 6 + 2, 96 + 24)
    assert work.tokens <= work.padded <= 1.5 * work.tokens
    assert work.cached_batches == work.batches
    assert work.largest > 128 and work.passes > 4 * work.batches
    uncached = training_operations(shape, work.padded, 0.0, passes=3)
    assert uncached < work.operations < 4 / 3 * training_operations(shape, work.padded, 32.0**2, passes=3)
    assert {name: (seen.batches, seen.rows) for name, seen in work.seen.items()} == {"one": (6, 96), "two": (2, 24)}
    assert work.seen["one"].anchors <= 100


def test_packed_work_has_no_padding_and_one_forward_pass_a_step(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"asymmetric/one": rows(100, negatives=1)})
    gpus = Devices(2, "", True, True, 100.0, 10**10, 1e12, 1e11, 1e-4)
    work = work_of(config, "asymmetric", shape_of([tiny_base()], config.base), gpus)
    assert work.padded == work.tokens
    assert (work.passes, work.cached_batches) == (work.batches, 0)


def test_fitting_heads_takes_one_pass_and_trains_two_layers(tmp_path: Path) -> None:
    config = prepared_run(tmp_path, {"asymmetric/one": rows(100, negatives=1), "symmetric/two": rows(30, seed=1)})
    config.training.heads = HeadsConfig(batch_size=16, anchor_length=32, positive_length=32)
    shape, devices = shape_of([tiny_base()], config.base), devices_of(config)
    work = work_of(config, "heads", shape, devices)
    side = work_of(config, "asymmetric", shape, devices)
    assert (work.batches, work.rows, work.tokens, work.cached_batches) == (6, 96, side.tokens, 0)
    assert training_operations(shape, work.tokens, 0.0, passes=1) < work.operations < side.operations / 2
    layers = first_heads(tmp_path, shape.width, seed=1)
    trained = trained_parameters(shape, config.training.heads)
    assert trained == work.trained == sum(weight.numel() for layer in layers for weight in layer.parameters())
    assert devices.hours(work, shape) < devices.hours(side, shape)
    memory = side_memory(config, "heads", shape, 16384, half=False, tokens=work.largest)
    assert memory.keys() == side_memory(config, "asymmetric", shape, 16384, half=False).keys()
    assert memory["gradients"] == 4 * trained and memory["parameters"] == 4 * (shape.parameters + trained)


def test_hours_count_operations_launches_the_optimizer_and_the_gradients_way() -> None:
    shape, gpus = Shape(2, 4, 8, 10, 6, 1), Devices(4, "", True, True, 1.0, 10**9, 1e3, 1e4, 1e-3)
    work = Work("", 10, 80, 100, 100, 36e12, passes=10, largest=10, cached_batches=0, seen={}, trained=shape.parameters)
    step = 7 * 4 * shape.parameters / 1e3 + 2 * 0.75 * 4 * shape.parameters / 1e4
    assert gpus.hours(work, shape) == pytest.approx((9 + 10 * step) / 3600)
    launched = replace(work, operations=0.0, passes=1000)
    assert gpus.hours(launched, shape) == pytest.approx((1000 * 2 * 1e-3 + 10 * step) / 3600)


def test_a_gpu_s_budget_is_what_its_memory_leaves() -> None:
    shape, side = KNOWN["BAAI/bge-m3"], SideConfig()
    gpus = Devices(8, "", True, True, 320.0, 80 * 10**9, 2e12, 1e11, 2e-4)
    tokens = gpus.budget(side, shape).tokens
    used = memory_bytes(shape, tokens, half=True)
    assert 0.9 * 80e9 < sum(used.values()) + 4 * shape.parameters <= 0.95 * 80e9
    assert gpus.budget(SideConfig(mini_batch_tokens=4096), shape).tokens == 4096
    assert replace(gpus, gpu=False).budget(side, shape).tokens == 16384


def test_the_measured_rate_is_one_of_this_machine() -> None:
    assert 1e-3 < measured_teraflops(torch.float32, seconds=0.1) < 1e4


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


def test_an_estimate_knows_which_sets_stand_once_and_which_are_capped() -> None:
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
    assert (work.batches, work.rows, work.padded, work.cached_batches) == (100, rows, padded, 0)
    assert work.tokens == pytest.approx(rows * a_row, rel=1e-6)
    least = training_operations(shape, work.tokens, 0.0, passes=3)
    assert least < work.operations < 1.01 * least  # short texts cost little attention


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


def test_few_tokens_a_rank_and_step_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_small_steps("symmetric", tokens=90_000 * 10, batches=10, ranks=8)
    assert not caplog.records
    warn_of_small_steps("symmetric", tokens=11_360 * 10, batches=10, ranks=16)
    (record,) = caplog.records
    assert record.getMessage().startswith("symmetric: 710 tokens a rank and step, fewer than 8000 keep a GPU busy")


def test_too_few_steps_and_rates_that_nobody_tried_are_named(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_untried("symmetric", SideConfig(learning_rate=3e-5), steps=60, parameters=28_000_000)
    assert not caplog.records
    warn_of_untried("symmetric", SideConfig(learning_rate=1e-4), steps=59, parameters=28_000_000)
    steps, rate = [record.getMessage() for record in caplog.records]
    assert steps.startswith("symmetric: 59 steps, fewer than the 60")
    assert rate.endswith("from 1e-05 to 5e-05, on 28 million parameters; 0.0001 is untried here (SWEEP=learning_rate)")
    warn_of_untried("asymmetric", SideConfig(learning_rate=1e-5), steps=5000, parameters=359_026_688)
    assert caplog.records[-1].getMessage().startswith("asymmetric: the study tried learning rates")


def test_a_source_without_assumed_lengths_counts_as_long_as_allowed() -> None:
    config = composed("profile=bge_m3")
    config.data.sources["terra"].tokens = {}
    terra = next(item for item in estimates(config, "symmetric") if item.name == "terra")
    assert not terra.assumed and terra.tokens == 512 + 512


def test_assumed_lengths_are_no_part_of_a_fingerprint() -> None:
    source = composed("profile=bge_m3").data.sources["terra"]
    assert "tokens" not in result_settings(source) and "tokens" not in unit_settings(source)


def test_the_command_prints_its_assumptions_before_anything_is_made(tmp_path: Path) -> None:
    settings, module = ["profile=bge_m3", f"runs={tmp_path}"], "pipeline.plan"
    no_hub = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = run_command(*settings, "training.teraflops=200", module=module, env=no_hub)
    assert done.status == 0, done.err
    for text in ("assumed sizes", "hours at 200 TFLOP/s", "padding share", "activations", "357,977,088", "Assumed:"):
        assert text in done.out
    seen, assumed = (line.split() for line in done.out.splitlines() if line.split()[:1] == ["ru_hnp"])
    assert seen == ["ru_hnp", "symmetric", "244", "54.7%", "500,494", "100,000", "5.0"]
    assert assumed == ["ru_hnp", "symmetric", "500,000", "18", "18", "18"]
    (row,) = (line.split() for line in done.out.splitlines() if line.split()[:1] == ["card_30"])
    assert int(row[1].replace(",", "")) > 800_000 and float(row[3]) > 0.1  # texts, tokens, hours
    refused = run_main(*settings, "training.teraflops=0", module=module)
    assert refused.status == 2
    assert refused.err.startswith("error: ") and refused.err.count("\n") == 1

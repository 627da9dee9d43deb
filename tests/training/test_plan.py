"""`make plan`: its arithmetic against the real model, and its table against the planned batches."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from pipeline.errors import UserError
from tests.training.planned_sets import prepared_run, rows
from tests.training.small_bases import tiny_base
from training.config import BaseConfig, SideConfig
from training.cost import KNOWN, memory_bytes, shape_of, training_operations
from training.model_files import load_model
from training.plan import _work


def test_operations_are_those_that_torch_counts() -> None:
    model = AutoModel.from_pretrained(tiny_base(), attn_implementation="eager", add_pooling_layer=False)
    ids = torch.randint(4, 100, (5, 24))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    expected = training_operations(shape_of([tiny_base()], BaseConfig()), 5 * 24, 24.0, passes=1)
    assert counter.get_total_flops() == expected


def test_parameters_are_those_that_train() -> None:
    model = load_model(tiny_base(), None, SideConfig(anchor_length=32, positive_length=32))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert shape_of([tiny_base()], BaseConfig()).parameters == trained


def test_the_known_shape_of_bge_m3_has_its_parameters() -> None:
    assert KNOWN["BAAI/bge-m3"].parameters == 567_754_752 - 1_049_600  # all but the pooler
    memory = memory_bytes(KNOWN["BAAI/bge-m3"], 1000, bfloat16=True)
    assert memory["parameters"] + memory["gradients"] + memory["optimizer"] == 16 * KNOWN["BAAI/bge-m3"].parameters


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(UserError, match="shape isn't known"):
        shape_of([Path("nowhere")], BaseConfig(name="other", kind="hub", hub="some/model"))


def test_work_is_that_of_the_planned_batches(tmp_path: Path) -> None:
    sets = {"asymmetric/one": rows(100, negatives=1), "asymmetric/two": rows(30, seed=1)}
    config = prepared_run(tmp_path, sets, mini_batch_tokens=128)
    work = _work(config, "asymmetric", shape_of([tiny_base()], config.base), 1)
    assert (work.source, work.batches, work.rows) == ("the planned batches", 6 + 2, 96 + 24)
    assert work.tokens <= work.padded <= 1.5 * work.tokens
    assert work.cached_batches == work.batches
    assert work.operations > 0


def test_the_command_prints_both_sides_before_anything_is_made(repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.plan", "profile=bge_m3", f"runs={tmp_path}", "training.teraflops=200"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    for text in ("the card's sizes", "hours at 200 TFLOP/s", "padding share", "activations", "566,705,152"):
        assert text in done.stdout
    refused = subprocess.run([*command[:-1], "training.teraflops=0"], capture_output=True, text=True, cwd=repository)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1

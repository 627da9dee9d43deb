"""How many tokens a device holds at once, from two probing steps, and what happens where it holds fewer."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from configs.schema.training import SideConfig
from pipeline.chain import CHAIN
from pipeline.core.errors import UserError
from pipeline.stage import run_stage
from tests.support.planned_sets import prepared_run, rows, tiny_model
from training.batches import MiniBatchCollator
from training.heads.loss import held_bytes
from training.memory import Budget, measured_tokens, memory_explained, planned_budget, probe, tokens_that_fit


def test_auto_is_a_cpu_s_budget_until_a_gpu_is_measured() -> None:
    assert planned_budget(SideConfig()) == Budget(8192, 96)
    assert planned_budget(SideConfig(mini_batch_tokens=2048)) == Budget(2048, 96)


def test_the_tokens_that_fit_come_from_two_probing_steps() -> None:
    # 1,000 bytes per token; a constant of 500,000 and the gradients of 250 parameters, which the room already excludes
    peaks, room = [1000 * 4096 + 501_000, 1000 * 8192 + 501_000], 1000 * 78 * 256 + 500_000
    assert tokens_that_fit([4096, 8192], peaks, room, trained=250) == (1000, 78 * 256)
    assert tokens_that_fit([4096, 8192], peaks, room - 1, trained=250)[1] == 77 * 256
    assert tokens_that_fit([4096, 8192], peaks, room=10_000, trained=250)[1] == 0


def test_heads_hold_four_copies_of_a_batch_and_on_several_ranks_two_of_its_passages() -> None:
    lengths = np.array([3, 5, 5, 8])  # two rows of an anchor and a positive, each padded to 8 tokens
    kept = 4 * 2**28
    assert held_bytes(lengths, rows=2, width=1024, world_size=1) - kept == 4 * 1025 * (4 * 4 * 8)
    assert held_bytes(lengths, rows=2, width=1024, world_size=2) - kept == 4 * 1025 * (4 * 2 * 8 + 2 * 2 * 8)


def report_gpu(monkeypatch: pytest.MonkeyPatch, peaks: Iterable[float], free: float, total: float) -> None:
    """Have the CPU report what a GPU would: the peaks of probing steps, and its free and whole memory, in bytes."""
    reported = iter(peaks)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(reported))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))


def test_memory_that_heads_hold_is_not_available_for_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 GB, of which 9 are free, and 1 MB per token."""
    model, features = tiny_model(), MiniBatchCollator(1, Budget(1, 1)).features
    side = SideConfig(anchor_length=32, positive_length=32)
    trained = sum(weight.numel() for weight in model.parameters())
    report_gpu(monkeypatch, [1e6 * 4096, 1e6 * 8192] * 3, free=9e9 + 12 * trained, total=10e9)
    alone, along = (measured_tokens(model, features, side, None, "side", int(held)) for held in (0, 5e9))
    assert (alone, along) == (8500 // 256 * 256, 3500 // 256 * 256)
    with pytest.raises(
        UserError, match=r"32 tokens, 9.0 GB that the heads hold.*; lower batch_tokens or batch_size, or"
    ):
        measured_tokens(model, features, side, None, "side", int(9e9))


def test_each_mini_batch_of_compiled_layers_keeps_their_weights_in_16_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, side = tiny_model(), SideConfig(anchor_length=32, positive_length=32)
    layer, features = model[0].model.encoder.layer[0], MiniBatchCollator(1, Budget(1, 1)).features
    weights, trained = (sum(weight.numel() for weight in part.parameters()) for part in (layer, model))
    report_gpu(monkeypatch, [weights * 16, weights * 32] * 2, free=weights * 100 + 12 * trained, total=0)
    eager = measured_tokens(model, features, side, None, "side")
    layer._compiled_call_impl = layer._call_impl  # as `compile` sets it
    assert eager - measured_tokens(model, features, side, None, "side") == 3 * 2 * 256  # of four, the probe had one


def test_each_mini_batch_keeps_frozen_weights_in_16_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter's; a graph is kept, with what it saved for the backward pass, for every mini-batch."""
    model, side = tiny_model(), SideConfig(anchor_length=32, positive_length=32)
    model[0].model.pooler = None  # frozen too
    linear = [layer.weight for layer in model[0].model.modules() if isinstance(layer, torch.nn.Linear)]
    saved, features = set[int](), MiniBatchCollator(1, Budget(1, 1)).features
    for weight in linear:
        weight.requires_grad_(False)

    def packed(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype == torch.bfloat16 and any(tensor.shape in (w.shape, w.shape[::-1]) for w in linear):
            saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(packed, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        graphs = [model(features([[5] * 7, [5] * 9])) for _ in range(3)]
    assert len(graphs) * (len(linear) - 3) <= len(saved)  # all but those of the first layer's query, key and value
    weights = sum(weight.numel() for weight in linear)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    report_gpu(monkeypatch, [weights * 16, weights * 32] * 2, free=weights * 100 + 12 * trained, total=0)
    in_32, in_16 = (measured_tokens(model, features, side, dtype, "side") for dtype in (None, torch.bfloat16))
    assert in_32 - in_16 == 3 * 2 * 256  # of four, the probe had one


def test_free_memory_is_measured_after_nccl_took_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    done, side = list[str | int](), SideConfig(anchor_length=32, positive_length=32)
    report_gpu(monkeypatch, [4e9, 8e9], free=9e10, total=1e11)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (done.append("free"), (9e10, 1e11))[1])
    monkeypatch.setattr("training.memory.get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda own, **options: done.append(4 * own.numel()))
    measured_tokens(tiny_model(), MiniBatchCollator(1, Budget(1, 1)).features, side, None, "side")
    assert done == [25 * 2**20, "free", 4]  # bytes of a bucket of gradients, and of the least over the ranks


def test_the_memory_of_padded_texts_masks_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = list[torch.Tensor | None]()
    attend = torch.nn.functional.scaled_dot_product_attention

    def seen(*args: Any, attn_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        masks.append(attn_mask)
        return attend(*args, attn_mask=attn_mask, **options)

    report_gpu(monkeypatch, [4e9, 8e9], free=9e10, total=1e11)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    model = tiny_model()
    model[0].model.set_attn_implementation("sdpa")
    features = MiniBatchCollator(1, Budget(1, 1)).features
    measured_tokens(model, features, SideConfig(anchor_length=32, positive_length=32), None, "side")
    assert [mask is None or tuple(mask.shape[-2:]) for mask in masks[-4:]] == [(32, 32)] * 4  # two layers, two probes


@pytest.mark.parametrize("dtype", [torch.bfloat16, None])
def test_a_probing_step_computes_as_training_does_and_leaves_no_trace(dtype: torch.dtype | None) -> None:
    model, seen, gradients = tiny_model(dropout=0.2), list[tuple[bool, bool]](), list[torch.Tensor]()
    model[0].register_forward_pre_hook(lambda part, _: seen.append((part.training, torch.is_autocast_enabled("cpu"))))
    next(model[0].model.encoder.parameters()).register_hook(gradients.append)
    before = torch.get_rng_state()
    probe(model.eval(), MiniBatchCollator(1, Budget(1000, 8)).features([[5] * 7, [5] * 9]), dtype)
    assert seen == [(True, dtype is not None)] and gradients[0].any()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_large_vocabulary_s_gradient_does_not_hide_activations() -> None:
    model, peaks = tiny_model(), list[int]()
    model[0].model.pooler = None  # frozen, which the tracker does not expect
    model[0].model.resize_token_embeddings(40_000, mean_resizing=False)  # 5 MB; the first probe keeps 3 MB
    for texts in (16, 32, 64):
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            probe(model, MiniBatchCollator(1, Budget(1, 1)).features([[5] * 32] * texts), None)
        peaks.append(tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"])
    assert peaks[2] - peaks[1] == pytest.approx(2 * (peaks[1] - peaks[0]), rel=0.05)


@pytest.mark.parametrize("place", ["training.losses.contrastive_loss", "torch.optim.AdamW.step"])
def test_a_full_device_is_a_one_line_error_that_says_what_to_set(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    config = prepared_run(tmp_path, {"symmetric/pairs": rows(32)}, max_steps=1, mini_batch_tokens=8192)
    monkeypatch.setattr(place, full)
    with pytest.raises(UserError, match=r"full with 8192 tokens.*training.symmetric.*set mini_batch_tokens=4096"):
        run_stage(CHAIN["symmetric"], config)
    for tokens, half in ((None, 2048), (1100, 512), (300, 256)):  # of a multiple of 256
        with pytest.raises(UserError, match=f"; set mini_batch_tokens={half},"), memory_explained("joint", tokens):
            full()
    with pytest.raises(UserError, match="; lower batch_tokens or batch_size, set"), memory_explained("a", heads=True):
        full()

"""The arithmetic of operations, parameters and memory against the real model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.benchmark import Measurement, Timer
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel

from configs.schema.config import Config
from configs.schema.init import BaseConfig
from configs.schema.training import AdapterConfig, SideConfig
from pipeline.application import composed
from pipeline.core.device import NARROW_FROM
from pipeline.core.errors import UserError
from pipeline.core.models import load_folder
from tests.support.small_bases import tiny_base, tiny_model
from training.bases.random_model import model_config
from training.bases.synthetic import write_base
from training.cost_model import (
    KNOWN,
    MODERN,
    Devices,
    Shape,
    measured_teraflops,
    memory_bytes,
    shape_of,
    shape_of_run,
    side_memory,
    trained_parameters,
    training_flops,
)
from training.memory import planned_budget
from training.model_files import encoder_of, load_model

BGE_M3 = KNOWN["BAAI/bge-m3"]


def test_operations_equal_torch_s_count() -> None:
    model = AutoModel.from_pretrained(tiny_base(), attn_implementation="eager", add_pooling_layer=False)
    ids = torch.randint(4, 100, (5, 24))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    expected = training_flops(shape_of(tiny_base()), 5 * 24, 24.0, passes=1)
    assert counter.get_total_flops() == expected


def test_operations_with_an_adapter_equal_torch_s_count() -> None:
    pytest.importorskip("peft")
    side = SideConfig(anchor_length=32, positive_length=32, adapter=AdapterConfig(rank=4))
    model, shape = load_model(tiny_base(), "eager", side).train(), shape_of(tiny_base())
    ids = torch.randint(4, 100, (5, 24))
    with FlopCounterMode(display=False) as counter:
        model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["token_embeddings"].sum().backward()
    # The first layer's queries, keys and values come from frozen embeddings, which need no gradient.
    unneeded = 5 * 24 * 3 * 2 * (shape.hidden_size**2 + 4 * shape.hidden_size)
    pooler = 5 * 2 * shape.hidden_size**2  # of a text; it runs, though nothing reads it
    expected = training_flops(shape, 5 * 24, 24.0, 3, trained_parameters(shape, side))
    assert counter.get_total_flops() == expected - unneeded + pooler


def test_parameters_are_those_that_train() -> None:
    model = load_model(tiny_base(), "auto", SideConfig(anchor_length=32, positive_length=32))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert shape_of(tiny_base()).parameters == trained


@pytest.mark.parametrize(
    ("family", "heads", "linear", "adapted"),
    [("bert", (), "query", 2), ("modernbert", (), "Wqkv", 4), ("qwen3", (4, 128), "q_proj", 3)],
)
def test_the_sizes_of_other_families_are_known(
    family: str, heads: tuple[int, ...], linear: str, adapted: int, tmp_path: Path
) -> None:
    """At ModernBERT-base's shape; it has no biases. `adapted`: inputs and outputs of the layer, in hidden sizes."""
    shape = Shape(22, 768, 1152, 50_368, 130, 12, family, *heads)
    tables = {"vocab_size": 50_368, "type_vocab_size": 1}
    with torch.device("meta"):
        config = shape.model_config(max_position_embeddings=130, **tables)
        parameters = dict(AutoModel.from_config(config).named_parameters())
    real = sum(weight.numel() for name, weight in parameters.items() if not name.startswith("pooler"))
    assert shape.parameters == pytest.approx(real, rel=0.002 if family in MODERN else 0)
    few: dict[str, Any] = {"heads": 2, "key_heads": shape.key_heads and 1, "head_width": shape.head_width and 16}
    small = replace(shape, layers=1, hidden_size=16, intermediate_size=8, vocabulary=50, **few)
    write_base(tmp_path, small, BaseConfig(max_length=128))
    assert shape_of(tmp_path) == small and np.isfinite(load_folder(tmp_path, "cpu").encode(["w1 w2", "w3"])).all()
    pytest.importorskip("peft")
    side = SideConfig(adapter=AdapterConfig(rank=8, targets=[linear]))
    assert trained_parameters(shape, side) == 22 * 8 * 768 * adapted


def test_with_an_adapter_only_its_parameters_have_gradients_and_moments() -> None:
    pytest.importorskip("peft")
    side = SideConfig(anchor_length=32, positive_length=32, adapter=AdapterConfig(rank=4, targets=["value", "dense"]))
    model, shape = load_model(tiny_base(), "auto", side), shape_of(tiny_base())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained_parameters(shape, side) == trained < shape.parameters / 3
    bge_m3 = KNOWN["BAAI/bge-m3"]
    assert trained_parameters(bge_m3, SideConfig(adapter=AdapterConfig(rank=8, targets=["query"]))) == 24 * 8 * 2 * 1024
    memory = memory_bytes(shape, 1000, half=False, trained=trained)
    assert memory["parameters"] + memory["gradients"] + memory["optimizer"] == 4 * shape.parameters + 12 * trained


def test_the_known_shape_of_bge_m3_has_its_parameters() -> None:
    assert KNOWN["BAAI/bge-m3"].parameters == 567_754_752 - 1_049_600  # all but the pooler
    memory = memory_bytes(KNOWN["BAAI/bge-m3"], 1000, half=False)
    assert memory["parameters"] + memory["gradients"] + memory["optimizer"] == 16 * KNOWN["BAAI/bge-m3"].parameters


@pytest.mark.parametrize(("length", "bfloat16", "a_score"), [(24, False, 4), (24, True, 6), (NARROW_FROM, True, 2)])
def test_activations_and_attention_scores_are_those_that_the_backward_pass_keeps(
    length: int, bfloat16: bool, a_score: int
) -> None:
    model = load_model(tiny_model(), "eager", SideConfig(anchor_length=32, positive_length=32)).train()
    shape, texts = shape_of(tiny_model()), 50
    scores, others = dict[int, int](), dict[int, int]()
    weights = {weight.data_ptr() for weight in model.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        of, where = scores if tensor.shape[-2:] == (length, length) else others, tensor.untyped_storage()
        of[where.data_ptr()] = where.nbytes()
        return tensor

    ids = torch.randint(4, 100, (texts, length))
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        alive = encoder_of(model)(input_ids=ids, attention_mask=mask)
    modelled = memory_bytes(shape, texts * length, bfloat16, eager_length=length)
    expected = texts * length**2 * a_score * shape.heads * shape.layers
    assert sum(scores.values()) == modelled["attention scores"] == expected
    activations = sum(size for where, size in others.items() if where not in weights)
    activations -= 2 * shape.encoder_parameters * bfloat16  # autocast's copy of the weights
    # Ids and the norms' statistics are not modelled. They are 5 % in a model as narrow as this.
    assert activations == pytest.approx(modelled["activations"], rel=0.06)
    del alive


def test_the_memory_of_a_side_is_bounded_by_its_budget_and_by_its_largest_batch() -> None:
    config, shape = composed("profile=demo"), KNOWN["intfloat/multilingual-e5-small"]
    most = side_memory(config, "asymmetric", shape, 16384, half=False)
    longer = side_memory(config, "asymmetric", shape, 16384, half=False, tokens=10**9)
    assert most == longer  # 64 rows of three texts of 96 tokens are over it
    half = side_memory(config, "asymmetric", shape, 16384, half=False, tokens=8192)
    assert half["activations"] == most["activations"] // 2 and half["optimizer"] == most["optimizer"]
    assert sum(side_memory(config, "symmetric", shape, 16384, half=False).values()) < sum(most.values())  # 32 rows
    batch = []
    for config.launch.processes in (1, 2):
        batch.append(side_memory(config, "asymmetric", shape, 10**9, half=False)["activations"])
    assert batch[0] == 2 * batch[1] > most["activations"]  # ranks share a batch


@pytest.mark.parametrize(
    ("profile", "vocabulary", "tokens", "peak"),
    [("demo", 16_151, 8_050, 4.66e9), ("study", 31_550, 7_770, 4.62e9), ("study", 31_550, 13_852, 4.90e9)],
)
def test_the_memory_of_a_side_on_a_cpu_is_that_of_measured_runs(
    profile: str, vocabulary: int, tokens: int, peak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = composed(f"profile={profile}")  # measured on two cores, as peak_rss_bytes of the manifests
    shape = replace(KNOWN["intfloat/multilingual-e5-small"], vocabulary=vocabulary)
    most = planned_budget(config.training.asymmetric).tokens
    modelled = side_memory(config, "asymmetric", shape, most, half=True, tokens=tokens)
    assert sum(modelled.values()) == pytest.approx(peak, rel=0.05)


def test_an_unknown_shape_is_refused(tmp_path: Path) -> None:
    config = composed("profile=tiny", "base.name=other", "base.kind=hub", "base.hub=some/model", f"runs={tmp_path}")
    with pytest.raises(UserError, match="shape isn't known"):
        shape_of_run(config)


def test_a_shape_is_known_before_its_model_is_made(tmp_path: Path) -> None:
    tiny = composed("profile=tiny", f"runs={tmp_path}")
    made = model_config(tiny.base, tiny.base.vocabulary)
    sizes = made.num_hidden_layers, made.hidden_size, made.intermediate_size
    tables = made.vocab_size, made.max_position_embeddings, made.num_attention_heads
    assert shape_of_run(tiny) == Shape(*sizes, *tables)
    on_hub = replace(tiny, base=replace(tiny.base, name="m3", kind="hub", hub="BAAI/bge-m3"))
    assert shape_of_run(on_hub) == replace(KNOWN["BAAI/bge-m3"], vocabulary=46_166)
    made.vocab_size = 100_000  # not XLM-R's, so the shrunk size is unknown
    made.save_pretrained(on_hub.folder("base"))
    assert shape_of_run(on_hub) == replace(Shape(*sizes, *tables), vocabulary=100_000)


def test_texts_are_packed_on_a_gpu_in_16_bit_without_dropout_where_attention_is_left_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpus, side, config = (
        Devices(8, "", True, True, 320.0, 80 * 10**9, 2e12, 1e11, 2e-4),
        SideConfig(dropout=0.0),
        Config(),
    )
    assert gpus.packs(config, side, BGE_M3)
    for lacking in ({"gpu": False}, {"half": False}):
        assert not replace(gpus, **lacking).packs(config, side, BGE_M3)
    assert not gpus.packs(config, replace(side, dropout=0.1), BGE_M3)
    assert not gpus.packs(config, side, replace(BGE_M3, family="deberta-v2"))
    assert not gpus.packs(replace(config, base=replace(config.base, attention="sdpa")), side, BGE_M3)


def test_a_gpu_s_budget_is_what_its_memory_leaves() -> None:
    shape, side = KNOWN["BAAI/bge-m3"], SideConfig()
    gpus = Devices(8, "", True, True, 320.0, 80 * 10**9, 2e12, 1e11, 2e-4)
    tokens = gpus.budget(side, shape).tokens
    used = memory_bytes(shape, tokens, half=True)
    assert 0.9 * 80e9 < sum(used.values()) + 4 * shape.parameters <= 0.95 * 80e9
    assert replace(gpus, memory=10**9).budget(side, shape).tokens >= side.longest  # one text at least
    assert replace(gpus, number=2).budget(side, shape).tokens == tokens
    assert replace(gpus, number=1).budget(side, shape).tokens > tokens  # it has no gradients to exchange
    assert gpus.budget(SideConfig(mini_batch_tokens=4096), shape).tokens == 4096
    assert replace(gpus, gpu=False).budget(side, shape).tokens == 8192


def test_the_measured_rate_is_that_of_products_of_square_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []

    class Noted(Timer):
        def blocked_autorange(self, *arguments: Any, **options: Any) -> Measurement:
            found = super().blocked_autorange(*arguments, **options)
            taken.append(found.mean)
            return found

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.utils.benchmark.Timer", Noted)
    rate = measured_teraflops(torch.float32, seconds=0.01)
    assert rate == pytest.approx(2 * 1024**3 / taken[0] / 1e12)

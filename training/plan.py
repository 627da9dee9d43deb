"""`make plan`: what training would do and cost, without training.

Where data and init are made, the batches are planned as training will plan them; else sets are as large, and
texts as long, as the source files expect.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from configs.schema.config import SIDES, Config
from pipeline.core.artefact import is_complete
from pipeline.core.console import show_table
from pipeline.core.precision import uses_bfloat16
from training.batch_plan import plan_batches
from training.cost import Shape, memory_bytes, shape_of, training_operations
from training.finetune import plan_settings, quieten
from training.model_files import load_model
from training.plan_estimate import SetEstimate, estimates
from training.plan_report import padded_tokens, text_lengths
from training.prepared import prepare_sets

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Work:
    """What one side's run takes in."""

    source: str  # where the numbers come from
    batches: int
    rows: int
    tokens: int
    padded: int | None  # tokens with padding; None: not known
    operations: float
    cached_batches: int  # that go through gradient caching
    assumed: list[SetEstimate] = dataclasses.field(default_factory=list)  # what an estimate rests on


def plan(config: Config) -> None:
    """Print the work and the cost of every side that the config's stages name."""
    sides: list[str] = [name for name in SIDES if name in config.stages]
    shape = shape_of([config.folder("init"), config.folder("base")], config.base)
    devices = _devices(config)
    works = {name: _work(config, name, shape, devices) for name in sides}
    columns = ["", *works]
    show_table(f"Work, with {devices} device(s)", columns, _work_rows(works, config.training.teraflops, devices))
    memory = {name: memory_bytes(shape, config.side(name).mini_batch_tokens, _bfloat16(config)) for name in sides}
    rows = [
        [part, *(f"{memory[name][part] / GIB:.2f} GiB" for name in sides)] for part in next(iter(memory.values()), {})
    ]
    rows += [["in all", *(f"{sum(memory[name].values()) / GIB:.2f} GiB" for name in sides)]]
    if assumptions := list(_assumption_rows(works)):
        title = "Assumed: pairs, mean tokens of a row's texts, cut at the side's limits"
        show_table(title, ["set", "side", "pairs", "anchor", "positive", "negatives", ""], assumptions)
    show_table(f"Memory of one device ({shape.parameters:,} parameters)", columns, rows)


def _work_rows(works: dict[str, Work], teraflops: float, devices: int) -> Iterator[list[object]]:
    yield ["numbers from", *(work.source for work in works.values())]
    yield ["batches (steps)", *(work.batches for work in works.values())]
    yield ["rows", *(work.rows for work in works.values())]
    yield ["tokens", *(work.tokens for work in works.values())]
    yield ["padding share", *(work.padded and 1 - work.tokens / work.padded for work in works.values())]
    yield ["batches with gradient caching", *(work.cached_batches for work in works.values())]
    yield ["operations", *(f"{work.operations:.2e}" for work in works.values())]
    rate = teraflops * 1e12 * devices
    yield [f"hours at {teraflops:g} TFLOP/s", *(f"{work.operations / rate / 3600:.2g}" for work in works.values())]


def _devices(config: Config) -> int:
    return config.launch.processes or max(torch.cuda.device_count(), 1)


def _bfloat16(config: Config) -> bool:
    return uses_bfloat16(config.precision)


def _work(config: Config, name: str, shape: Shape, devices: int) -> Work:
    if is_complete(config.folder("data")) and is_complete(config.folder("init")):
        return _planned(config, name, shape, devices)
    return _estimated(config, name, shape, devices)


def _planned(config: Config, name: str, shape: Shape, devices: int) -> Work:
    """The work of the batches as training will plan them."""
    quieten()
    side = config.side(name)
    model = load_model(config.folder("init"), config.base.attention, side)
    with TemporaryDirectory() as cache:
        sets = prepare_sets(name, side, model, config.folder("data"), Path(cache)).train
        batches = plan_batches([item.rows for item in sets.values()], plan_settings(side, config.seed)).batches
        tokens = padded = cached = 0
        operations = 0.0
        for batch in batches:
            real, wide = padded_tokens(sets[batch.set], batch, side)
            squares = float((text_lengths(sets[batch.set], batch) ** 2).sum())
            twice = wide / devices > side.mini_batch_tokens
            operations += training_operations(shape, wide, squares / real, 4 if twice else 3)
            tokens, padded, cached = tokens + real, padded + wide, cached + twice
    rows = sum(len(batch.rows) for batch in batches)
    return Work("the planned batches", len(batches), rows, tokens, padded, operations, cached)


def _estimated(config: Config, name: str, shape: Shape, devices: int) -> Work:
    """The work of sets of the assumed sizes and lengths; padding is not known before the texts are."""
    side, sets = config.side(name), estimates(config, name)
    pairs = sum(item.pairs for item in sets)
    batches = side.max_steps or max(1, round(side.epochs * pairs / side.batch_size))
    share = batches * side.batch_size / pairs
    tokens = cached = operations = 0.0
    for item in sets:
        rows = share * item.pairs
        twice = side.batch_size * item.tokens / devices > side.mini_batch_tokens
        passes = 4 if twice else 3
        operations += training_operations(shape, round(rows * item.tokens), item.squares / item.tokens, passes)
        tokens, cached = tokens + rows * item.tokens, cached + twice * rows / side.batch_size
    source = "assumed sizes and lengths"
    return Work(source, batches, batches * side.batch_size, round(tokens), None, operations, round(cached), sets)


def _assumption_rows(works: dict[str, Work]) -> Iterator[list[object]]:
    for name, work in works.items():
        for item in work.assumed:
            lengths = [sum(item.texts[role]) or None for role in ("anchor", "positive", "negatives")]
            shown = [length if length is None else round(length) for length in lengths]
            yield [item.name, name, item.pairs, *shown, "" if item.assumed else "as long as allowed"]

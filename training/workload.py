"""What a training run would read and compute, without training.

Where data and init are made, the batches are planned as training will plan them. Otherwise set sizes are those that
data made or the source files expect, and text lengths those that the source files state.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from configs.schema.config import SIDES_READ, Config
from configs.schema.data import SourceConfig
from configs.schema.training import PlannedConfig, SetConfig
from data.artefact import rows_of_sets
from data.ledger import expected_rows
from pipeline.core.artefact import is_complete
from pipeline.core.console import quiet
from pipeline.core.errors import UserError
from training.batch_plan import batch_rows, plan_batches, wanted_batches
from training.batches import ends_within, text_lengths
from training.cost_model import Devices, Shape, trained_parameters, training_flops
from training.losses import kept_graphs
from training.memory import MINI_BATCHES_PER_BUDGET
from training.model_files import load_model
from training.sets import prepare_sets


@dataclasses.dataclass(frozen=True)
class SetEstimate:
    """Assumptions about one set. Texts of a kind are assumed to be as long as their mean, cut at the side's limit."""

    name: str
    pairs: int  # in one epoch
    anchors: int  # distinct ones of the pairs
    weight: float  # multiplies the set's share of the batches
    texts: dict[str, list[float]]  # role -> tokens of a row's texts of that role
    assumed: bool  # False: the source file states no lengths, so texts are as long as the side allows

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


@dataclasses.dataclass
class Seen:
    """One set's part of a run, summed."""

    anchors: int  # distinct ones
    batches: float = 0
    rows: float = 0

    def add(self, batches: float, rows: float) -> None:
        self.batches += batches
        self.rows += rows


@dataclasses.dataclass
class Work:
    """The work of one side's run, summed batch by batch."""

    source: str  # where the numbers come from
    trained: int  # parameters
    batches: int = 0
    rows: float = 0
    tokens: float = 0
    padded: float = 0  # tokens with padding; 0: not known
    flops: float = 0
    passes: float = 0  # forward passes of a device, including those for gradient caching
    largest: float = 0  # tokens of a device's share of the largest batch, with padding where that is known
    cached_batches: float = 0  # batches with texts that are embedded twice
    seen: dict[str, Seen] = dataclasses.field(default_factory=dict)  # by set
    assumed: list[SetEstimate] = dataclasses.field(default_factory=list)  # what an estimate is based on

    def hours(self, devices: Devices, shape: Shape) -> float:
        """Hours of the run: of its operations or its kernel launches, and of each step's optimizer and all-reduce.

        AdamW reads and writes 7 times the trained weights' bytes; a ring passes 2 (n - 1) / n of the gradients' bytes.
        """
        compute = self.flops / (devices.teraflops * 1e12 * devices.number)
        launches = self.passes * shape.layers * devices.launch
        gradients = 4 * self.trained
        a_step = 7 * gradients / devices.bandwidth + 2 * (1 - 1 / devices.number) * gradients / devices.network
        return (max(compute, launches) + self.batches * a_step) / 3600


def work_of(config: Config, name: str, shape: Shape, devices: Devices) -> Work:
    """The work of the batches as training will plan them, or an estimate where data and init are not made."""
    side, key = config.training_of(name), f"training.{name}"
    trained = trained_parameters(shape, side, key)
    if not (is_complete(config.folder("data")) and is_complete(config.folder("init"))):
        return _estimated(config, name, shape, devices, trained)
    with quiet(), TemporaryDirectory() as cache:
        model = load_model(config.folder("init"), config.base.attention, side, key, weights=False)
        sets = prepare_sets(name, side, model, config.folder("data"), Path(cache)).train
    batches = plan_batches([item.rows for item in sets.values()], side, config.training_seed, key).batches
    budget, packed = devices.budget(side, shape, config.token_budget), devices.packs(config, side, shape)
    seen = {of: Seen(len(np.unique(item.rows.anchors))) for of, item in sets.items()}
    work, ranks = Work("the planned batches", trained, len(batches), seen=seen), devices.number
    adapter = trained if side.adapter.rank else None
    for batch in batches:
        lengths = text_lengths(sets[batch.set], batch.slice(0, ranks))  # other ranks' are about the same
        ends = ends_within(lengths, budget, packed)
        parts = np.split(lengths, ends[:-1])
        sizes = [int(part.sum()) if packed else len(part) * int(part[-1]) for part in parts]  # tokens, with padding
        kept = kept_graphs(sizes, budget.tokens) if side.trains_encoder else [True] * len(sizes)
        again = sum(size for size, keep in zip(sizes, kept, strict=True) if not keep)
        mean_square = float((lengths**2).sum()) / lengths.sum()
        work.flops += ranks * training_flops(shape, sum(sizes), mean_square, 3 if side.trains_encoder else 1, adapter)
        work.flops += ranks * training_flops(shape, again, mean_square, 1, adapter)
        work.rows += len(batch.rows)
        work.tokens += ranks * int(lengths.sum())
        work.padded += ranks * sum(sizes)
        work.cached_batches += again > 0
        work.passes += len(sizes) + kept.count(False)
        work.largest = max(work.largest, sum(sizes))
        work.seen[batch.set].add(1, len(batch.rows))
    return work


def _estimated(config: Config, name: str, shape: Shape, devices: Devices, trained: int) -> Work:
    """The work for sets of the assumed sizes and lengths; padding is not known without the texts."""
    side, sets = config.training_of(name), estimates(config, name)
    batches, rows_of_item = assumed_rows(sets, side)
    work = Work("assumed sizes and lengths", trained, batches, assumed=sets)
    adapter = trained if side.adapter.rank else None
    budget = devices.budget(side, shape, config.token_budget).tokens
    for item, rows in zip(sets, rows_of_item, strict=True):
        own_batches = rows / item.batch_rows(side)
        a_device = item.batch_rows(side) * item.tokens / devices.number
        over = max(0.0, 1 - budget / a_device)
        again = over if side.trains_encoder else 0.0  # share of the texts that are embedded twice
        pieces = 1 if not over else a_device / (budget / MINI_BATCHES_PER_BUDGET) * (1 + again)
        of_rows = round(rows * item.tokens), item.squares / item.tokens
        work.flops += training_flops(shape, *of_rows, (3 if side.trains_encoder else 1) + again, adapter)
        work.rows += rows
        work.tokens += rows * item.tokens
        work.cached_batches += (again > 0) * own_batches
        work.passes += pieces * own_batches
        work.largest = max(work.largest, a_device)
        work.seen.setdefault(item.name, Seen(item.anchors)).add(own_batches, rows)
    work.padded = work.tokens * devices.packs(config, side, shape)
    return work


def assumed_rows(sets: list[SetEstimate], side: PlannedConfig) -> tuple[int, list[float]]:
    """The steps of a run, and the rows that it sees of each of these sets."""
    available: dict[str, float] = defaultdict(float)
    for item in sets:
        available[item.name] += item.pairs / item.batch_rows(side)
    batches, wanted = wanted_batches(available, {item.name: item.weight for item in sets}, side)
    return batches, [wanted[item.name] / available[item.name] * item.pairs for item in sets]


def estimates(config: Config, name: str) -> list[SetEstimate]:
    """The sets of a side; raises UserError where the size of none is known."""
    sources = {key: source for key, source in config.data.sources.items() if source.side in SIDES_READ[name]}
    side, mined = config.training_of(name), config.data.mining.negatives
    made = rows_of_sets(config.folder("data")) if is_complete(config.folder("data")) else {}
    found = [item for key, source in sources.items() for item in _estimates(key, source, side, mined, made)]
    if not found:
        raise UserError("the sets' sizes aren't known yet", where=f"side {name}", remedy="make them: make data")
    return found


def _estimates(
    name: str, source: SourceConfig, side: PlannedConfig, mined: int, made: Mapping[str, int]
) -> Iterator[SetEstimate]:
    """One for each kind of positive; none for a set that is left out or of unknown size.

    The `mined` negatives of a pair are assumed to be as long as its set's positives.
    """
    of_set = side.sets.get(name, SetConfig())
    pairs = made.get(name) or expected_rows(source)
    if not pairs or not of_set.weight:
        return
    anchor_length, positive_length, most = side.limits_of(name)
    kinds = source.tokens.get("positive") or [positive_length]
    negative_kinds, negatives = source.tokens.get("negative"), 0
    if source.negatives == "mine":
        negative_kinds, negatives = kinds, min(most, mined)
    elif negative_kinds and source.negatives == "given":
        negatives = min(most, source.max_negatives or most)
    for kind in kinds:
        texts = {
            "anchor": [_mean_cut(source.tokens.get("anchor"), anchor_length)],
            "positive": [float(min(kind, positive_length))],
            "negatives": [_mean_cut(negative_kinds, positive_length)] * negatives,
        }
        each, anchors = source.repeat * pairs // len(kinds), min(source.anchors or pairs, pairs)
        yield SetEstimate(name, each, anchors, source.weight * of_set.weight, texts, bool(source.tokens))


def _mean_cut(kinds: list[int] | None, limit: int) -> float:
    cut = [min(kind, limit) for kind in kinds or [limit]]
    return sum(cut) / len(cut)

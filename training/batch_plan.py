"""The batch plan: every global batch of a run, fixed before training from the seed alone.

A global batch holds rows of one set, of one length bucket and with the same number of negatives. No two of its rows
share an anchor or a positive text, and no row's positive is another row's anchor or negative. One optimizer step takes
one global batch; ranks take equal slices of it, so nothing here depends on the number of processes.
"""

import dataclasses
import hashlib
import itertools
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.schema.training import PlannedConfig
from pipeline.core.artefact import replacing
from pipeline.core.errors import UserError
from pipeline.core.seeding import generator

Integers = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class SetRows:
    """What planning needs to know about the rows of one set."""

    name: str
    anchors: Integers  # (rows,) number of the anchor text; equal texts have equal numbers in all columns of the set
    positives: Integers  # (rows,)
    negatives: list[Integers]  # per row, any number
    lengths: Integers  # (rows,) tokens of the row's longest text
    scores: NDArray[np.float32]  # (rows,) NaN: no score
    max_negatives: int  # most negatives taken from a row
    weight: float  # above 0; multiplies the set's share of the batches
    repeat: int  # passes over the set in one epoch
    angle: bool  # whether AnglE applies to the set

    def passages_of(self, batch: "GlobalBatch") -> Integers:
        """(rows, 1 + negatives): the positives of a batch of the set, and its chosen negatives."""
        chosen = zip(batch.rows.tolist(), batch.negatives, strict=True)
        negatives = np.stack([self.negatives[row][places] for row, places in chosen])
        return np.column_stack([self.positives[batch.rows], negatives])


@dataclasses.dataclass(frozen=True)
class GlobalBatch:
    """The rows of one optimizer step."""

    set: str
    rows: Integers  # (rows,) in the set
    negatives: Integers  # (rows, negatives): which of each row's negatives are taken

    def slice(self, rank: int, world_size: int) -> "GlobalBatch":
        """The rows of one of `world_size` processes, in rank order."""
        size = len(self.rows) // world_size
        own = slice(rank * size, (rank + 1) * size)
        return GlobalBatch(self.set, self.rows[own], self.negatives[own])


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """All global batches of a run in order, and the rows they leave out."""

    batches: list[GlobalBatch]
    left_out: dict[str, dict[str, int]]  # set -> reason -> rows of its first epoch

    @property
    def digest(self) -> str:
        """A sha256 of all batches: equal digests, equal runs."""
        digest = hashlib.sha256()
        for batch in self.batches:
            digest.update(f"{batch.set}:{batch.negatives.shape}".encode())
            digest.update(batch.rows.tobytes() + batch.negatives.tobytes())
        return digest.hexdigest()

    def write(self, path: Path) -> None:
        """Write the plan for `read_plan`."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                sets=np.array([batch.set for batch in self.batches]),
                shapes=np.array([batch.negatives.shape for batch in self.batches]),
                rows=np.concatenate([batch.rows for batch in self.batches]),
                negatives=np.concatenate([batch.negatives.ravel() for batch in self.batches]),
                left_out=np.array(json.dumps(self.left_out)),
            )


def read_plan(path: Path) -> BatchPlan:
    """The plan that `BatchPlan.write` wrote."""
    with np.load(path) as file:
        shapes = file["shapes"]
        rows = np.split(file["rows"], np.cumsum(shapes[:, 0])[:-1])
        negatives = np.split(file["negatives"], np.cumsum(shapes.prod(axis=1))[:-1])
        parts = zip(file["sets"].tolist(), rows, negatives, shapes, strict=True)
        batches = [GlobalBatch(name, own, taken.reshape(shape)) for name, own, taken, shape in parts]
        return BatchPlan(batches, json.loads(str(file["left_out"])))


def plan_batches(sets: Sequence[SetRows], side: PlannedConfig, seed: int, key: str = "training") -> BatchPlan:
    """Plan a whole run by the batch sizes, epochs and mixing of the side, whose config key is `key`.

    Raises UserError where a set yields no batch.
    """
    left_out: dict[str, Counter[str]] = {rows.name: Counter() for rows in sets}
    first = {rows.name: _epoch(rows, side, seed, 0, left_out[rows.name]) for rows in sets}
    for rows in sets:
        if not first[rows.name]:
            why, remedy = _no_batch(rows, left_out[rows.name])
            what = f"{len(rows.anchors)} rows yield no batch of at least {side.batch_multiple} rows with a loss{why}"
            remedy += f", or leave it out: ++{key}.sets={{{rows.name}:{{weight:0}}}}"
            raise UserError(what, where=f"set {rows.name}", remedy=remedy)
    streams = {rows.name: _stream(rows, side, seed, first[rows.name]) for rows in sets}
    available = {rows.name: rows.repeat * len(first[rows.name]) for rows in sets}
    quotas = _quotas(available, {rows.name: rows.weight for rows in sets}, side)
    batches = [next(streams[name]) for name in _order(quotas, side, seed)]
    return BatchPlan(batches, {name: dict(reasons) for name, reasons in left_out.items()})


def _no_batch(rows: SetRows, left_out: Counter[str]) -> tuple[str, str]:
    """(why the rows yield no batch, what to do about it)."""
    for what, texts in (("anchor", rows.anchors), ("positive", rows.positives)):
        most = int(np.unique(texts, return_counts=True)[1].max(initial=0))
        if left_out["repeated text"] and 2 * most > len(texts):
            return f": {most} have the same {what}, and a batch takes each text once", f"add rows with another {what}"
    if unused := left_out["score below 1 without AnglE"]:
        return f": {unused} have a score below 1, which only AnglE uses", "set angle_weight on the symmetric side"
    if (alike := left_out["nothing to tell apart"]) and not (rows.scores < 1).any():
        return f": {alike} would each be alone in a batch, without negatives", "raise batch_size or batch_tokens"
    if alike:
        return f": {alike} have the same score and no negatives", "add rows with other scores, or negatives"
    return "", "add rows"


def has_contrast(rows: SetRows, batch: GlobalBatch) -> bool:
    """Whether the contrastive loss of the batch has a negative, from another row or a hard one."""
    scores = rows.scores[batch.rows]
    usable = int((np.isnan(scores) | (scores == 1)).sum())
    return usable >= 2 or (usable == 1 and batch.negatives.shape[1] > 0)


def has_angle(rows: SetRows, batch: GlobalBatch) -> bool:
    """Whether AnglE applies to the batch and its pairs have more than one label."""
    labels = set(np.nan_to_num(rows.scores[batch.rows], nan=1.0).tolist())
    return rows.angle and len(labels | ({0.0} if batch.negatives.shape[1] else set())) > 1


def _stream(rows: SetRows, side: PlannedConfig, seed: int, first: list[GlobalBatch]) -> Iterator[GlobalBatch]:
    """A set's batches, epoch by epoch."""
    yield from first
    for epoch in itertools.count(1):
        yield from _epoch(rows, side, seed, epoch, Counter())


def batch_rows(side: PlannedConfig, longest: float, negatives: int) -> int:
    """Rows of a full batch, from the tokens of its longest text and the negatives of each row."""
    if side.batch_tokens is None:
        return side.batch_size
    fitting = int(side.batch_tokens // (longest * (1 + negatives))) // side.batch_multiple * side.batch_multiple
    return min(side.batch_size, max(side.batch_multiple, fitting))


def wanted_batches(
    available: Mapping[str, float], weights: Mapping[str, float], side: PlannedConfig
) -> tuple[int, dict[str, float]]:
    """The steps of a run, and how many of them each set should get, from the batches `available` in one epoch."""
    steps = side.max_steps or max(1, round(side.epochs * sum(available.values())))
    power = {"proportional": 1.0, "temperature": 1 / side.mixing_temperature, "round_robin": 0.0}
    shares = {name: weight * available[name] ** power[side.mixing] for name, weight in weights.items()}
    return steps, {name: steps * share / sum(shares.values()) for name, share in shares.items()}


def _quotas(available: Mapping[str, int], weights: Mapping[str, float], side: PlannedConfig) -> dict[str, int]:
    """How many batches each set gets: its share of the steps by largest remainder, and at least one."""
    steps, wanted = wanted_batches(available, weights, side)
    quotas = {name: max(1, int(value)) for name, value in wanted.items()}
    rounded_down = [name for name, value in wanted.items() if value >= 1]
    by_remainder = sorted(rounded_down, key=lambda name: (int(wanted[name]) - wanted[name], name))
    for name in by_remainder[: max(0, steps - sum(quotas.values()))]:
        quotas[name] += 1
    return quotas


def _order(quotas: dict[str, int], side: PlannedConfig, seed: int) -> list[str]:
    """The set of each batch: a set's batches are spread evenly over the run, each shifted randomly in its interval.

    Batches beyond `max_steps` are dropped from the end, but a set keeps its only batch while others have more.
    """
    places = []
    for name, quota in sorted(quotas.items()):
        shift = generator(seed, "plan", "order", name).random(quota)
        shift *= side.mixing != "round_robin"
        places += [((index + shift[index]) / quota, name) for index in range(quota)]
    order, left = list[str](), dict(quotas)
    beyond = len(places) - (side.max_steps or len(places))
    for _, name in sorted(places, reverse=True):
        if beyond > 0 and left[name] > 1:
            beyond -= 1
            left[name] -= 1
        else:
            order.append(name)
    return order[::-1][: side.max_steps]


def _epoch(rows: SetRows, side: PlannedConfig, seed: int, epoch: int, left_out: Counter[str]) -> list[GlobalBatch]:
    """One pass over a set, its batches in random order; `left_out` counts the rows in no batch."""
    random = generator(seed, "plan", rows.name, str(epoch))
    taken = np.minimum([len(texts) for texts in rows.negatives], rows.max_negatives)
    useful = np.isnan(rows.scores) | (rows.scores == 1) | rows.angle
    left_out["score below 1 without AnglE"] += int((~useful).sum())
    batches: list[GlobalBatch] = []
    for number in np.unique(taken[useful]):
        group = np.flatnonzero(useful & (taken == number))
        chosen = {row: random.permutation(len(rows.negatives[row]))[:number] for row in group.tolist()}
        for members in _fill(rows, group, chosen, side, random, left_out):
            batch = GlobalBatch(rows.name, np.array(members), np.array([chosen[row] for row in members]))
            if has_contrast(rows, batch) or has_angle(rows, batch):
                batches.append(batch)
            else:
                left_out["nothing to tell apart"] += len(members)
    return [batches[index] for index in random.permutation(len(batches))]


def _fill(
    rows: SetRows,
    group: Integers,
    chosen: dict[int, Integers],
    side: PlannedConfig,
    random: np.random.Generator,
    left_out: Counter[str],
) -> Iterator[list[int]]:
    """Batches of rows with the same number of negatives, bucket by bucket from the shortest.

    A bucket is a run of rows sorted by length, a whole number of batches long, so that only batches of the last bucket
    are smaller; its longest row determines its batch size. Rows that conflict with every batch of their bucket wait for
    a later one. A bucket takes at most as many of them again as it is long, those that waited longest first: where few
    texts are repeated in most rows, nearly all wait, and work would grow with the square of the rows.
    """
    multiple, negatives = side.batch_multiple, len(chosen[int(group[0])])
    shuffled = random.permutation(group)
    ordered = shuffled[np.argsort(rows.lengths[shuffled], kind="stable")]
    waiting, position = deque[int](), 0
    while position < len(ordered):
        largest = ordered[position : position + side.bucket_batches * side.batch_size]  # not all: quadratic in the rows
        size = _size(rows.lengths[largest], negatives, side)
        wanted = max(size, side.bucket_batches * size - len(waiting))
        is_last = position + wanted >= len(ordered)
        again = len(waiting) if is_last else min(len(waiting), side.bucket_batches * size)
        bucket = [waiting.popleft() for _ in range(again)] + ordered[position : position + wanted].tolist()
        position += wanted
        batches, unplaced = _place(rows, np.array(bucket)[random.permutation(len(bucket))].tolist(), chosen, size)
        waiting += unplaced
        if not is_last:
            waiting += [row for batch in batches if len(batch) < size for row in batch]
            batches = [batch for batch in batches if len(batch) == size]
        for batch in batches:
            whole = len(batch) // multiple * multiple
            left_out["less than a multiple"] += len(batch) - whole
            if whole:
                yield batch[:whole]
    left_out["repeated text"] += len(waiting)


def _size(lengths: Integers, negatives: int, side: PlannedConfig) -> int:
    """Batch size of a bucket that begins with the first of these rising lengths."""
    size = side.batch_size
    while True:
        longest = lengths[: side.bucket_batches * size][-1]
        fitting = batch_rows(side, float(longest), negatives)
        if size <= fitting:
            return size
        size = max(fitting, size // 2 // side.batch_multiple * side.batch_multiple)


def _place(
    rows: SetRows, bucket: list[int], chosen: dict[int, Integers], size: int
) -> tuple[list[list[int]], list[int]]:
    """Put each row into the first batch that takes it; returns the batches and the rows that fit none.

    No text of a row may be a false negative of another row; only negatives may occur twice. Batches are bits of an
    integer: where a question has a hundred rows, most wait for many buckets, so each check must be cheap.
    """
    batches = [list[int]() for _ in range(-(-len(bucket) // size))]
    unplaced, open_batches = list[int](), (1 << len(batches)) - 1
    pairs, texts = defaultdict[int, int](int), defaultdict[int, int](int)  # text -> the batches that hold it
    columns = rows.anchors[bucket].tolist(), rows.positives[bucket].tolist()
    for row, anchor, positive in zip(bucket, *columns, strict=True):
        allowed = open_batches & ~(texts.get(anchor, 0) | texts.get(positive, 0))
        negatives = rows.negatives[row][chosen[row]].tolist() if allowed else []
        for text in negatives:
            allowed &= ~pairs.get(text, 0)
        if not allowed:
            unplaced.append(row)
            continue
        first = allowed & -allowed
        batch = batches[first.bit_length() - 1]
        batch.append(row)
        for text in (anchor, positive):
            pairs[text] |= first
        for text in (anchor, positive, *negatives):
            texts[text] |= first
        if len(batch) == size:
            open_batches ^= first
    return [batch for batch in batches if batch], unplaced

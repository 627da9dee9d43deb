"""Candidates, their scores, and the search for the best: a grid over the simplex or beyond it, then refined.

A point is the weights of the models after the base; the base gets the rest up to 1. With two models after the base
the weights lie in a plane, which a grid of some tens of points covers without assumptions; every step is the same on
every machine and needs no random numbers.

Training can cost retrieval quality outside the trained domains, which dev rows of the training sets don't show. So a
guard rejects candidates that lose retrieval against the base, on sets that no side trains on. A loss of a few
hundredths on a few hundred queries may be chance: a candidate is rejected where its loss is significant (its whole
interval is above 0) and above the limit. The interval is shown with every loss.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from merging.blend import Blend, State
from pipeline.core.console import log, progress
from pipeline.core.seeding import generator
from training.dev_scores import DevEvaluator, DevScore, Evaluators

Point = tuple[Fraction, ...]
CONFIDENCE = 0.95  # of the guard's intervals
RESAMPLED = 2**23  # queries of all resamples in memory at once


@dataclass(frozen=True)
class GuardLoss:
    """nDCG@10 lost on a guard set against the base, as a mean over its queries; negative for a gain."""

    mean: float
    low: float  # the paired bootstrap's 95 % interval over queries
    high: float

    @property
    def sure(self) -> bool:
        """Whether the loss is significant: its whole interval is above 0."""
        return self.low > 0

    def __str__(self) -> str:
        return f"{self.mean:.4f} ({self.low:.4f} – {self.high:.4f})"

    @property
    def as_gain(self) -> str:
        """The gain with its interval, as text; losses are negative."""
        return f"{0 - self.mean:+.3f} ({0 - self.high:+.3f} to {0 - self.low:+.3f})"


@dataclass(frozen=True)
class Candidate:
    """One merge and its scores; higher is better, except for the losses."""

    origin: str  # what proposed it first: a model's name, uniform, fixed, lm_cocktail, search, extrapolated, ...
    weights: dict[str, float] | None  # by model; None where the merge is not a weighted sum
    dev: DevScore  # a search maximises its `score`
    guard: dict[str, float]  # nDCG@10 by guard set
    guard_losses: dict[str, GuardLoss]  # by guard set
    allowed: bool | None  # by the guard; None: no guard

    @property
    def deciding_loss(self) -> GuardLoss | None:
        """The loss that decides: the largest significant one, else the largest; None without guard sets."""
        return max(self.guard_losses.values(), key=lambda loss: (loss.sure, loss.mean), default=None)

    def row(self) -> dict[str, Any]:
        """One line of search.csv; without a guard its cells are empty."""
        weights = {f"weight_{name}": weight for name, weight in (self.weights or {}).items()}
        loss = self.deciding_loss
        deciding = {"guard_loss": loss and loss.mean, "guard_loss_low": loss and loss.low}
        deciding |= {"guard_loss_high": loss and loss.high, "allowed": self.allowed}
        scores = {"dev": self.dev.score, **self.dev.sides, **deciding}
        sets = {f"dev/{name}": score for name, score in self.dev.by_set.items()}
        for name, score in self.guard.items():
            loss = self.guard_losses[name]
            sets |= {f"guard/{name}": score, f"guard/{name}/loss": loss.mean}
            sets |= {f"guard/{name}/loss_low": loss.low, f"guard/{name}/loss_high": loss.high}
        return {"origin": self.origin, **weights, **scores, **sets}


class CandidateScorer:
    """Scores candidates in memory and keeps all of them; the same weights are scored once, the base first.

    `limit` is the nDCG@10 that a candidate may lose on any one guard set (None: all of it); `seed` is for resampling
    the queries, which is the same for every candidate.
    """

    def __init__(self, blend: Blend, dev: DevEvaluator, guard: Evaluators, limit: float | None, seed: int) -> None:
        self.blend, self.dev, self.guard, self.limit, self.seed = blend, dev, guard, limit, seed
        self.candidates: list[Candidate] = []
        self._base: dict[str, NDArray[np.float64]] = {}  # nDCG@10 of each query of the guard sets
        self._known: dict[tuple[float, ...], Candidate] = {}

    def score(self, weights: Mapping[str, float], origin: str) -> Candidate:
        """The candidate with these weights."""
        key = tuple(round(weights[name], 9) for name in self.blend.names)
        if key not in self._known:
            self.blend.set(weights)
            self._known[key] = self._measured(origin, dict(weights))
        return self._known[key]

    def score_state(self, state: State, origin: str) -> Candidate:
        """The candidate with model weights that are not a weighted sum of the models."""
        self.blend.set_state(state)
        return self._measured(origin, None)

    def _measured(self, origin: str, weights: dict[str, float] | None) -> Candidate:
        found = self.guard.by_query(self.blend.model)
        self._base = self._base or found
        losses = {name: paired_guard_loss(self._base[name], found[name], self.seed, name) for name in found}
        guard = {name: float(scores.mean()) for name, scores in found.items()}
        dev = self.dev.score_model(self.blend.model)
        candidate = Candidate(origin, weights, dev, guard, losses, allowed_by(losses, self.limit))
        self.candidates.append(candidate)
        return candidate


def paired_guard_loss(base: NDArray[np.float64], scores: NDArray[np.float64], seed: int, name: str) -> GuardLoss:
    """The loss on the set `name`, from the base's and another model's scores of the same queries (at least two)."""
    lost = base - scores
    random = generator(seed, "merge", "guard", "bootstrap", name)
    batch = max(1, RESAMPLED // len(lost))
    found = bootstrap(
        (lost,), np.mean, method="percentile", confidence_level=CONFIDENCE, batch=batch, rng=random
    ).confidence_interval
    return GuardLoss(float(lost.mean()), float(found.low), float(found.high))


def allowed_by(losses: Mapping[str, GuardLoss], limit: float | None) -> bool | None:
    """Whether the guard allows these losses: none is significant and above the limit; None without a guard."""
    if limit is None or not losses:
        return None
    return not any(loss.sure and loss.mean > limit for loss in losses.values())


@dataclass(frozen=True)
class Region:
    """The allowed weights of the models after the base: each at least 0, their sum within bounds."""

    least: Fraction  # exclusive, unless 0
    most: Fraction  # inclusive

    def holds(self, point: Point) -> bool:
        """Whether the point is in the region."""
        total = sum(point)
        return all(weight >= 0 for weight in point) and total <= self.most and (total > self.least or not self.least)


SIMPLEX = Region(Fraction(0), Fraction(1))


def beyond(limit: float) -> Region:
    """Extrapolations: the task vectors' weights sum to more than 1, up to `limit`."""
    return Region(Fraction(1), Fraction(limit).limit_denominator(1000))


def grid(region: Region, dimensions: int, step: Fraction) -> Iterator[Point]:
    """All points of the region whose weights are multiples of `step`."""
    found: list[Point] = [()]
    for _ in range(dimensions):  # one model at a time: with many, nearly all products of levels are beyond the region
        rooms = [int((region.most - sum(point)) / step) for point in found]
        found = [(*point, step * n) for point, room in zip(found, rooms, strict=True) for n in range(room + 1)]
    return filter(region.holds, found)


def neighbours(point: Point, region: Region, step: Fraction) -> Iterator[Point]:
    """The region's points one step away: weight moved from or to the base, or between models."""
    found: list[tuple[int, ...]] = [()]
    for place, weight in enumerate(point, start=1):
        most = 1 + sum(other > 0 for other in point[place:])  # which may be moved down after this one
        allowed = (0, 1) if weight < step else (-1, 0, 1)
        found = [(*moves, move) for moves in found for move in allowed if sum(moves) + move <= most]
    for moves in found:
        moved = tuple(weight + step * move for weight, move in zip(point, moves, strict=True))
        if any(moves) and abs(sum(moves)) <= 1 and region.holds(moved):
            yield moved


def best_of_grid(
    region: Region,
    models: Sequence[str],
    step: float,
    refinements: int,
    score: Callable[[dict[str, float]], Candidate],
    what: str = "search",
) -> Candidate | None:
    """The best candidate of a refined grid over `region` that the guard doesn't reject; None, and the reason logged.

    Args:
        models: names, the base first.
        step: the first grid's step; each refinement halves it around the best candidate so far.
        score: scores weights by model name.
        what: the search's name for its progress bar.
    """
    width = Fraction(1, round(1 / step))  # divides 1
    first = list(grid(region, len(models) - 1, width))
    tried = {point: score(weights_of(point, models)) for point in progress(first, f"{what}: {len(first)} candidates")}
    for _ in range(refinements):
        if (best := _best(tried)) is None:
            break
        width /= 2
        around = list(neighbours(best, region, width))  # all new: coarser grids don't contain them
        for point in progress(around, f"{what}: {len(around)} candidates around the best"):
            tried[point] = score(weights_of(point, models))
    if (best := _best(tried)) is not None:
        return tried[best]
    if first:
        log.warning("merge: the guard allows no %s candidate", what)
    else:
        bounds = "merge: there is no %s candidate: no multiple of merging.grid_step=%g is within its bounds"
        log.warning(bounds, what, step)
    return None


def weights_of(point: Point, models: Sequence[str]) -> dict[str, float]:
    """Weights by model name; the base, named first, gets the rest up to 1."""
    base, *others = models
    return {base: float(1 - sum(point)), **{name: float(weight) for name, weight in zip(others, point, strict=True)}}


def _best(tried: dict[Point, Candidate]) -> Point | None:
    """The point with the highest dev score that isn't rejected; among equal ones, the one nearest to the base."""
    allowed = [point for point, candidate in tried.items() if candidate.allowed is not False]
    return max(allowed, key=lambda point: (tried[point].dev.score, -sum(point)), default=None)

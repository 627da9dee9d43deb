"""The search for merge weights: a grid over the simplex or beyond it, refined around its best candidate.

A point is the weights of the models after the base, in units of a step; the base has the rest up to 1. With two
models after the base the objective lies on a plane, which a grid of some tens of points covers without assumptions;
every step is the same on every machine and needs no random numbers.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import NamedTuple

from merging.candidates import Candidate
from pipeline.core.console import progress

Point = tuple[Fraction, ...]


class Region(NamedTuple):
    """Where the weights of the models after the base may lie: each at least 0, their sum within bounds."""

    least: Fraction  # exclusive, unless 0
    most: Fraction  # inclusive

    def __contains__(self, point: object) -> bool:
        assert isinstance(point, tuple)
        total = sum(point)
        return all(weight >= 0 for weight in point) and total <= self.most and (total > self.least or not self.least)


SIMPLEX = Region(Fraction(0), Fraction(1))


def beyond(limit: float) -> Region:
    """Extrapolations: the sum of the task vectors' weights lies above 1, up to `limit`."""
    return Region(Fraction(1), Fraction(limit).limit_denominator(1000))


def grid(region: Region, dimensions: int, step: Fraction) -> Iterator[Point]:
    """All points of the region whose weights are multiples of `step`."""
    levels = [step * count for count in range(int(region.most / step) + 1)]
    yield from (point for point in product(levels, repeat=dimensions) if point in region)


def neighbours(point: Point, region: Region, step: Fraction) -> Iterator[Point]:
    """The points of the region one step away: a weight taken from or given to the base, or moved between models."""
    for moves in product((-1, 0, 1), repeat=len(point)):
        moved = tuple(weight + step * move for weight, move in zip(point, moves, strict=True))
        if any(moves) and abs(sum(moves)) <= 1 and moved in region:
            yield moved


def search(
    region: Region,
    models: Sequence[str],
    step: float,
    refinements: int,
    score: Callable[[dict[str, float]], Candidate],
    what: str = "search",
) -> Candidate | None:
    """The best candidate of a refined grid over `region` that the guard allows, or None if it allows none.

    Args:
        models: names, the base first.
        step: the first grid's step; each refinement halves it around the best candidate so far.
        score: scores weights by model name.
        what: the search's name for its progress bar.
    """
    width = Fraction(step).limit_denominator(1000)
    first = list(grid(region, len(models) - 1, width))
    tried = {point: score(weights_of(point, models)) for point in progress(first, f"{what}: {len(first)} candidates")}
    for _ in range(refinements):
        best = _best(tried)
        if best is None:
            break
        width /= 2
        around = [point for point in neighbours(best, region, width) if point not in tried]
        for point in progress(around, f"{what}: {len(around)} candidates around the best"):
            tried[point] = score(weights_of(point, models))
    best = _best(tried)
    return None if best is None else tried[best]


def weights_of(point: Point, models: Sequence[str]) -> dict[str, float]:
    """Weights by model name; the base, named first, has what is missing to 1."""
    base, *others = models
    return {base: float(1 - sum(point)), **{name: float(weight) for name, weight in zip(others, point, strict=True)}}


def _best(tried: dict[Point, Candidate]) -> Point | None:
    """The allowed point with the highest dev score; of equal ones, the one nearest to the base."""
    allowed = [point for point, candidate in tried.items() if candidate.allowed]
    return max(allowed, key=lambda point: (tried[point].dev, -sum(point)), default=None)

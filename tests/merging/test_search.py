"""The grid search on known surfaces."""

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from math import comb
from types import SimpleNamespace
from typing import Any

import pytest

from merging.search import SIMPLEX, Candidate, CandidateScorer, best_of_grid, beyond, grid, neighbours, weights_of
from training.dev_scores import DevScore

MODELS = ("init", "symmetric", "asymmetric")
Surface = Callable[[float, float], float]


def scorer(surface: Surface, allowed: Callable[[float, float], bool] = lambda *_: True) -> Callable:
    """A scorer of a known surface over the weights of the two sides."""

    def score(weights: dict[str, float]) -> Candidate:
        assert sum(weights.values()) == pytest.approx(1)
        place = weights["symmetric"], weights["asymmetric"]
        return Candidate(
            "search", weights, DevScore({"symmetric": {"set": surface(*place)}}, {"set": 1}), {}, {}, allowed(*place)
        )

    return score


def peak(symmetric: float, asymmetric: float) -> Surface:
    return lambda x, y: 1 - (x - symmetric) ** 2 - (y - asymmetric) ** 2


def test_the_grid_of_three_models_is_the_triangle() -> None:
    points = list(grid(SIMPLEX, 2, Fraction(1, 4)))
    assert len(points) == 15
    assert all(sum(point) <= 1 for point in points)
    assert {(0, 0), (1, 0), (0, 1)} <= set(points)


def test_the_grid_beyond_is_outside_the_triangle() -> None:
    points = list(grid(beyond(1.5), 2, Fraction(1, 4)))
    assert points
    assert all(1 < sum(point) <= Fraction(3, 2) and min(point) >= 0 for point in points)
    assert set(grid(beyond(1.2), 1, Fraction(1, 5))) == {(Fraction(6, 5),)}  # 1.2 as it is written, not as a float


def test_neighbours_stay_inside() -> None:
    assert set(neighbours((Fraction(0), Fraction(0)), SIMPLEX, Fraction(1, 2))) == {(0.5, 0), (0, 0.5)}
    assert len(list(neighbours((Fraction(1, 4), Fraction(1, 4)), SIMPLEX, Fraction(1, 8)))) == 6


def test_grid_and_neighbours_of_many_models_are_only_looked_for_within_the_region() -> None:
    """Of 14 models 3 ** 13 neighbours and 5 ** 13 grid points, a billion, are nearly all outside."""
    assert len(list(grid(SIMPLEX, 13, Fraction(1, 4)))) == comb(13 + 4, 4)
    corner = (Fraction(1), *[Fraction(0)] * 12)
    assert len(list(neighbours(corner, SIMPLEX, Fraction(1, 8)))) == 13  # some of its weight to another model
    inside, step = (Fraction(1, 4), Fraction(0), Fraction(1, 2)), Fraction(1, 8)
    moves = [move for move in product((-1, 0, 1), repeat=3) if any(move) and abs(sum(move)) <= 1]
    moved = [tuple(weight + step * part for weight, part in zip(inside, move, strict=True)) for move in moves]
    assert list(neighbours(inside, SIMPLEX, step)) == [point for point in moved if SIMPLEX.holds(point)]


def test_refinement_closes_in_on_the_peak() -> None:
    score = scorer(peak(0.375, 0.3125))
    best = best_of_grid(SIMPLEX, MODELS, 0.25, 2, score)
    assert best is not None and best.weights is not None
    assert best.weights == pytest.approx({"init": 0.3125, "symmetric": 0.375, "asymmetric": 0.3125})


def test_the_guard_bounds_the_search() -> None:
    best = best_of_grid(SIMPLEX, MODELS, 0.25, 1, scorer(peak(1, 0), allowed=lambda x, y: x <= 0.5))
    assert best is not None and best.weights is not None
    assert best.weights["symmetric"] == 0.5


def test_there_is_no_candidate_where_the_guard_allows_none(caplog: pytest.LogCaptureFixture) -> None:
    assert best_of_grid(beyond(1.5), MODELS, 0.25, 1, scorer(peak(1, 1), allowed=lambda *_: False)) is None
    assert caplog.messages == ["merge: the guard allows no search candidate"]


def test_of_equal_scores_the_one_nearest_to_the_base_is_taken() -> None:
    best = best_of_grid(SIMPLEX, MODELS, 0.25, 0, scorer(lambda x, y: 1.0))
    assert best is not None and best.weights == {"init": 1.0, "symmetric": 0.0, "asymmetric": 0.0}
    best = best_of_grid(SIMPLEX, MODELS, 0.25, 0, scorer(lambda x, y: float(x >= 0.25 or y >= 0.5)))
    assert best is not None and best.weights == {"init": 0.75, "symmetric": 0.25, "asymmetric": 0.0}


def test_extrapolation_finds_a_peak_beyond_the_simplex() -> None:
    best = best_of_grid(beyond(1.5), MODELS, 0.25, 1, scorer(peak(0.75, 0.625)))
    assert best is not None and best.weights == pytest.approx({"init": -0.375, "symmetric": 0.75, "asymmetric": 0.625})


def test_two_models_are_searched_along_a_line() -> None:
    tried: list[float] = []

    def score(weights: dict[str, float]) -> Candidate:
        tried.append(weights["other"])
        return Candidate(
            "search", weights, DevScore({"symmetric": {"set": -abs(weights["other"] - 0.4)}}, {"set": 1}), {}, {}, None
        )

    best = best_of_grid(SIMPLEX, ("base", "other"), 0.25, 2, score)
    assert best is not None and best.weights is not None
    assert best.weights["other"] == pytest.approx(0.375)
    assert len(tried) <= 5 + 2 + 2


def test_a_small_step_is_taken_as_asked() -> None:
    tried: list[float] = []

    def score(weights: dict[str, float]) -> Candidate:
        tried.append(weights["other"])
        return Candidate("search", weights, DevScore({"symmetric": {"set": 0.0}}, {"set": 1}), {}, {}, None)

    best_of_grid(SIMPLEX, ("base", "other"), 0.0005, 0, score)
    assert len(tried) == 2001 and tried[1] == pytest.approx(0.0005)


def test_the_same_weights_are_scored_once_and_a_near_candidate_is_another() -> None:
    blended: list[dict[str, float]] = []
    blend: Any = SimpleNamespace(names=("base", "other"), model=None, set=blended.append)
    dev: Any = SimpleNamespace(score_model=lambda model: DevScore({"symmetric": {"set": 0.5}}, {"set": 1}))
    guard: Any = SimpleNamespace(by_query=lambda model: {})
    found = CandidateScorer(blend, dev, guard, limit=None, seed=1)
    first = found.score({"base": 0.1, "other": 0.9}, "fixed")
    assert found.score({"base": 1 - 0.9, "other": 0.9}, "search") is first and first.origin == "fixed"
    near = found.score({"base": 0.1025, "other": 0.8975}, "search")
    assert near is not first and found.candidates == [first, near] and len(blended) == 2


def test_the_base_has_the_rest() -> None:
    point = (Fraction(1, 3), Fraction(1, 6))
    assert weights_of(point, MODELS) == pytest.approx({"init": 0.5, "symmetric": 1 / 3, "asymmetric": 1 / 6})

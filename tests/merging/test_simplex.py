"""The plot of the candidates."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from merging.search import Candidate
from merging.simplex import draw_simplex
from training.dev_scores import DevScore

SVG = "{http://www.w3.org/2000/svg}"


def candidate(dev: float, allowed: bool | None, **weights: float) -> Candidate:
    return Candidate("search", weights, DevScore({"symmetric": {"set": dev}}, {"set": 1}), {}, 0.0, allowed)


@pytest.mark.parametrize("models", [("init", "one"), ("init", "one", "two"), ("init", "one", "two", "three")])
def test_every_candidate_and_the_taken_one_are_drawn(tmp_path: Path, models: tuple[str, ...]) -> None:
    rest = dict.fromkeys(models[2:], 0.0)
    tried = [
        candidate(0.5, None, init=1.0, one=0.0, **rest),  # nothing guards
        candidate(0.7, True, init=0.5, one=0.5, **rest),
        candidate(0.8, False, init=0.0, one=1.0, **rest),
        Candidate("ties", None, DevScore({"symmetric": {"set": 0.6}}, {"set": 1}), {}, 0.0, True),
    ]
    compared = {"init": tried[0], "search": tried[1], "ties": tried[3]}  # a single model has no ring
    draw_simplex(tmp_path / "simplex.svg", models, tried, compared)
    root = ElementTree.parse(tmp_path / "simplex.svg").getroot()
    groups = [group for group in root.iter(f"{SVG}g") if "PathCollection" in group.get("id", "")]
    assert len(groups) == 3 + 3  # allowed, rejected and the ring around the searched one; each in the legend too
    first, second = groups[0].iter(f"{SVG}use")
    assert "#440154" in first.get("style", "")  # viridis's lowest
    (left, low), (right, high) = ([float(point.get(axis, "")) for axis in "xy"] for point in (first, second))
    assert left < right and (low == high if len(models) > 2 else low > high)  # no weight of two, or the dev score
    text = (tmp_path / "simplex.svg").read_text(encoding="utf-8")
    assert "rejected by the guard" in text and "weight of one" in text


def test_the_same_candidates_yield_the_same_bytes(tmp_path: Path) -> None:
    tried = [candidate(0.5, True, init=1.0, one=0.0), candidate(0.7, True, init=0.5, one=0.5)]
    for name in ("first.svg", "second.svg"):
        draw_simplex(tmp_path / name, ("init", "one"), tried, {})
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()

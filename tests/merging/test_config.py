"""Impossible settings are named before anything runs."""

import pytest

from configs.schema.merging import MergingConfig


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"method": "fixed"}, ("weights", "none are given")),
        ({"method": "fixed", "weights": {"init": 0.5}}, ("weights", "sum to 0.5")),
        ({"method": "fixed", "weights": {"init": 1.5, "symmetric": -0.5}}, ("weights", "symmetric is -0.5, below 0")),
        ({"method": "fixed", "weights": {"init": float("nan")}}, ("weights", "init is nan")),
        ({"method": "fixed", "weights": {"initial": 1.0}}, ("weights", "initial is not among")),
        ({"method": "average"}, ("method", "must be one of")),
        ({"models": ["init"]}, ("models", "at least two")),
        ({"models": ["init", "init"]}, ("models", "at least two")),
        ({"method": "search"}, ("guard_sources", "at least two")),
        ({"method": "search", "guard_sources": ["one", "one"]}, ("guard_sources", "at least two")),
        ({"temperature": 0.0}, ("temperature", "above 0")),
        ({"grid_step": 0.3}, ("grid_step", "must divide 1")),
        ({"guard": -0.1}, ("guard", "at least 0")),
        ({"dtype": "float8"}, ("dtype", "must be one of")),
        ({"score": False}, ("score", "must be true")),
        ({"extrapolation_limit": 0.9}, ("extrapolation_limit", "between 1 and 3")),
        ({"examples_per_set": 0}, ("examples_per_set", "at least 1")),
    ],
)
def test_impossible_values_are_named(settings: dict, problem: tuple[str, str]) -> None:
    field, words = problem
    assert any(name == field and words in text for name, text in MergingConfig(**settings).problems())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "search", "guard_sources": ["one", "two"]},
        {"method": "search", "guard": None},
        {"method": "fixed", "weights": {"symmetric": 0.3, "asymmetric": 0.7}},
        {"method": "fixed", "weights": {"symmetric": 0.9, "asymmetric": 0.8}, "extrapolate": True},
        {"method": "fixed", "weights": {"init": -0.7, "symmetric": 0.9, "asymmetric": 0.8}, "extrapolate": True},
    ],
)
def test_possible_values_pass(settings: dict) -> None:
    assert not list(MergingConfig(**settings).problems())

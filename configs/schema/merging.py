"""Settings of the merge stage."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

OWN_METHODS = ("fixed", "lm_cocktail", "search")
MERGEKIT_METHODS = ("ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "slerp", "model_stock", "sce")
COMPARISONS = ("uniform", "lm_cocktail", "search", "extrapolated", *MERGEKIT_METHODS)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class MergingConfig:
    """Which models are merged, with which weights, and on which data the weights are chosen."""

    method: str = "lm_cocktail"  # fixed, lm_cocktail, search, or one of mergekit's (extra "merge")
    models: list[str] = field(default_factory=lambda: ["init", "symmetric", "asymmetric"])  # the base first
    compare: list[str] = field(default_factory=lambda: list(COMPARISONS[:4]))  # scored beside the choice
    weights: dict[str, float] = field(default_factory=dict)  # of method fixed, by model
    extrapolate: bool = False  # the other models' weights may exceed 1; the base gets 1 minus their sum
    dtype: str = "float32"  # of the merged weights; the sum itself is always float32
    examples_per_set: int = 100  # dev rows of each set that LM-Cocktail sees
    temperature: float = 5.0  # of LM-Cocktail's softmax(-loss / temperature); the package's, near-uniform
    temperatures: list[float] = field(default_factory=lambda: [5.0, 1.0, 0.2, 0.05])  # shown beside it
    negatives: int = 7  # of an LM-Cocktail example; missing ones are other passages of the set
    batch_size: int = 2  # LM-Cocktail examples scored against each other; the package's default
    grid_step: float = 0.25  # distance of the first grid's weights
    refinements: int = 1  # times the step is halved around the best candidate so far
    extrapolation_limit: float = 1.5  # largest sum of the weights of the models after the base
    guard: float | None = 0.01  # nDCG@10 that a candidate may lose against the base on a guard set; null: off
    guard_sources: list[str] = field(default_factory=list)  # sets of data.held_out, at least two
    guard_queries: int = 200  # queries of each guard set
    guard_candidates: int = 1000  # passages of each guard set, the answers included
    report_sources: list[str] = field(default_factory=list)  # sets of data.held_out, shown but never chosen by
    parameters: dict[str, dict[str, float]] = field(default_factory=dict)  # mergekit's, as ties: {density: 0.5}
    score: bool = True  # false: a fixed merge without dev rows (compare must be empty)

    def problems(self) -> Iterator[tuple[str, str]]:
        """Impossible values, as (field, what is wrong)."""
        if self.method not in (*OWN_METHODS, *MERGEKIT_METHODS):
            yield "method", f"must be one of {', '.join((*OWN_METHODS, *MERGEKIT_METHODS))}"
        if len(set(self.models)) < 2 or len(set(self.models)) != len(self.models):
            yield "models", "must name at least two different models"
        for name in set(self.compare) - set(COMPARISONS):
            yield "compare", f"{name} is not one of {', '.join(COMPARISONS)}"
        if not self.score and (self.method != "fixed" or self.compare):
            yield "score", "must be true unless the method is fixed and compare is empty"
        if self.dtype not in DTYPES:
            yield "dtype", f"must be one of {', '.join(DTYPES)}"
        yield from self._problems_of_weights()
        yield from self._problems_of_search()

    def _problems_of_weights(self) -> Iterator[tuple[str, str]]:
        if self.method == "fixed":
            for problem in weight_problems(self.weights, self.models, self.extrapolate):
                yield "weights", problem
        if not all(math.isfinite(value) and value > 0 for value in [self.temperature, *self.temperatures]):
            yield "temperature", "must be above 0, also in temperatures"
        for name in ("examples_per_set", "negatives", "batch_size"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1"

    def _problems_of_search(self) -> Iterator[tuple[str, str]]:
        if not 0 < self.grid_step <= 1 or abs(1 / self.grid_step - round(1 / self.grid_step)) > 1e-9:
            yield "grid_step", "must divide 1"
        if self.refinements < 0:
            yield "refinements", "must be at least 0"
        if not 1 <= self.extrapolation_limit <= 3:
            yield "extrapolation_limit", "must lie between 1 and 3"
        if self.guard is not None and not 0 <= self.guard < 1:
            yield "guard", "must be at least 0 and below 1, or null"
        if self.guard is not None and self.method == "search" and len(set(self.guard_sources)) < 2:
            yield "guard_sources", "must name at least two sets that no side trains on (guard=null: none)"
        for name in ("guard_queries", "guard_candidates"):
            if getattr(self, name) < 2:
                yield name, "must be at least 2"


def weight_problems(weights: dict[str, float], models: list[str], extrapolate: bool) -> Iterator[str]:
    """What is wrong with weights given by hand, in words; the first of `models` is the base."""
    if not weights:
        yield "none are given: take merging=fixed, or set merging.weights={<model>: <number>, ...}"
    for name, weight in weights.items():
        if name not in models:
            yield f"{name} is not among the merged models {', '.join(models)}"
        elif not math.isfinite(weight):
            yield f"{name} is {weight}, which is no number to weigh a model with"
        elif weight < 0 and not (extrapolate and name == models[0]):
            yield f"{name} is {weight:g}, below 0"
    if weights and not extrapolate and not abs(sum(weights.values()) - 1) <= 1e-6:
        yield f"they sum to {sum(weights.values()):g} instead of 1 (extrapolate=true allows other sums)"

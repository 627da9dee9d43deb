"""Settings of the merge stage."""

from collections.abc import Iterator
from dataclasses import dataclass

from configs.schema.rules import setting

MERGEKIT_METHODS = ("ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "slerp", "model_stock", "sce")
METHOD_NAMES = ("uniform", "fixed", "lm_cocktail", "search", "extrapolated", *MERGEKIT_METHODS)


@dataclass
class MergingConfig:
    """Which models are merged with which weights, and on which data the weights are chosen."""

    # Those of mergekit need the extra "merge".
    method: str = setting("lm_cocktail", choices=METHOD_NAMES)
    # The base first; this run's stages, or paths and patterns, such as runs/study-*/merge/model for a soup.
    models: list[str] = setting(["init", "symmetric", "asymmetric"])
    # Scored in addition to the method.
    compare: list[str] = setting(["uniform", "lm_cocktail", "search", "extrapolated"], choices=METHOD_NAMES)
    weights: dict[str, float] = setting({})  # of method fixed, by model as named in `models`
    extrapolate: bool = False  # allow a sum of the other models' weights above 1; the base gets 1 minus their sum
    # Of the merged weights; they are summed in float32.
    dtype: str = setting("float32", choices=("float32", "bfloat16", "float16"))
    examples_per_set: int = setting(100, least=1)  # dev rows per set for LM-Cocktail
    # Of LM-Cocktail's softmax(-loss / temperature); the package's default, near-uniform.
    temperature: float = setting(5.0, above=0)
    negatives: int = setting(7, least=1)  # per LM-Cocktail example; filled up with other passages of the set
    batch_size: int = setting(2, least=1)  # LM-Cocktail examples scored against each other; the package's default
    grid_step: float = setting(0.25, above=0, most=1)  # spacing of the first grid
    refinements: int = setting(1, least=0)  # how often the step is halved around the best candidate so far
    # Maximum sum of the weights of the models other than the base.
    extrapolation_limit: float = setting(1.5, least=1, most=3)
    # nDCG@10 that a candidate may lose against the base on a guard set. It is rejected if it loses more and the loss is
    # significant: its 95 % interval over the set's queries is above 0. null: off.
    guard: float | None = setting(0.01, least=0, below=1)
    guard_sources: list[str] = setting([])  # sets of data.held_out, at least two
    guard_queries: int | None = setting(None, least=2)  # most queries per guard set; null: all, narrower intervals
    guard_candidates: int = setting(1000, least=2)  # passages per guard set, answers included
    parameters: dict[str, dict[str, float]] = setting({})  # mergekit's, such as ties: {density: 0.5}
    score: bool = True  # false: a fixed merge without dev rows (compare must be empty)

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.models)) != len(self.models) or (len(self.models) < 2 and "*" not in "".join(self.models)):
            yield "models", "must name at least two different models, or a pattern"
        if not self.score and (self.method != "fixed" or self.compare):
            yield "score", "must be true unless the method is fixed and compare is empty"
        if "fixed" in (self.method, *self.compare):
            yield from (("weights", problem) for problem in self._problems_of_weights())
        if abs(1 / self.grid_step - round(1 / self.grid_step)) > 1e-9:
            yield "grid_step", "must divide 1"
        elif self.method == "extrapolated" and self.extrapolation_limit < (least := 1 + self.grid_step) - 1e-3:
            yield "extrapolation_limit", f"must be at least 1 + grid_step ({least:g}): no candidate is below"
        if self.guard is not None and self.method in ("search", "extrapolated") and len(set(self.guard_sources)) < 2:
            yield "guard_sources", "must name at least two sets that no side trains on (or set guard=null)"

    def _problems_of_weights(self) -> Iterator[str]:
        if not self.weights:
            yield "none are given: take merging=fixed, or set merging.weights={<model>: <number>, ...}"
        for name, weight in self.weights.items():
            if name not in self.models:
                yield f"{name} is not among the merged models {', '.join(self.models)}"
            elif weight < 0 and not (self.extrapolate and name == self.models[0]):
                yield f"{name} is {weight:g}, below 0"
        if self.weights and not self.extrapolate and not abs(sum(self.weights.values()) - 1) <= 1e-6:
            yield f"they sum to {sum(self.weights.values()):g} instead of 1 (extrapolate=true allows other sums)"

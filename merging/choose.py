"""Chooses the merge weights: every method, scored with the models on the same dev rows.

To add a method, write a function, add it to METHODS and its name to configs/schema/merging.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from configs.schema.config import SIDES, Config
from configs.schema.merging import MergingConfig
from data.artefact import PairSet, read_dev_sets, read_held_out_set, require_unseen
from merging.blend import Blend, floating
from merging.lm_cocktail import Cocktail, cocktail_of, few_shot_examples
from merging.mergekit import mergekit_merge
from merging.search import SIMPLEX, Candidate, CandidateScorer, Region, best_of_grid, beyond
from pipeline.core.console import log, progress
from pipeline.core.device import attention_implementation, training_precision
from pipeline.core.embedding import prompts_of
from pipeline.core.errors import UserError
from pipeline.core.seeding import generator
from training.dev_scores import DevEvaluator, Evaluators, retrieval_evaluator

SATURATED = 0.999


@dataclass
class Choice:
    """What methods of choosing weights work with, and what they found."""

    config: Config
    models: Mapping[str, Path]
    blend: Blend
    sets: list[PairSet]  # all dev rows
    scorer: CandidateScorer
    cocktail: Cocktail | None = None

    @property
    def settings(self) -> MergingConfig:
        return self.config.merging

    def search(self, region: Region, origin: str) -> Candidate | None:
        """The best candidate of a region that the guard doesn't reject; logs why there is none."""
        score, settings = partial(self.scorer.score, origin=origin), self.settings
        return best_of_grid(region, self.blend.names, settings.grid_step, settings.refinements, score, origin)


def uniform(choice: Choice) -> Candidate:
    """Equal weights."""
    names = choice.blend.names
    return choice.scorer.score(dict.fromkeys(names, 1 / len(names)), "uniform")


def fixed(choice: Choice) -> Candidate:
    """The configured weights."""
    return choice.scorer.score(fixed_weights(choice.settings), "fixed")


def lm_cocktail(choice: Choice) -> Candidate:
    """LM-Cocktail's weights from a few dev examples per set."""
    settings, seed, model = choice.settings, choice.config.seed, choice.blend.model
    prompts = {pairs.side: prompts_of(model, pairs.side) for pairs in choice.sets}
    examples = few_shot_examples(choice.sets, settings.examples_per_set, settings.negatives, prompts, seed)
    length = min(choice.config.training.dev_length, model.max_seq_length or choice.config.training.dev_length)
    log.info("LM-Cocktail: losses of %d models on %d examples", len(choice.blend.names), len(examples))
    choice.cocktail = cocktail_of(choice.blend, examples, settings.temperature, settings.batch_size, length, seed)
    return choice.scorer.score(choice.cocktail.weights, "lm_cocktail")


def search(choice: Choice) -> Candidate | None:
    """The best dev score under the guard; with `extrapolate` also beyond the simplex."""
    found = [choice.search(SIMPLEX, "search")]
    if choice.settings.extrapolate:
        found.append(extrapolated(choice))
    return max((one for one in found if one), key=lambda candidate: candidate.dev.score, default=None)


def extrapolated(choice: Choice) -> Candidate | None:
    """The best dev score under the guard beyond the simplex."""
    return choice.search(beyond(choice.settings.extrapolation_limit), "extrapolated")


# Methods of choosing weights by name; they return None where the guard allows no candidate.
METHODS: dict[str, Callable[[Choice], Candidate | None]] = {
    function.__name__: function for function in (uniform, fixed, lm_cocktail, search, extrapolated)
}


@dataclass
class Comparison:
    """What the configured method chose, and everything it was compared with."""

    weights: dict[str, float] | None  # by model; None where the merge is not a weighted sum
    compared: dict[str, Candidate] = field(default_factory=dict)  # the models, then the methods
    candidates: list[Candidate] = field(default_factory=list)  # all scored ones, in order
    cocktail: Cocktail | None = None


def compare(config: Config, models: Mapping[str, Path], data: Path) -> Comparison:
    """Score the models and every configured method of weighting them; the configured method's weights are chosen.

    Raises UserError: no dev rows, dev or guard rows that are trained on, missing guard sets, a model with NaN or
    infinity.
    """
    settings = config.merging
    if not settings.score:
        return Comparison(fixed_weights(settings))
    if not (sets := read_dev_sets(data)):
        remedy = "let the data stage hold out dev rows, or use merging=uniform"
        raise UserError("no dev data to choose merge weights on", where=str(data / "dev"), remedy=remedy)
    guard_sets = read_held_out_sets(config, data, settings.guard_sources)
    require_unseen([*sets, *guard_sets], data)
    blend = Blend(models, training_precision(config.precision), attention_of(config), config.token_budget)
    guard = guard_evaluators(config, guard_sets, blend)
    scorer = CandidateScorer(blend, dev_evaluator(config, sets, blend), guard, settings.guard, config.seed)
    choice = Choice(config, models, blend, sets, scorer)
    compared = scored_methods(choice)
    return Comparison(compared[settings.method].weights, compared, scorer.candidates, choice.cocktail)


def fixed_weights(settings: MergingConfig) -> dict[str, float]:
    """The configured weights of all models; when extrapolating, the base gets 1 minus those of the others."""
    base, *others = settings.models
    weights = {name: settings.weights.get(name, 0.0) for name in settings.models}
    if settings.extrapolate:
        weights[base] = 1 - sum(weights[name] for name in others)
    return weights


def read_held_out_sets(config: Config, data: Path, names: Sequence[str]) -> list[PairSet]:
    """Held-out sets with the side whose prompts they use, their rows in a seeded order.

    Raises UserError where one is missing, or has a single query.
    """
    found = []
    for name in names:
        source = config.data.held_out.get(name)
        pairs = read_held_out_set(data, name, source.side if source else "asymmetric")
        if len(set(pairs.positive_rows().anchors)) < 2:
            what, remedy = f"set {name} has one query, too few for an interval", "name another set"
            raise UserError(what, where="merging.guard_sources", remedy=remedy)
        found.append(pairs.take(generator(config.seed, "merge", "guard", name).permutation(len(pairs)).tolist()))
    return found


def attention_of(config: Config) -> str:
    """The attention implementation that the merged sides were trained and scored with."""
    trained = [config.side(name) for name in config.merging.models if name in SIDES]
    longest = max((side.longest for side in trained), default=config.training.dev_length)
    return attention_implementation(config.base.attention, longest)


def dev_evaluator(config: Config, sets: Sequence[PairSet], blend: Blend) -> DevEvaluator:
    """The dev score by which training also keeps checkpoints."""
    rows = [pairs.spread(config.training.dev_rows) for pairs in sets]
    evaluator = DevEvaluator(rows, blend.model, config.training.dev_length, blend.precision, blend.token_budget)
    if not evaluator.sides:
        remedy = "hold out dev rows with positive pairs"
        raise UserError("no dev set has a positive pair", where="data.dev", remedy=remedy)
    return evaluator


def guard_evaluators(config: Config, sets: Sequence[PairSet], blend: Blend) -> Evaluators:
    """Retrieval of each guard set's anchors among its own passages, up to the configured limits."""
    limits = config.merging.guard_queries, config.merging.guard_candidates
    evaluators = {
        pairs.name: retrieval_evaluator(pairs, prompts_of(blend.model, pairs.side), pairs.passages(), *limits)
        for pairs in sets
    }
    return Evaluators(evaluators, blend.model, config.training.dev_length, blend.precision, blend.token_budget)


def scored_methods(choice: Choice) -> dict[str, Candidate]:
    """The models, then the configured methods, by name; methods without an allowed candidate are left out."""
    settings, names = choice.settings, choice.blend.names
    methods = dict.fromkeys([*settings.compare, settings.method])
    if {"search", "extrapolated"} & methods.keys() and settings.guard is not None and len(settings.guard_sources) < 2:
        what = "merge: the search is hardly guarded: merging.guard_sources names %d sets"
        log.warning(what, len(settings.guard_sources))
    compared: dict[str, Candidate] = {}
    for name in progress(names, f"scoring {len(names)} models on dev rows"):  # the base first, for the guard
        compared[name] = choice.scorer.score({other: float(other == name) for other in names}, name)
    warn_of_saturation(list(compared.values()))
    for name in methods:
        if own := METHODS.get(name):
            candidate = own(choice)
        else:
            merged = mergekit_merge(choice.models, name, settings.parameters, choice.config.seed)
            candidate = choice.scorer.score_state(floating(merged), name)
        if candidate is not None:
            compared[name] = candidate
    if settings.method not in compared:
        remedy = "use merging=search, raise merging.guard, or try more points with a smaller merging.grid_step"
        raise UserError(f"there is no {settings.method} candidate to take", where="merging.method", remedy=remedy)
    warn_of_the_guard(choice, compared)
    return compared


def warn_of_the_guard(choice: Choice, compared: Mapping[str, Candidate]) -> None:
    """Warn where the chosen merge is rejected, and where a guard set has too few queries to tell."""
    limit, method = choice.settings.guard, choice.settings.method
    chosen = compared[method]
    if chosen.allowed is False:
        what = "merge: %s loses %s nDCG@10 on a guard set, more than merging.guard=%s"
        log.warning(what, method, chosen.deciding_loss, limit)
    for name, loss in chosen.guard_losses.items() if chosen.allowed else ():
        if limit is not None and loss.high > limit:
            what = "merge: guard set %s has too few queries to tell if %s loses more than merging.guard=%s: %s"
            log.warning(what, name, method, limit, loss)


def warn_of_saturation(models: Sequence[Candidate]) -> None:
    """Warn of dev sets that don't separate the models, since all of them solve these."""
    found = [model.dev.by_set for model in models]
    sets = [name for name in found[0] if min(scores[name] for scores in found) >= SATURATED]
    if sets:
        what = "merge: dev sets that don't separate the models, since all score at least %s: %s"
        log.warning(what, SATURATED, ", ".join(sets))

"""Which weights are taken: every way of choosing them, scored beside the models on the same dev rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from configs.schema.config import Config
from configs.schema.merging import MergingConfig
from data.artefact import PairSet, read_dev_sets, require_unseen
from merging.blend import Blend, State, floating
from merging.candidates import Candidate, Scorer
from merging.dev_scores import TextBank, retrieval, set_tasks
from merging.guard import Guard, guard_tasks, read_held_out_sets
from merging.lm_cocktail import Cocktail, few_shot_examples, lm_cocktail
from merging.mergekit_methods import mergekit_merge, require_mergekit
from merging.search import SIMPLEX, Region, beyond, search
from pipeline.core.console import log, progress
from pipeline.core.errors import UserError
from pipeline.core.precision import uses_bfloat16


@dataclass
class Comparison:
    """What was chosen, and everything that it was compared with."""

    method: str
    weights: dict[str, float] | None  # of the merged model, by model; None where it is no weighted sum
    compared: dict[str, Candidate] = field(default_factory=dict)  # the models, then the ways, by name
    candidates: list[Candidate] = field(default_factory=list)  # all that were scored, in order
    cocktail: Cocktail | None = None
    reported: dict[str, dict[str, float]] = field(default_factory=dict)  # by name: "set/measure" on report sources

    @property
    def chosen(self) -> Candidate | None:
        """The merged model's candidate, if it was scored."""
        return self.compared.get(self.method)


def compare(config: Config, models: Mapping[str, Path], data: Path) -> Comparison:
    """Score the models and every configured way of weighing them; the configured method's weights are chosen.

    Raises:
        UserError: no dev rows, dev or guard rows that are trained on, guard sets that are not there, a model with
            NaN or infinity.
    """
    settings = config.merging
    if not settings.score:
        return Comparison("fixed", fixed_weights(settings))
    require_mergekit([settings.method, *settings.compare])
    if not (sets := read_dev_sets(data)):
        remedy = "have the data stage hold out dev rows, or use merging=uniform"
        raise UserError("no dev data to choose merge weights on", where=str(data / "dev"), remedy=remedy)
    guard_sets, report_sets = (
        read_held_out_sets(data, _sides(config, names), config.seed)
        for names in (settings.guard_sources, settings.report_sources)
    )
    require_unseen([*sets, *guard_sets, *report_sets], data)
    blend = Blend(models, settings.max_length, uses_bfloat16(config.precision))
    ways = _Ways(config, models, blend, sets, guard_sets)
    comparison = ways.compare()
    if report_sets:
        comparison.reported = ways.reported(report_sets, comparison.compared)
    return comparison


def fixed_weights(settings: MergingConfig) -> dict[str, float]:
    """The configured weights of all models; when extrapolating, the base gets 1 minus those of the others."""
    base, *others = settings.models
    weights = {name: settings.weights.get(name, 0.0) for name in settings.models}
    if settings.extrapolate:
        weights[base] = 1 - sum(weights[name] for name in others)
    return weights


def _sides(config: Config, names: Sequence[str]) -> dict[str, str]:
    """The side of held-out sets, whose prompts they take."""
    held_out = config.data.held_out
    return {name: held_out[name].side if name in held_out else "asymmetric" for name in names}


class _Ways:
    """The ways of choosing weights, on one blend and one bank of texts."""

    def __init__(
        self,
        config: Config,
        models: Mapping[str, Path],
        blend: Blend,
        sets: list[PairSet],
        guard_sets: list[PairSet],
    ) -> None:
        self.settings, self.seed, self.models, self.blend, self.sets = config.merging, config.seed, models, blend, sets
        bank = TextBank(blend, self.settings.encode_batch)
        sampled = [pairs.spread(self.settings.dev_rows) for pairs in sets]
        tasks = [measured for measured in (set_tasks(pairs, bank) for pairs in sampled) if measured.tasks]
        if not tasks:
            remedy = "hold out dev rows with positive pairs"
            raise UserError("no dev set has a positive pair", where="data/dev", remedy=remedy)
        guarding = guard_tasks(guard_sets, bank, self.settings.guard_queries, self.settings.guard_candidates)
        self.prompts = bank.prompts
        self.scorer = Scorer(blend, bank, tasks, Guard(self.settings.guard, guarding))
        self.cocktail: Cocktail | None = None
        searching = {"search", "extrapolated"} & {self.settings.method, *self.settings.compare}
        if searching and self.settings.guard is not None and len(guard_sets) < 2:
            log.warning("merge: the search is hardly guarded: merging.guard_sources names %d sets", len(guard_sets))

    def compare(self) -> Comparison:
        compared: dict[str, Candidate] = {}
        # The base first: the guard's losses are against it.
        for name in progress(self.blend.names, f"scoring {len(self.blend.names)} models on dev rows"):
            compared[name] = self.scorer.score({other: float(other == name) for other in self.blend.names}, name)
        for way in dict.fromkeys([*self.settings.compare, self.settings.method]):
            candidate = self._way(way)
            if candidate is None:
                log.warning("merge: the guard allows no %s candidate", way)
            else:
                compared[way] = candidate
        chosen = compared[self.settings.method]
        if not chosen.allowed:
            what = "merge: %s loses %.4f nDCG@10 on a guard set, more than merging.guard=%s"
            log.warning(what, self.settings.method, chosen.guard_loss, self.settings.guard)
        return Comparison(self.settings.method, chosen.weights, compared, self.scorer.candidates, self.cocktail)

    def _way(self, way: str) -> Candidate | None:
        own: dict[str, Callable[[], Candidate | None]] = {
            "uniform": self._uniform,
            "fixed": lambda: self.scorer.score(fixed_weights(self.settings), "fixed"),
            "lm_cocktail": self._lm_cocktail,
            "search": self._searched,
            "extrapolated": lambda: self._search(beyond(self.settings.extrapolation_limit), "extrapolated"),
        }
        if way in own:
            return own[way]()
        return self.scorer.score_state(self._mergekit_state(way), way)

    def _mergekit_state(self, method: str) -> State:
        return floating(mergekit_merge(self.models, method, self.settings.parameters.get(method, {}), self.seed))

    def reported(self, sets: list[PairSet], compared: Mapping[str, Candidate]) -> dict[str, dict[str, float]]:
        """By compared name, what the merge is worth on sets that played no part in the choice."""
        bank = TextBank(self.blend, self.settings.encode_batch)
        tasks = {pairs.name: retrieval(pairs, bank) for pairs in sets}
        scores: dict[str, dict[str, float]] = {}
        for name, candidate in progress(list(compared.items()), "scoring held-out sets"):
            if candidate.weights is not None:
                self.blend.set(candidate.weights)
            else:
                self.blend.set_state(self._mergekit_state(name))
            vectors = bank.encode()
            scores[name] = {f"{task}/recall_at_1": tasks[task].recall_at_1(vectors) for task in tasks}
            scores[name] |= {f"{task}/ndcg_at_10": tasks[task].score(vectors) for task in tasks}
        return scores

    def _uniform(self) -> Candidate:
        names = self.blend.names
        return self.scorer.score(dict.fromkeys(names, 1 / len(names)), "uniform")

    def _lm_cocktail(self) -> Candidate:
        settings = self.settings
        count, negatives = settings.examples_per_set, settings.negatives
        examples = few_shot_examples(self.sets, count, negatives, self.prompts, self.seed)
        length = self.blend.model.max_seq_length
        log.info("LM-Cocktail: losses of %d models on %d examples", len(self.blend.names), len(examples))
        self.cocktail = lm_cocktail(self.blend, examples, settings.temperature, settings.batch_size, length, self.seed)
        return self.scorer.score(self.cocktail.weights, "lm_cocktail")

    def _searched(self) -> Candidate | None:
        found = [self._search(SIMPLEX, "search")]
        if self.settings.extrapolate:
            found.append(self._search(beyond(self.settings.extrapolation_limit), "extrapolated"))
        return max((one for one in found if one), key=lambda candidate: candidate.dev, default=None)

    def _search(self, region: Region, origin: str) -> Candidate | None:
        score = partial(self.scorer.score, origin=origin)
        settings = self.settings
        return search(region, self.blend.names, settings.grid_step, settings.refinements, score, origin)

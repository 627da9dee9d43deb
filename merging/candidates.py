"""Candidates: what was tried, what each is worth on dev, whether the guard allows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from merging.blend import Blend, State
from merging.dev_scores import SetTasks, TextBank
from merging.guard import Guard


@dataclass(frozen=True)
class Candidate:
    """One merge and its scores; all between 0 and 1, higher is better, except `guard_loss`."""

    origin: str  # what proposed it first: a model's name, uniform, fixed, lm_cocktail, search, extrapolated, ...
    weights: dict[str, float] | None  # None where the result is no weighted sum
    sides: dict[str, float]  # mean over a side's sets, weighted by their rows
    tasks: dict[str, float]  # by "set/task"
    guard: dict[str, float]  # nDCG@10 by guard set
    guard_loss: float
    allowed: bool

    @property
    def dev(self) -> float:
        """The mean over the sides: what a search maximises."""
        return fmean(self.sides.values())

    def row(self) -> dict[str, Any]:
        """One line of search.csv."""
        weights = {f"weight_{name}": weight for name, weight in (self.weights or {}).items()}
        scores = {"dev": self.dev, **self.sides, "guard_loss": self.guard_loss, "allowed": self.allowed}
        guard = {f"guard/{name}": score for name, score in self.guard.items()}
        return {"origin": self.origin, **weights, **scores, **self.tasks, **guard}


class Scorer:
    """Scores candidates in memory and keeps all of them; the same weights are scored once."""

    def __init__(self, blend: Blend, bank: TextBank, sets: Sequence[SetTasks], guard: Guard) -> None:
        self.blend, self.bank, self.sets, self.guard = blend, bank, sets, guard
        self.candidates: list[Candidate] = []
        self._known: dict[tuple[float, ...], Candidate] = {}

    def score(self, weights: Mapping[str, float], origin: str) -> Candidate:
        """The candidate of these weights."""
        key = tuple(round(weights[name], 9) for name in self.blend.names)
        if key not in self._known:
            self.blend.set(weights)
            self._known[key] = self._measured(origin, dict(weights))
        return self._known[key]

    def score_state(self, state: State, origin: str) -> Candidate:
        """The candidate of weights that are no weighted sum of the models."""
        self.blend.set_state(state)
        return self._measured(origin, None)

    def _measured(self, origin: str, weights: dict[str, float] | None) -> Candidate:
        embeddings = self.bank.encode()
        by_set = {measured.name: measured.scores(embeddings) for measured in self.sets}
        guard = self.guard.scores(embeddings)
        self.guard.reference = self.guard.reference or guard  # the base is scored first
        loss = self.guard.loss(guard)
        candidate = Candidate(
            origin=origin,
            weights=weights,
            sides={side: self._side_score(side, by_set) for side in dict.fromkeys(each.side for each in self.sets)},
            tasks={f"{name}/{task}": score for name, scores in by_set.items() for task, score in scores.items()},
            guard=guard,
            guard_loss=loss,
            allowed=self.guard.allows(loss),
        )
        self.candidates.append(candidate)
        return candidate

    def _side_score(self, side: str, by_set: Mapping[str, Mapping[str, float]]) -> float:
        """A set of three rows says little: sets weigh as much as they have rows (a large set's are sampled)."""
        sets = [measured for measured in self.sets if measured.side == side]
        return fmean([fmean(by_set[measured.name].values()) for measured in sets], [each.rows for each in sets])

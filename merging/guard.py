"""The retrieval guard: no candidate may lose retrieval, on sets that no side trains on, against the base.

Training can cost retrieval outside the trained domains, where dev rows of the training sets can't see it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data.artefact import PairSet, read_held_out_set
from merging.dev_scores import Retrieval, TextBank, retrieval
from pipeline.core.seeding import generator


@dataclass
class Guard:
    """Retrieval on the guard sets; `limit` is the nDCG@10 that may be lost on any one of them (None: all of it)."""

    limit: float | None
    tasks: dict[str, Retrieval]
    reference: dict[str, float] = field(default_factory=dict)  # the base's score by set

    def scores(self, embeddings: torch.Tensor) -> dict[str, float]:
        """nDCG@10 by guard set."""
        return {name: task.score(embeddings) for name, task in self.tasks.items()}

    def loss(self, scores: Mapping[str, float]) -> float:
        """The most that is lost on a guard set against the base; below 0 where every set gains; 0 without sets."""
        return max((self.reference[name] - score for name, score in scores.items()), default=0.0)

    def allows(self, loss: float) -> bool:
        """Whether so great a loss is within the limit."""
        return self.limit is None or loss <= self.limit


def read_held_out_sets(data: Path, sides: Mapping[str, str], seed: int) -> list[PairSet]:
    """The held-out sets that `sides` names (with the side whose prompts they take), their rows in an order of `seed`.

    Raises:
        UserError: a set that the data stage did not hold out, one that a side trains on, one without positives.
    """
    return [_shuffled(read_held_out_set(data, name, side), seed) for name, side in sides.items()]


def _shuffled(pairs: PairSet, seed: int) -> PairSet:
    return pairs.take(generator(seed, "merge", "guard", pairs.name).permutation(len(pairs)).tolist())


def guard_tasks(sets: Sequence[PairSet], bank: TextBank, queries: int, passages: int) -> dict[str, Retrieval]:
    """Retrieval of `queries` anchors of each set among `passages` of its texts."""
    return {pairs.name: retrieval(pairs, bank, queries, passages) for pairs in sets}

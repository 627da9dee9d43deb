"""The base class of tasks: one subclass defines how a model is scored on one task.

To add one, write a subclass with `score` in its suite's file and have that file's `tasks` return it; `StoredPairs` in
vectors.py is a short example. `scorer.encoder.sentences` embeds texts. A `Measure` holds a score, and the name of the
function in `metrics.STATISTICS` that computes the same score from the columns. Fingerprints don't cover code:
force=true scores again during development, and a higher SCORE_VERSION in outcome.py does so for all users.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from evaluation.outcome import Outcome

if TYPE_CHECKING:
    from evaluation.scoring import Scorer


class Task(ABC):
    """One task of a suite; `settings` holds what its scores depend on besides the model."""

    needs_heads = False  # bge-m3's sparse and multi-vector heads
    against: str | None = None  # a task of the same suite and items to compare with, model by model
    takes_heads = False  # if the model has them

    def __init__(self, suite: str, name: str, settings: Any) -> None:
        self.suite, self.name, self.settings = suite, name, settings

    @abstractmethod
    def score(self, scorer: "Scorer") -> Outcome:
        """Per-item results and metrics of the scorer's model; raises UserError if it can't be scored."""

    @property
    def key(self) -> str:
        """`<suite>/<task>`, also the path of its predictions in a model's folder."""
        return f"{self.suite}/{self.name}"

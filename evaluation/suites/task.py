"""What a task is: one class, which says how a model is scored on it.

To add one, write a subclass with `score` in the file of its suite, and let that file's `tasks` return it; `StoredPairs`
in vectors.py is a short example. Texts become vectors by `scorer.encoder.sentences`. A `Measure` names its score, and
the function in `significance.STATISTICS` that gives the same score from the columns. Fingerprints don't cover code:
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
    against: str | None = None  # a task of the same suite over the same items, with which it is compared model by model
    takes_heads = False  # where the model has them

    def __init__(self, suite: str, name: str, settings: Any) -> None:
        self.suite, self.name, self.settings = suite, name, settings

    @abstractmethod
    def score(self, scorer: "Scorer") -> Outcome:
        """Per-item results and metrics of the scorer's model; raises UserError where it can't be scored."""

    @property
    def key(self) -> str:
        """`<suite>/<task>`, also the path of its predictions below a model's."""
        return f"{self.suite}/{self.name}"

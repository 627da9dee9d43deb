"""What a candidate is worth on dev rows: retrieval, and positives ranked above negatives and contradictions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from data.artefact import PairSet
from merging.blend import Blend

CUTOFF = 10  # of nDCG
QUERY, DOCUMENT = "query", "document"  # names of the prompts


class TextBank:
    """All texts that candidates are scored on, each once, tokenised once, in batches of texts of similar length."""

    def __init__(self, blend: Blend, batch: int) -> None:
        self.prompts = {name: (blend.model.prompts or {}).get(name) or "" for name in (QUERY, DOCUMENT)}
        self.blend, self.batch = blend, batch
        self.numbers: dict[str, int] = {}
        self.batches: list[tuple[torch.Tensor, dict[str, Any]]] = []

    def add(self, texts: Iterable[str], prompt: str) -> torch.Tensor:
        """Numbers of the texts, shape (texts,); equal texts with equal prompts have equal numbers."""
        assert not self.batches, "texts come before the first encoding"
        prompted = (self.prompts[prompt] + text for text in texts)
        return torch.tensor([self.numbers.setdefault(text, len(self.numbers)) for text in prompted], dtype=torch.long)

    def tokenise(self) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        """The batches: numbers of their texts, and the model's inputs; made at the first call."""
        texts = [] if self.batches else sorted(self.numbers, key=len)
        for first in range(0, len(texts), self.batch):
            chosen = texts[first : first + self.batch]
            numbers = torch.tensor([self.numbers[text] for text in chosen])
            self.batches.append((numbers, self.blend.model.preprocess(chosen)))
        return self.batches

    @torch.inference_mode()
    def encode(self) -> torch.Tensor:
        """Unit embeddings of all texts under the blend's present weights, float32, shape (texts, dimension)."""
        vectors = [self.blend.embed(features).cpu() for _, features in self.tokenise()]
        embeddings = torch.empty(len(self.numbers), vectors[0].shape[1])
        embeddings[torch.cat([numbers for numbers, _ in self.batches])] = torch.cat(vectors)
        return torch.nn.functional.normalize(embeddings, dim=-1)


@dataclass(frozen=True)
class Retrieval:
    """Mean nDCG@10 of finding each query's answers among the passages."""

    queries: torch.Tensor  # (queries,) numbers in the text bank
    passages: torch.Tensor  # (passages,)
    answers: list[list[int]]  # by query, positions among the passages
    hidden: list[list[int]]  # by query, positions of passages that are the query's own text

    def score(self, embeddings: torch.Tensor) -> float:
        found = self._best(embeddings, CUTOFF)
        return float(np.mean([ndcg(ranked, wanted) for ranked, wanted in zip(found, self.answers, strict=True)]))

    def recall_at_1(self, embeddings: torch.Tensor) -> float:
        """The share of queries whose best passage is an answer."""
        found = self._best(embeddings, 1)
        return float(np.mean([ranked[0] in wanted for ranked, wanted in zip(found, self.answers, strict=True)]))

    def _best(self, embeddings: torch.Tensor, count: int) -> list[list[int]]:
        similarity = embeddings[self.queries] @ embeddings[self.passages].T
        for row, columns in enumerate(self.hidden):
            similarity[row, columns] = -torch.inf
        return similarity.topk(min(count, similarity.shape[1]), dim=1).indices.tolist()


@dataclass(frozen=True)
class Ranking:
    """Average precision of positive pairs among all pairs, by cosine similarity."""

    left: torch.Tensor  # (pairs,) numbers in the text bank
    right: torch.Tensor
    labels: np.ndarray  # (pairs,) 1 for positive pairs

    def score(self, embeddings: torch.Tensor) -> float:
        from sklearn.metrics import average_precision_score

        similarity = (embeddings[self.left] * embeddings[self.right]).sum(dim=1)
        return float(average_precision_score(self.labels, similarity.numpy()))


def ndcg(found: Sequence[int], wanted: Sequence[int]) -> float:
    """nDCG@10 with relevance 0 or 1 (Järvelin and Kekäläinen 2002), of passages in the order found."""
    relevant = set(wanted)
    discounts = 1 / np.log2(np.arange(2, CUTOFF + 2))
    gain = sum(discounts[rank] for rank, passage in enumerate(found[:CUTOFF]) if passage in relevant)
    return float(gain / discounts[: min(len(relevant), CUTOFF)].sum())


@dataclass
class SetTasks:
    """What a set measures."""

    name: str
    side: str
    rows: int  # what its scores weigh in the mean of its side
    tasks: dict[str, Retrieval | Ranking] = field(default_factory=dict)

    def scores(self, embeddings: torch.Tensor) -> dict[str, float]:
        """Score by task."""
        return {task: measure.score(embeddings) for task, measure in self.tasks.items()}


def set_tasks(pairs: PairSet, bank: TextBank) -> SetTasks:
    """Pair retrieval, and for a symmetric set that has both kinds of pairs their ranking too."""
    tasks = SetTasks(pairs.name, pairs.side, len(pairs))
    if pairs.side == "symmetric":
        _add_ranking(tasks, pairs, bank)
    if len(pairs.positive_rows()):
        tasks.tasks["retrieval"] = retrieval(pairs, bank)
    return tasks


def _add_ranking(tasks: SetTasks, pairs: PairSet, bank: TextBank) -> None:
    contrasts = [(anchor, text) for anchor, texts in zip(pairs.anchors, pairs.negatives, strict=True) for text in texts]
    labels = np.array([score >= 1 for score in pairs.scores] + [False] * len(contrasts), dtype=np.int64)
    if 0 < labels.sum() < len(labels):
        left = bank.add([*pairs.anchors, *(anchor for anchor, _ in contrasts)], QUERY)
        right = bank.add([*pairs.positives, *(text for _, text in contrasts)], QUERY)
        tasks.tasks["ranking"] = Ranking(left, right, labels)


def retrieval(pairs: PairSet, bank: TextBank, queries: int | None = None, passages: int | None = None) -> Retrieval:
    """Distinct anchors of positive rows as queries; their positives, then the set's other texts, as passages.

    Args:
        queries: take only so many anchors, the first ones.
        passages: take only so many passages; the answers are never left out.
    """
    wanted: dict[str, set[str]] = {}
    for anchor, positive, score in zip(pairs.anchors, pairs.positives, pairs.scores, strict=True):
        if score >= 1:
            wanted.setdefault(anchor, set()).add(positive)
    wanted = dict(list(wanted.items())[:queries])
    answers = dict.fromkeys(text for texts in wanted.values() for text in sorted(texts))
    others = dict.fromkeys(pairs.passages())
    pool = list(answers | others)[: None if passages is None else max(passages, len(answers))]
    place = {text: position for position, text in enumerate(pool)}
    return Retrieval(
        queries=bank.add(wanted, QUERY),
        passages=bank.add(pool, QUERY if pairs.side == "symmetric" else DOCUMENT),
        answers=[sorted(place[text] for text in texts) for texts in wanted.values()],
        hidden=[[place[anchor]] if anchor in place and anchor not in wanted[anchor] else [] for anchor in wanted],
    )

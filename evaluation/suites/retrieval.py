"""Retrieval on held-out pairs: the anchor asks, the positives of all rows are the candidates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from configs.schema.config import Config
from data.artefact import read_pair_set
from evaluation.encoder import Encoder
from evaluation.outcome import Measure, Outcome
from evaluation.scoring import Scorer
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder, file_sha256
from pipeline.core.embedding import DOCUMENT, QUERY
from pipeline.core.errors import UserError

DEPTH = 10  # of MRR and nDCG
CHUNK = 1024  # queries scored at once
METRICS = ("recall_at_1", "mrr_at_10", "ndcg_at_10")


def tasks(suite: str, config: Config, stage: StageFolder) -> list[Task]:
    """A task for each held-out set; raises UserError where one is missing or malformed."""
    folder, sets = stage.input("data") / "heldout", config.evaluation.suite[suite].sets
    return [HeldOutRetrieval(suite, name, folder / f"{held_out}.parquet") for name, held_out in sets.items()]


class HeldOutRetrieval(Task):
    """Retrieval on one held-out set of the stage data."""

    def __init__(self, suite: str, name: str, path: Path) -> None:
        self.data = read_retrieval_set(path)
        super().__init__(suite, name, file_sha256(path))

    def score(self, scorer: Scorer) -> Outcome:
        return score_retrieval(self.data, scorer.encoder)


@dataclass(frozen=True)
class RetrievalSet:
    """Distinct queries, distinct candidates, and for each query the indices of its right candidates."""

    queries: list[str]
    candidates: list[str]
    relevant: list[list[int]]


def read_retrieval_set(path: Path) -> RetrievalSet:
    """Rows (anchor, positive) of a held-out set; an anchor with several positives has several right candidates.

    A row whose score is not 1 gives a candidate that is right for no anchor.

    Raises UserError where the file is missing or malformed.
    """
    if not path.is_file():
        remedy = "name sets of data.held_out in the suite's sets, and make data"
        raise UserError("no such held-out set", where=str(path), remedy=remedy)
    pairs = read_pair_set(path, "asymmetric")  # queries and documents, with their own prompts
    queries, candidates = dict[str, set[int]](), dict[str, int]()
    for anchor, positive, score in zip(pairs.anchors, pairs.positives, pairs.scores, strict=True):
        candidate = candidates.setdefault(positive, len(candidates))
        if score == 1:
            queries.setdefault(anchor, set()).add(candidate)
    return RetrievalSet(list(queries), list(candidates), [sorted(found) for found in queries.values()])


def score_retrieval(data: RetrievalSet, encoder: Encoder) -> Outcome:
    """Recall@1, MRR@10 and nDCG@10 a query, by the similarity that the model says, of its own embeddings."""
    queries, candidates = encoder.sentences(data.queries, QUERY), encoder.sentences(data.candidates, DOCUMENT)
    return retrieval_outcome(data, queries, candidates, encoder.model.similarity)


def retrieval_outcome(
    data: RetrievalSet, queries: np.ndarray, candidates: np.ndarray, similarity: Callable[..., torch.Tensor]
) -> Outcome:
    """The same of given vectors [queries, width] and [candidates, width]."""
    ranks = list(_ranks(queries, candidates, data.relevant, similarity))
    columns: dict[str, np.ndarray] = {
        "recall_at_1": np.array([float(found[0] == 0) for found in ranks]),
        "mrr_at_10": np.array([1 / (found[0] + 1) if found[0] < DEPTH else 0.0 for found in ranks]),
        "ndcg_at_10": np.array([_ndcg(found) for found in ranks]),
    }
    measures = tuple(Measure(name, float(columns[name].mean()), "mean", (name,)) for name in METRICS)
    columns["query"] = np.array(data.queries, dtype=object)
    return Outcome(columns, measures, {"candidates": len(candidates)})


def _ranks(
    queries: np.ndarray, candidates: np.ndarray, relevant: list[list[int]], similarity: Callable[..., torch.Tensor]
) -> Iterator[list[int]]:
    """For each query the ranks from 0 of its right candidates, best first; wrong ones with an equal score go before.

    A model that gives all texts one vector thus gets nothing.
    """
    for start in range(0, len(queries), CHUNK):
        scores = similarity(queries[start : start + CHUNK], candidates).numpy()
        for row, right in zip(scores, relevant[start : start + CHUNK], strict=True):
            found = np.sort(row[right])[::-1]
            wrong = np.delete(row, right)
            yield [int((wrong >= score).sum()) + position for position, score in enumerate(found)]


def _ndcg(ranks: list[int]) -> float:
    """nDCG@10 for right candidates of equal gain at these ranks (from 0)."""
    gained = sum(1 / np.log2(rank + 2) for rank in ranks if rank < DEPTH)
    return float(gained / sum(1 / np.log2(position + 2) for position in range(min(len(ranks), DEPTH))))

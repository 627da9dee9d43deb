"""Retrieval on held-out pairs: each anchor is a query, the positives of all rows are the candidates.

The model's dense vectors and BM25 are scored, and if the model has heads, each of its modes and their weighted sum,
with bge-m3's weights and with those that are best on dev rows.
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

import bm25s
import numpy as np
import Stemmer

from configs.schema.config import Config
from data.artefact import PairSet, held_out_file, read_dev_sets, read_held_out_set
from evaluation.encoder import Encoder
from evaluation.metrics import FIXED
from evaluation.outcome import Measure, Outcome, joined
from evaluation.results import BM25, DENSE, HYBRID, HYBRID_FITTED, VECTOR_MODES
from evaluation.scoring import Scorer
from evaluation.suites.heads import WEIGHTS, Scores, mode_scores, weighted
from evaluation.suites.task import Task
from pipeline.core.artefact import StageFolder, file_sha256
from pipeline.core.embedding import DOCUMENT, QUERY
from pipeline.core.heads import Heads

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG on import

DEPTH = 10  # of MRR and nDCG
CHUNK = 1024  # queries scored at once
METRICS = ("recall_at_1", "mrr_at_10", "ndcg_at_10")
DEV_ROWS = 200  # per set, at most, for fitting weights
STEPS = 10  # of each weight, from 0 to 1


def tasks(suite: str, config: Config, stage: StageFolder) -> list[Task]:
    """A task for each held-out set; raises UserError if one is missing."""
    data, sets = stage.inputs["data"], config.evaluation.suite[suite].sets
    weights = HybridWeights(read_dev_sets(data, "asymmetric"))
    return [
        HeldOutRetrieval(suite, name, data, held_out_name, weights, config.languages)
        for name, held_out_name in sets.items()
    ]


class HeldOutRetrieval(Task):
    """Retrieval on one held-out set of the stage `data`."""

    takes_heads = True

    def __init__(
        self, suite: str, name: str, data: Path, held_out_name: str, weights: "HybridWeights", languages: Sequence[str]
    ) -> None:
        self.data, self.weights, self.languages = read_retrieval_set(data, held_out_name), weights, languages
        self.lexical: Outcome | None = None
        contents = file_sha256(held_out_file(data, held_out_name))
        lexical = f"bm25s {version('bm25s')}, PyStemmer {version('PyStemmer')}"
        super().__init__(suite, name, [contents, weights.fingerprint, lexical, list(languages)])

    def score(self, scorer: Scorer) -> Outcome:
        data, heads = self.data, scorer.own_heads
        if self.lexical is None:  # the same for all models
            self.lexical = outcome_of(data, lexical_scores(data.queries, data.candidates, self.languages))
        if heads is None:
            return joined({DENSE: score_retrieval(data, scorer.encoder), BM25: self.lexical})
        found, sizes = mode_scores(scorer.encoder, heads, data.queries, data.candidates)
        fitted = self.weights.of(scorer, heads)
        scores = [found[mode] for mode in VECTOR_MODES]
        parts = {mode: outcome_of(data, found[mode], **sizes[mode]) for mode in VECTOR_MODES}
        parts[HYBRID] = outcome_of(data, weighted(scores, WEIGHTS), **sizes[HYBRID])
        if fitted:
            parts[HYBRID_FITTED] = outcome_of(data, weighted(scores, fitted), **sizes[HYBRID])
            parts[HYBRID_FITTED].notes["fitted weights"] = dict(zip(VECTOR_MODES, fitted, strict=True))
        return joined(parts | {BM25: self.lexical})


class HybridWeights:
    """The modes' weights that are best on the dev rows of the asymmetric sets."""

    def __init__(self, dev: Sequence[PairSet]) -> None:
        rows = [pairs.positive_rows().spread(DEV_ROWS) for pairs in dev]
        self.sets = [retrieval_set(pairs) for pairs in rows if len(pairs)]
        self.fingerprint = hashlib.sha256(repr((WEIGHTS, self.sets)).encode()).hexdigest()
        self.fitted: dict[str, tuple[float, ...]] = {}  # by model

    def of(self, scorer: Scorer, heads: Heads) -> tuple[float, ...] | None:
        """Weights of the scorer's model, which sum to 1, by the mean nDCG@10 of relevant pairs; None without dev rows.

        Ties go to the weights nearest to bge-m3's.
        """
        if not self.sets:
            return None
        key = f"{scorer.key}-{heads.fingerprint}"
        if key not in self.fitted:
            found = [mode_scores(scorer.encoder, heads, data.queries, data.candidates)[0] for data in self.sets]
            grid = [(a, b, STEPS - a - b) for a, b in product(range(STEPS + 1), repeat=2) if a + b <= STEPS]
            tried = [tuple(part / STEPS for part in parts) for parts in grid]
            fixed = [weight / sum(WEIGHTS) for weight in WEIGHTS]
            self.fitted[key] = max(tried, key=lambda each: (self._gained(found, each), -math.dist(each, fixed)))
        return self.fitted[key]

    def _gained(self, found: Sequence[dict[str, Scores]], weights: Sequence[float]) -> float:
        """Mean over the sets' relevant pairs of 1 / log2(rank + 1), 0 beyond rank 10."""
        gains = []
        for data, scores in zip(self.sets, found, strict=True):
            hybrid = weighted([scores[mode] for mode in VECTOR_MODES], weights)
            for found_ranks in _ranks(hybrid, data.relevant):
                ranks = np.array(found_ranks) - np.arange(len(found_ranks))  # without the other relevant ones above it
                gains.append(np.where(ranks < DEPTH, 1 / np.log2(ranks + 2), 0).mean())
        return float(np.mean(gains))


@dataclass(frozen=True)
class RetrievalSet:
    """Distinct queries, distinct candidates, and for each query the indices of its relevant candidates."""

    queries: list[str]
    candidates: list[str]
    relevant: list[list[int]]


def read_retrieval_set(data: Path, name: str) -> RetrievalSet:
    """A held-out set of the data artefact, whose texts get the prompts of queries and documents.

    An anchor with several positives has several relevant candidates; a row whose score is not 1 adds a candidate that
    is relevant to no anchor. Raises UserError as `read_held_out_set` does.
    """
    return retrieval_set(read_held_out_set(data, name, "asymmetric"))


def retrieval_set(pairs: PairSet) -> RetrievalSet:
    """The retrieval set of rows (anchor, positive)."""
    answers, place = pairs.answers(), {text: number for number, text in enumerate(dict.fromkeys(pairs.positives))}
    relevant = [sorted(place[text] for text in texts) for texts in answers.values()]
    return RetrievalSet(list(answers), list(place), relevant)


def score_retrieval(data: RetrievalSet, encoder: Encoder) -> Outcome:
    """Recall@1, MRR@10 and nDCG@10 per query, by the model's own similarity of its embeddings."""
    queries, candidates = encoder.sentences(data.queries, QUERY), encoder.sentences(data.candidates, DOCUMENT)
    return outcome_of(data, lambda rows: encoder.model.similarity(queries[rows], candidates).cpu().numpy())


def outcome_of(data: RetrievalSet, scores: Scores, **constants: float) -> Outcome:
    """The outcome of scores, computed for `CHUNK` queries at a time.

    `constants` are metrics that aren't means over queries: they have neither interval nor test.
    """
    ranks = list(_ranks(scores, data.relevant))
    columns: dict[str, np.ndarray] = {
        "recall_at_1": np.array([float(found[0] == 0) for found in ranks]),
        "mrr_at_10": np.array([1 / (found[0] + 1) if found[0] < DEPTH else 0.0 for found in ranks]),
        "ndcg_at_10": np.array([_ndcg(found) for found in ranks]),
        **{name: np.full(len(ranks), value) for name, value in constants.items()},
    }
    measures = [Measure(name, float(columns[name].mean()), "mean", (name,)) for name in METRICS]
    measures += [Measure(name, float(value), FIXED, (name,)) for name, value in constants.items()]
    columns["query"] = np.array(data.queries, dtype=object)
    return Outcome(columns, tuple(measures), {"candidates": len(data.candidates)})


def _ranks(scores: Scores, relevant: list[list[int]]) -> Iterator[list[int]]:
    """For each query the ranks from 0 of its relevant candidates, best first; on ties, irrelevant ones rank higher.

    A model with one vector for all texts thus scores 0.
    """
    for start in range(0, len(relevant), CHUNK):
        rows = slice(start, start + CHUNK)
        for row, right in zip(scores(rows), relevant[rows], strict=True):
            found = np.sort(row[right])[::-1]
            wrong = np.delete(row, right)
            yield [int((wrong >= score).sum()) + position for position, score in enumerate(found)]


def _ndcg(ranks: list[int]) -> float:
    """nDCG@10 for relevant candidates of equal gain at these ranks (from 0)."""
    gained = sum(1 / np.log2(rank + 2) for rank in ranks if rank < DEPTH)
    return float(gained / sum(1 / np.log2(position + 2) for position in range(min(len(ranks), DEPTH))))


def lexical_scores(queries: Sequence[str], candidates: Sequence[str], languages: Sequence[str]) -> Scores:
    """BM25 (Lucene's, k1 1.5, b 0.75) of some queries and all candidates.

    All zero if no candidate has a word: bm25s can't index these.
    """
    plain = {"stopwords": None, "return_ids": False, "show_progress": False}
    words = partial(bm25s.tokenize, token_pattern=r"\w+", stemmer=stemmer(languages), **plain)
    found, query_words = words(candidates), words(queries)
    if not any(found):
        return lambda rows: np.zeros((len(query_words[rows]), len(candidates)), np.float32)
    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index(found, show_progress=False)
    return lambda rows: np.stack([index.get_scores_from_ids(index.get_tokens_ids(each)) for each in query_words[rows]])


def stemmer(languages: Sequence[str]) -> "Stemmer.Stemmer | None":
    """Snowball's for the first language it supports; words in another script stay as they are."""
    for code in languages:
        try:
            return Stemmer.Stemmer(code)
        except KeyError:
            continue
    return None

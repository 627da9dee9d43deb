"""The dev score: one number that selects checkpoints and merge weights, from sentence-transformers' evaluators.

A set whose rows have different scores is evaluated by Spearman's correlation of score and cosine. Any other is
evaluated by nDCG@10 of retrieving each anchor's positives from all dev passages of its side, since from a small set's
own passages nearly every model retrieves them. A side's score is the mean over its sets, weighted by their rows: the
score of a set of a few rows is mostly chance. The dev score is the mean over the sides.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from statistics import fmean
from sys import intern
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.util import cos_sim
from torch import Tensor

from data.artefact import PairSet
from pipeline.core.embedding import Embedder, Prompts, prompts_of, require_room

DEPTH = 10  # of nDCG
MOST_COSINES = 2**26  # of queries and passages, in memory at once
CUTOFFS: dict[str, Any] = {"ndcg_at_k": [DEPTH], "mrr_at_k": [DEPTH], "map_at_k": [DEPTH]}
CUTOFFS |= {"accuracy_at_k": [1], "precision_recall_at_k": [1]}


class RetrievalEvaluator(InformationRetrievalEvaluator):
    """The library's retrieval evaluator, which also keeps what it averages: the queries' nDCG@10, in their order."""

    by_query: NDArray[np.float64]

    def compute_metrics(self, queries_result_list: list[Any]) -> dict[str, Any]:
        found = zip(self.queries_ids, queries_result_list, strict=True)
        self.by_query = np.array([self._ndcg(self.relevant_docs[query], hits) for query, hits in found])
        return super().compute_metrics(queries_result_list)

    def _ndcg(self, right: set[str], hits: list[dict[str, Any]]) -> float:
        best = sorted(hits, key=lambda hit: (-hit["score"], hit["corpus_id"]))[:DEPTH]
        gains = [int(hit["corpus_id"] in right) for hit in best]
        return self.compute_dcg_at_k(gains, DEPTH) / self.compute_dcg_at_k([1] * len(right), DEPTH)


Evaluator = EmbeddingSimilarityEvaluator | RetrievalEvaluator


class PrecomputedEmbeddings:
    """Precomputed embeddings of known texts, given to the library's evaluators instead of a model."""

    model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *args: None)

    def __init__(self, places: Mapping[str, int], vectors: Tensor) -> None:
        self.places, self.vectors = places, vectors

    def encode(self, texts: Sequence[str], **options: Any) -> Tensor:
        """Shape (texts, dimension)."""
        return self.vectors[[self.places[text] for text in texts]]

    encode_query = encode_document = encode


class Evaluators:
    """The library's evaluators, one per set, on texts that are tokenised once and encoded once per model.

    Args:
        evaluators: of retrieval or of pairs, by set name; their texts include the prompts.
        model: any of the models to evaluate, which all share its tokenizer.
        max_length: tokens at which texts are cut (or at the model's own limit, if that is smaller).
        precision: of autocast while encoding; vectors are float32 in any case.
        token_budget: padded tokens in a pass; None: by the device.
    """

    def __init__(
        self,
        evaluators: Mapping[str, Evaluator],
        model: SentenceTransformer,
        max_length: int,
        precision: str = "fp32",
        token_budget: int | None = None,
    ) -> None:
        self.evaluators, self.precision, self.token_budget = dict(evaluators), precision, token_budget
        texts = list(dict.fromkeys(text for evaluator in evaluators.values() for text in _texts(evaluator)))
        self.places = {text: place for place, text in enumerate(texts)}
        self.ids = Embedder(model, max_length).tokenise(texts) if texts else []

    def metrics(self, model: SentenceTransformer) -> dict[str, dict[str, float]]:
        """All metrics of each set's evaluator, with the model's current weights."""
        if not self.ids:
            return {}
        embedder = Embedder(
            model.eval(), token_budget=self.token_budget, precision=self.precision, show_progress_bar=False
        )
        vectors: Any = PrecomputedEmbeddings(self.places, torch.from_numpy(embedder.encode(self.ids)))
        return {name: evaluator(vectors) for name, evaluator in self.evaluators.items()}

    def by_query(self, model: SentenceTransformer) -> dict[str, NDArray[np.float64]]:
        """nDCG@10 of each query, (queries,), by retrieval set, with the model's current weights."""
        self.metrics(model)
        return {
            name: found.by_query for name, found in self.evaluators.items() if isinstance(found, RetrievalEvaluator)
        }

    def scores(self, model: SentenceTransformer) -> dict[str, float]:
        """Each set's score; 0 where a correlation is undefined because all cosines are equal."""
        found = self.metrics(model)
        scores = {name: metrics[str(self.evaluators[name].primary_metric)] for name, metrics in found.items()}
        return {name: 0.0 if math.isnan(score) else score for name, score in scores.items()}


@dataclass(frozen=True)
class DevScore:
    """One model's scores on the dev rows."""

    sets: dict[str, dict[str, float]]  # side -> set -> score
    rows: Mapping[str, int]  # of each set

    @property
    def sides(self) -> dict[str, float]:
        """The score of each side."""
        return {side: fmean(found.values(), [self.rows[name] for name in found]) for side, found in self.sets.items()}

    @property
    def score(self) -> float:
        """The dev score, which selects checkpoints, and which a search for merge weights maximises."""
        return fmean(self.sides.values())

    @property
    def by_set(self) -> dict[str, float]:
        """The score of each set."""
        return {name: score for found in self.sets.values() for name, score in found.items()}


class DevEvaluator(BaseEvaluator):
    """`<set>_score` for each dev set, and `score`, as the library's trainer expects them."""

    def __init__(
        self,
        sets: Sequence[PairSet],
        model: SentenceTransformer,
        max_length: int,
        precision: str = "fp32",
        token_budget: int | None = None,
    ) -> None:
        super().__init__()
        self.primary_metric = "score"
        self.rows = {pairs.name: len(pairs) for pairs in sets}
        self.sides: dict[str, Evaluators] = {}  # those with a set that can be scored
        for side in dict.fromkeys(pairs.side for pairs in sets):
            prompts = prompts_of(model, side)
            require_room(model, prompts, max_length, "config key training.dev_length")
            evaluators = dev_evaluators([pairs for pairs in sets if pairs.side == side], prompts)
            if evaluators:
                self.sides[side] = Evaluators(evaluators, model, max_length, precision, token_budget)

    def score_model(self, model: SentenceTransformer) -> DevScore:
        """The scores of the model's current weights."""
        return DevScore({side: evaluators.scores(model) for side, evaluators in self.sides.items()}, self.rows)

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        found = self.score_model(model)
        return {f"{name}_score": score for name, score in found.by_set.items()} | {"score": found.score}


def dev_figures(logs: Mapping[str, Any]) -> dict[str, Any]:
    """Dev scores and dev losses from the library's logs of an evaluation, under this pipeline's names."""
    names = [name for name in logs if name.startswith("eval_") and name.endswith(("_loss", "_score"))]
    return {f"dev_{name.removeprefix('eval_')}": logs[name] for name in names}


def dev_evaluators(sets: Sequence[PairSet], prompts: Prompts) -> dict[str, Evaluator]:
    """The evaluators of one side's sets; a set has none where no row is a positive and all have the same score."""
    passages = list(dict.fromkeys(text for pairs in sets for text in pairs.passages()))
    evaluators: dict[str, Evaluator] = {}
    for pairs in sets:
        if len(set(pairs.scores)) > 1:
            evaluators[pairs.name] = similarity_evaluator(pairs, prompts)
        elif pairs.positive_rows():
            evaluators[pairs.name] = retrieval_evaluator(pairs, prompts, passages)
    return evaluators


def similarity_evaluator(pairs: PairSet, prompts: Prompts) -> EmbeddingSimilarityEvaluator:
    """Correlation of the rows' scores with the cosines of anchor and positive."""
    return EmbeddingSimilarityEvaluator(
        [prompts.anchor + text for text in pairs.anchors],
        [prompts.positive + text for text in pairs.positives],
        pairs.scores,
        similarity_fn_names=["cosine"],
        write_csv=False,
    )


def retrieval_evaluator(
    pairs: PairSet,
    prompts: Prompts,
    passages: Iterable[str],
    max_queries: int | None = None,
    max_passages: int | None = None,
) -> RetrievalEvaluator:
    """The retrieval evaluator: queries are the distinct anchors of positive rows, the corpus their positives and
    `passages`.

    A passage equal to the query's own text doesn't compete, unless it is an answer.

    Args:
        max_queries: use only this many anchors, from the first.
        max_passages: use only this many passages; the answers are never left out.
    """
    answers = dict(islice(pairs.answers().items(), max_queries))
    right = dict.fromkeys(text for texts in answers.values() for text in texts)
    most = None if max_passages is None else max(max_passages, len(right))
    place = {text: number for number, text in enumerate(islice(dict.fromkeys([*right, *passages]), most))}
    own = [(row, place[text]) for row, text in enumerate(answers) if text in place and text not in answers[text]]
    size = max(1, MOST_COSINES // len(answers))
    starts = cycle(range(0, len(place), size))  # of the parts of the corpus, in the order in which `cosine` gets them

    def cosine(queries: Tensor, corpus: Tensor) -> Tensor:
        cosines, start = cos_sim(queries, corpus), next(starts)
        for row, column in own:
            if start <= column < start + len(corpus):
                cosines[row, column - start] = -torch.inf
        return cosines

    return RetrievalEvaluator(
        {str(row): prompts.anchor + text for row, text in enumerate(answers)},
        {intern(str(number)): intern(prompts.positive + text) for text, number in place.items()},  # shared by the sets
        {str(row): {str(place[text]) for text in texts} for row, texts in enumerate(answers.values())},
        corpus_chunk_size=size,
        score_functions={"cosine": cosine},
        write_csv=False,
        **CUTOFFS,
    )


def _texts(evaluator: Any) -> list[str]:
    if hasattr(evaluator, "corpus"):
        return [*evaluator.queries, *evaluator.corpus]
    return [*evaluator.sentences1, *evaluator.sentences2]

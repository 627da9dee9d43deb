"""Dev scores during training, by sentence-transformers' evaluators: one number a set and their mean."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from data.pair_files import read_pairs
from training.model_files import Prompts

BATCH_SIZE = 64


class DevScores(BaseEvaluator):
    """`<set>_score` for each dev set, and `score`, their mean.

    Sets whose pairs carry different scores are judged by Spearman's correlation with the cosine; others by nDCG@10 of
    the anchors' positives among all positives and negatives of the set.
    """

    def __init__(self, sets: dict[str, tuple[pa.Table, Prompts]]) -> None:
        super().__init__()
        self.primary_metric = "score"
        self.evaluators = {name: _evaluator(table, prompts) for name, (table, prompts) in sets.items()}

    def __call__(
        self, model: Any, output_path: str | None = None, epoch: float = -1, steps: int = -1
    ) -> dict[str, float]:
        scores = {}
        for name, evaluator in self.evaluators.items():
            results = evaluator(model)
            assert isinstance(results, dict) and evaluator.primary_metric
            scores[f"{name}_score"] = float(results[evaluator.primary_metric])
        return {**scores, "score": float(np.mean(list(scores.values())))}


class PromptedSimilarity(EmbeddingSimilarityEvaluator):
    """The library's evaluator with a prompt a side, as its retrieval evaluator has them."""

    def __init__(self, prompts: Prompts, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.prompts = prompts

    def embed_inputs(self, model: SentenceTransformer, sentences: Any, **kwargs: Any) -> Any:
        prompt = self.prompts.anchor if sentences is self.sentences1 else self.prompts.positive
        return super().embed_inputs(model, sentences, prompt=prompt, **kwargs)


def _evaluator(table: pa.Table, prompts: Prompts) -> BaseEvaluator:
    anchors, positives = table["anchor"].to_pylist(), table["positive"].to_pylist()
    labels = table["score"].fill_null(1.0).to_pylist()
    if len(set(labels)) > 1:
        return PromptedSimilarity(
            prompts,
            anchors,
            positives,
            labels,
            batch_size=BATCH_SIZE,
            similarity_fn_names=["cosine"],
            show_progress_bar=False,
            write_csv=False,
        )
    negatives = [text for texts in table["negatives"].to_pylist() for text in texts or []]
    passages = {text: str(index) for index, text in enumerate(dict.fromkeys([*positives, *negatives]))}
    queries = {text: str(index) for index, text in enumerate(dict.fromkeys(anchors))}
    relevant: dict[str, set[str]] = {}
    for anchor, positive in zip(anchors, positives, strict=True):
        relevant.setdefault(queries[anchor], set()).add(passages[positive])
    return InformationRetrievalEvaluator(
        {number: text for text, number in queries.items()},
        {number: text for text, number in passages.items()},
        relevant,
        query_prompt=prompts.anchor,
        corpus_prompt=prompts.positive,
        batch_size=BATCH_SIZE,
        write_csv=False,
    )


def read_dev(path: Path, most: int) -> pa.Table:
    """At most so many rows of a dev set, evenly spread over it: it has its source's order."""
    table = read_pairs(path)
    return table.take(np.linspace(0, len(table), min(most, len(table)), endpoint=False, dtype=np.int64))

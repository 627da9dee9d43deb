"""How far a tuned encoder has moved under heads that were made for its base."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluation.encoder import Encoder
from evaluation.outcome import Measure, Outcome
from evaluation.scoring import Scorer
from evaluation.suites.heads import unused_ids
from evaluation.suites.sample_files import read_samples, sample_digests
from evaluation.suites.task import Task
from pipeline.core.embedding import unit
from pipeline.core.heads import Heads

FILES = ("sts", "long_documents")


class Drift(Task):
    """How far the heads' outputs on the bundled texts are from the base's."""

    needs_heads = True
    in_mean = False

    def __init__(self, suite: str) -> None:
        super().__init__(suite, "drift", sample_digests(*FILES))

    def score(self, scorer: Scorer) -> Outcome:
        pairs, documents = (read_samples(name) for name in FILES)
        texts = [row[key] for row in pairs for key in ("sentence1", "sentence2")]
        texts += [row["document"] for row in documents]
        base = scorer.base
        return drift_outcome(scorer.encoder, scorer.heads, base.encoder, base.heads, texts)


@dataclass(frozen=True)
class TextVectors:
    """A text by tokens: pieces, sparse weights [tokens] (zero for special tokens) and unit vectors [tokens, width]."""

    pieces: list[str]
    weights: np.ndarray
    vectors: np.ndarray


def drift_outcome(model: Encoder, heads: Heads, base: Encoder, base_heads: Heads, texts: Sequence[str]) -> Outcome:
    """Share of all-zero sparse vectors, and mean distances to the base, text by text.

    Distances are 1 - cosine: of the dense vectors, of the sparse weights, and (mean over tokens) of the multi-vectors.
    The latter two are taken on the texts that both models cut into the same pieces.
    """
    ours, theirs = text_vectors(model, heads, texts), text_vectors(base, base_heads, texts)
    dense = 1 - np.einsum("ij,ij->i", unit(model.sentences(texts)), unit(base.sentences(texts)))
    same = np.array([one.pieces == other.pieces for one, other in zip(ours, theirs, strict=True)])
    pairs = [pair for pair, kept in zip(zip(ours, theirs, strict=True), same, strict=True) if kept]
    sparse = [_distance(one.weights, other.weights) for one, other in pairs]
    tokens = [1 - float(np.einsum("ij,ij->i", one.vectors, other.vectors).mean()) for one, other in pairs]
    columns = {
        "sparse_zero_share": np.array([float(not found.weights.any()) for found in ours]),
        "dense_drift": dense.astype(np.float64),
        "sparse_drift": _where(same, sparse),
        "multi_vector_drift": _where(same, tokens),
        "same_pieces": same.astype(np.int64),
    }
    measures = (
        Measure("sparse_zero_share", float(columns["sparse_zero_share"].mean()), "mean", ("sparse_zero_share",)),
        Measure("dense_drift", float(dense.mean()), "mean", ("dense_drift",)),
        *(
            Measure(name, float(np.mean(values or [np.nan])), "mean_where", (name, "same_pieces"))
            for name, values in (("sparse_drift", sparse), ("multi_vector_drift", tokens))
        ),
    )
    return Outcome(columns, measures, {"same_pieces": int(same.sum())})


@torch.inference_mode()
def text_vectors(encoder: Encoder, heads: Heads, texts: Sequence[str]) -> list[TextVectors]:
    """Sparse weights and multi-vectors of every token after the first one, without a prompt."""
    ids, unused, found = encoder.tokenise(texts), unused_ids(encoder), dict[int, TextVectors]()
    heads = heads.to(encoder.model.device)
    for batch, features in encoder.token_batches(ids):
        hidden = features["token_embeddings"]
        weights, vectors = heads.weights(hidden).cpu().numpy(), heads.vectors(hidden).cpu().numpy()
        for row, index in enumerate(batch):
            kept = slice(1, len(ids[index]))
            pieces = encoder.tokenizer.convert_ids_to_tokens(ids[index][kept])
            own = np.where(np.isin(ids[index][kept], unused), 0, weights[row, kept])
            found[index] = TextVectors(pieces, own, vectors[row, kept].copy())
    return [found[index] for index in range(len(texts))]


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """1 - cosine; two vectors of zeros are equal."""
    return 0.0 if not one.any() and not other.any() else 1 - float(unit(one) @ unit(other))


def _where(chosen: np.ndarray, values: list[float]) -> np.ndarray:
    """[texts] the values on the chosen texts, 0 elsewhere."""
    spread = np.zeros(len(chosen))
    spread[chosen] = values
    return spread

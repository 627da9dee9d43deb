"""Encodes texts with the heads of `pipeline.core.heads`: three kinds of vectors from one pass."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from scipy.sparse import csr_array, vstack

from evaluation.encoder import Encoder
from evaluation.results import ACTIVE_IDS, BYTES, DENSE, HYBRID, MULTI_VECTOR, SPARSE, VECTOR_MODES, ZERO_SHARE
from pipeline.core.embedding import DOCUMENT, QUERY, require_finite
from pipeline.core.heads import HYBRID_WEIGHTS, Heads, unused_ids

WEIGHTS = tuple(HYBRID_WEIGHTS[mode] for mode in VECTOR_MODES)
MOST_SIMILARITIES = 1 << 24  # of pairs of tokens, in memory at once
Scores = Callable[[slice], np.ndarray]  # slice of queries -> their scores of all candidates, float32


@dataclass(frozen=True)
class HeadOutputs:
    """Some texts in all modes, float32: arrays on the CPU, tensors on the model's device."""

    dense: np.ndarray  # [texts, width]
    sparse: csr_array  # [texts, vocabulary], weights above 0
    tokens: torch.Tensor  # [texts, tokens, width of the head], of length 1; without the first token
    mask: torch.Tensor  # [texts, tokens], whether there is a token


@torch.inference_mode()
def vectors_of(
    encoder: Encoder, heads: Heads, texts: Sequence[str], prompt: str = ""
) -> Iterator[tuple[list[int], HeadOutputs]]:
    """The texts in batches of similar length, with their indices.

    Raises UserError if there are no hidden states, or a vector is not finite.
    """
    vocabulary, heads = encoder.config.vocab_size, heads.to(encoder.model.device)
    unused = torch.tensor(unused_ids(encoder.tokenizer), device=encoder.model.device)
    for batch, features in encoder.token_batches(encoder.tokenise(texts, prompt), prompt):
        hidden, mask, ids = features["token_embeddings"], features["attention_mask"].bool(), features["input_ids"]
        weights = heads.weights(hidden) * (mask & ~torch.isin(ids, unused))
        dense, tokens = encoder.pool(features).cpu().numpy(), heads.vectors(hidden)[:, 1:]
        found = HeadOutputs(dense, pooled(ids, weights, vocabulary), tokens, mask[:, 1:])
        require_finite([dense, found.sparse.data, tokens[found.mask].sum(0).cpu()], encoder.model)
        yield batch, found


def pooled(ids: torch.Tensor, weights: torch.Tensor, vocabulary: int) -> csr_array:
    """The largest weight [texts, vocabulary] of each id, from ids and weights [texts, tokens]."""
    rows = torch.arange(len(ids), device=ids.device)[:, None]
    places, index = torch.unique(rows * vocabulary + ids, return_inverse=True)
    largest = weights.new_zeros(len(places)).scatter_reduce_(0, index.flatten(), weights.flatten(), "amax")
    kept = largest != 0
    found, values = places[kept].cpu().numpy(), largest[kept].cpu().numpy()
    return csr_array((values, (found // vocabulary, found % vocabulary)), (len(ids), vocabulary))


def sparse_vectors(encoder: Encoder, heads: Heads, texts: Sequence[str], prompt: str = "") -> csr_array:
    """Sparse weights [texts, vocabulary]."""
    batches = list(vectors_of(encoder, heads, texts, prompt))
    order = np.argsort([index for batch, _ in batches for index in batch])
    return csr_array(vstack([found.sparse for _, found in batches]))[order]


def token_vectors(encoder: Encoder, heads: Heads, texts: Sequence[str], prompt: str = "") -> list[torch.Tensor]:
    """Unit vectors [tokens, width] of each text's tokens except the first, float32, on the CPU."""
    found: dict[int, torch.Tensor] = {}
    for batch, vectors in vectors_of(encoder, heads, texts, prompt):
        found |= {index: own[kept].cpu() for index, own, kept in zip(batch, vectors.tokens, vectors.mask, strict=True)}
    return [found[index] for index in range(len(texts))]


@torch.inference_mode()
def mode_scores(
    encoder: Encoder, heads: Heads, queries: Sequence[str], candidates: Sequence[str]
) -> tuple[dict[str, Scores], dict[str, dict[str, float]]]:
    """Scores by mode: similarity of dense vectors, dot product of sparse ones, MaxSim per query token; and sizes.

    Sizes are by mode and metric: bytes per candidate, with 32 bits per number and per sparse id, in all for hybrid.
    Candidates are scored batch by batch as they are encoded, so their token vectors are never all in memory; sparse
    vectors, which are small, are scored on demand.
    """
    order, encoded = [], list[HeadOutputs]()
    for batch, found in vectors_of(encoder, heads, queries, encoder.prompt(QUERY)):
        order += batch
        encoded.append(found)
    place = np.argsort(order)
    dense = np.concatenate([found.dense for found in encoded])[place]
    sparse = csr_array(vstack([found.sparse for found in encoded]))[place]
    tokens = torch.cat([found.tokens[found.mask] for found in encoded])
    counts = torch.cat([found.mask.sum(1) for found in encoded])
    whole = {mode: np.empty((len(queries), len(candidates)), np.float32) for mode in (DENSE, MULTI_VECTOR)}
    passages, order = list[csr_array](), []
    active, lengths = np.zeros(len(candidates)), np.zeros(len(candidates))
    for batch, found in vectors_of(encoder, heads, candidates, encoder.prompt(DOCUMENT)):
        whole[DENSE][:, batch] = encoder.model.similarity(dense, found.dense).cpu().numpy()
        whole[MULTI_VECTOR][:, batch] = maxsim(tokens, counts, found)[place]
        order += batch
        passages.append(found.sparse)
        active[batch], lengths[batch] = np.diff(found.sparse.indptr), found.mask.sum(1).cpu()
    stored = csr_array(vstack(passages))[np.argsort(order)].T.tocsr()
    scores: dict[str, Scores] = {mode: matrix.__getitem__ for mode, matrix in whole.items()}
    scores[SPARSE] = lambda rows: (sparse[rows] @ stored).toarray()
    empty = (np.diff(sparse.indptr) == 0).sum() + (active == 0).sum()  # of queries and candidates
    share, ids = float(empty / (len(queries) + len(candidates))), float(active.mean())
    sizes = {DENSE: {BYTES: 4.0 * dense.shape[1]}, SPARSE: {BYTES: 8 * ids, ZERO_SHARE: share, ACTIVE_IDS: ids}}
    sizes[MULTI_VECTOR] = {BYTES: 4 * tokens.shape[1] * float(lengths.mean())}
    sizes[HYBRID] = {BYTES: sum(size[BYTES] for size in sizes.values())}
    return scores, sizes


def maxsim(tokens: torch.Tensor, counts: torch.Tensor, found: HeadOutputs) -> np.ndarray:
    """MaxSim divided by the query's number of tokens [queries, texts].

    `tokens` [tokens, width] are those of all queries, concatenated, `counts` [queries] their number for each query.

    The same as sentence-transformers' `maxsim(length_normalize=True)` in half the time, as short queries aren't padded
    to the length of long ones.
    """
    texts, longest, width = found.tokens.shape
    owner, sums = torch.repeat_interleave(counts), tokens.new_zeros(len(counts), texts)
    rows = max(1, MOST_SIMILARITIES // (texts * longest))
    passages = found.tokens.reshape(-1, width).T  # a copy
    for part, owners in zip(tokens.split(rows), owner.split(rows), strict=True):
        pairs = (part @ passages).view(len(part), texts, longest)
        sums.index_add_(0, owners, pairs.masked_fill_(~found.mask, -torch.inf).amax(2))
    return (sums / counts[:, None]).cpu().numpy()


def weighted(scores: Sequence[Scores], weights: Sequence[float]) -> Scores:
    """The hybrid scores: the weighted sum of the modes' scores."""
    parts = list(zip(map(np.float32, weights), scores, strict=True))
    return lambda rows: reduce(np.add, (weight * part(rows) for weight, part in parts))

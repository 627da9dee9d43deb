"""The losses of sparse and multi-vector heads: BGE-M3's (arXiv:2402.03216, section 3.3).

`HeadsLoss` trains heads on a frozen encoder, which encodes each text once, without a graph; all heads take its hidden
states. Ranks gather the passages' hidden states, which need no gradient, and score their own queries against the
passages of the whole global batch. So each has the whole gradient of its queries' loss, and the mean over the ranks is
the gradient of one process.

`JointLoss` trains a side's encoder together with its heads. Ranks gather the heads' outputs for the passages, with
gradient.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import all_gather, all_gather_padded, get_rank
from sentence_transformers.util.distributed import get_world_size
from sentence_transformers.util.similarity import maxsim
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from configs.schema.training import SideConfig
from pipeline.core.heads import HYBRID_WEIGHTS, Heads, first_heads, unused_ids
from training.batch_plan import Integers
from training.losses import BatchLoss, GlobalRows, PlannedLoss, candidates
from training.model_files import encoder_of

LOSS_WEIGHTS = {"dense": 1.0, "sparse": 0.1, "multi_vector": 1.0}
CHUNK = 2**24  # numbers in a chunk of MaxSim: 64 MB in float32
KEPT_SIMILARITIES = 2**28  # of tokens, 1 GB, kept for the backward pass; if there are more, all are computed twice
MASKED_SCORE = -1e9  # of texts that are not candidates: unlike infinity it may be multiplied by 0


@dataclass(frozen=True)
class PaddedTexts:
    """The encoder's outputs for texts, padded to the longest."""

    tokens: Tensor  # (texts, tokens, width), hidden states or the heads' outputs
    ids: Tensor  # (texts, tokens)
    mask: Tensor  # (texts, tokens) bool; False for padding

    def on_all_ranks(self, with_grad: bool = False) -> "PaddedTexts":
        """Those of all ranks, in rank order; `with_grad` takes the gradient of `tokens` back to their rank."""
        if get_world_size() == 1:  # a process group of one would copy the outputs, and wait for the device
            return self
        tokens, mask = all_gather_padded(self.tokens, self.mask, with_grad)
        ids, _ = all_gather_padded(self.ids[:, :, None], self.mask)
        return PaddedTexts(tokens, ids[:, :, 0], mask)


class HeadsLoss(BatchLoss):
    """`bge_m3_loss` of heads alone: the dense score's own terms are constant, and left out."""

    def __init__(self, model: SentenceTransformer, temperature: float, mini_batch_num_tokens: int) -> None:
        super().__init__(model, temperature, mini_batch_num_tokens)
        self.heads, self.unused = heads_of(model), unused_ids(model.tokenizer)

    def forward(self, features: Iterable[dict[str, Tensor]], labels: dict[str, Any]) -> Tensor:
        """The loss of this rank's rows; `labels` holds `position` (rows, 2 + negatives) as for `PlannedLoss`."""
        position = labels["position"]
        encoded, dense = self._encoded(features)
        queries = pad_selected(encoded, position[:, 0])
        passages = pad_selected(encoded, position[:, 1:].flatten()).on_all_ranks()
        rows, group = position.shape[0], position.shape[1] - 1
        targets = (get_rank() * rows + torch.arange(rows, device=position.device)) * group
        with torch.autocast(position.device.type, enabled=False):
            cosines = dense[position[:, 0]] @ all_gather(dense[position[:, 1:].flatten()]).T
            loss, parts = bge_m3_loss(cosines / self.temperature, self.scores(queries, passages), targets)
        self.parts |= parts
        return loss

    def _encoded(self, features: Iterable[dict[str, Tensor]]) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Hidden states (tokens, width) and ids (tokens,) of each text of the mini-batches, and all dense vectors."""
        texts, dense = list[tuple[Tensor, Tensor]](), list[Tensor]()
        for part in features:
            made = self.model(dict(part))
            dense.append(F.normalize(made["sentence_embedding"].float(), dim=-1))
            hidden, ids = (unpad(output, part) for output in (made["token_embeddings"].float(), part["input_ids"]))
            texts += zip(hidden, ids, strict=True)
        return texts, torch.cat(dense)

    def scores(self, queries: PaddedTexts, passages: PaddedTexts) -> dict[str, Tensor]:
        """The scores of both heads by name, each (queries, passages), divided by the temperature."""
        outputs = [
            (self.heads.weights(texts.tokens), self.heads.vectors(texts.tokens)) for texts in (queries, passages)
        ]
        scores, self.parts["all_zero"] = head_scores((queries, passages), outputs, self.unused)
        return {name: score / self.temperature for name, score in scores.items()}


class JointLoss(PlannedLoss):
    """`bge_m3_loss` of an encoder with its heads, where the side's own loss replaces that of the dense score.

    AnglE, a teacher and further dimensions thus apply to dense vectors alone, with the same weight relative to the
    contrastive loss as without heads. The heads learn from the same rows, with the same passages left out as false
    negatives.
    """

    def __init__(self, model: SentenceTransformer, side: SideConfig, mini_batch_num_tokens: int) -> None:
        super().__init__(model, side, mini_batch_num_tokens)
        self.heads, self.unused = heads_of(model), unused_ids(model.tokenizer)
        self.dimension = model.get_embedding_dimension()

    def forward(self, features: Iterable[dict[str, Tensor]], labels: dict[str, Any]) -> Tensor:
        """As for `PlannedLoss`."""
        features = list(features)
        ids = [text for part in features for text in unpad(part["input_ids"], part)]
        return super().forward(features, {**labels, "ids": ids})

    def _embed(self, part: dict[str, Tensor]) -> Tensor:
        """Each text's dense vector, followed by the sparse weight and the vector of each of its tokens."""
        made = self.model(dict(part))
        dense = made["sentence_embedding"]
        with torch.autocast(dense.device.type, enabled=False):
            hidden = pad_sequence([*unpad(made["token_embeddings"].float(), part)], True)
            tokens = torch.cat([self.heads.weights(hidden)[..., None], self.heads.vectors(hidden)], dim=-1)
        return torch.cat([dense, tokens.flatten(1)], dim=1)  # in float32, as the tokens are

    def _of_embeddings(self, embeddings: list[Tensor], labels: dict[str, Any]) -> Tensor:
        width, position = 1 + self.heads.multi_vector.out_features, labels["position"]
        dense = torch.cat([part[:, : self.dimension] for part in embeddings])
        tokens = [text.view(-1, width) for part in embeddings for text in part[:, self.dimension :]]
        texts = [(features[: len(ids)], ids) for features, ids in zip(tokens, labels["ids"], strict=True)]
        queries = pad_selected(texts, position[:, 0])
        passages = pad_selected(texts, position[:, 1:].flatten()).on_all_ranks(with_grad=True)
        with torch.autocast(dense.device.type, enabled=False):
            local = dense[position]
            global_rows = self._gather_rows(local, labels)
            own = self._loss(local, global_rows, labels["angle_weight"])
            outputs = [(texts.tokens[..., 0], texts.tokens[..., 1:]) for texts in (queries, passages)]
            scores, all_zero = head_scores((queries, passages), outputs, self.unused)
            loss, parts = self._of_scores(scores, global_rows, own)
        self.parts |= {"self_distillation": parts.pop("distillation"), **parts, "all_zero": all_zero}
        return loss

    def _of_scores(
        self, heads: dict[str, Tensor], global_rows: GlobalRows, dense_loss: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts from the heads' scores (queries, passages) and the `dense_loss`.

        Rows that are not queries get weight 0.
        """
        embeddings, usable = global_rows.embeddings, global_rows.usable
        rows = torch.arange(len(usable), device=usable.device)[global_rows.local_slice]
        margin, guide = self.side.false_negative_margin, global_rows.guide
        cosines, excluded = candidates(embeddings, usable, rows, ("query_to_doc",), margin, guide)
        by_column = {name: score.unflatten(1, (len(usable), -1)).mT.flatten(1) for name, score in heads.items()}
        scores = {
            name: (score / self.temperature).masked_fill(excluded, MASKED_SCORE)
            for name, score in {"dense": cosines, **by_column}.items()
        }
        shares = get_world_size() * usable[rows] / usable.sum().clamp(min=1)

        def mean(logits: Tensor, target: Tensor) -> Tensor:
            return (F.cross_entropy(logits, target, reduction="none") * shares).sum()

        return bge_m3_loss(scores.pop("dense"), scores, rows, mean, dense_loss)


def held_bytes(lengths: Integers, rows: int, width: int, world_size: int) -> int:
    """Bytes that `JointLoss` holds on one rank for a global batch, on top of the encoder's activations.

    For every token, texts padded to the longest, 1 + `width` float32 numbers, four times: the heads' outputs by
    mini-batch and by text, and the gradients of both. With several ranks also the gathered passages and their gradient.
    Then the similarities that are kept.

    Args:
        lengths: (texts,) tokens of every text of the global batch.
        rows: how many of the texts are anchors.
        width: output dimension of the multi-vector head.
        world_size: number of ranks.
    """
    longest = int(lengths.max())
    tokens = 4 * len(lengths) * longest // world_size + 2 * (len(lengths) - rows) * longest * (world_size > 1)
    return 4 * (1 + width) * tokens + 4 * KEPT_SIMILARITIES


def bge_m3_loss(
    dense: Tensor,
    scores: dict[str, Tensor],
    targets: Tensor,
    mean: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    dense_loss: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of the contrastive loss and of self-distillation (arXiv:2402.03216, section 3.3), and its parts.

    With s = s_dense + 0.3 s_sparse + s_multi, all divided by the temperature, and cross-entropies CE over all passages
    of the global batch: L = (dense_loss + CE(s) + 0.1 CE(s_sparse) + CE(s_multi)) / 4, and with softmax(s) as a target
    without gradient L' = (CE'(s_dense) + 0.1 CE'(s_sparse) + CE'(s_multi)) / 3; the loss is (L + L') / 2.

    Args:
        dense, scores: scores of the dense vectors, and of both heads by name, (queries, passages).
        targets: (queries,), the passage of each.
        mean: the mean cross-entropy over the queries, from scores and either targets or probabilities.
        dense_loss: that of the dense vectors alone; None where they don't learn, which leaves out CE'(s_dense) too.
    """
    ensemble = (
        dense + HYBRID_WEIGHTS["sparse"] * scores["sparse"] + HYBRID_WEIGHTS["multi_vector"] * scores["multi_vector"]
    )
    teacher = ensemble.detach().softmax(dim=-1)
    contrastive = {name: mean(score, targets) for name, score in {"ensemble": ensemble, **scores}.items()}
    students = scores if dense_loss is None else {**scores, "dense": dense}
    distillation = (
        torch.stack([LOSS_WEIGHTS[name] * mean(score, teacher) for name, score in students.items()]).sum() / 3
    )
    weighted = [contrastive["ensemble"], *(LOSS_WEIGHTS[name] * contrastive[name] for name in scores)]
    weighted += [] if dense_loss is None else [dense_loss]
    parts = {name: part.detach() for name, part in {**contrastive, "distillation": distillation}.items()}
    return (torch.stack(weighted).sum() / 4 + distillation) / 2, parts


def head_scores(
    texts: Sequence[PaddedTexts], outputs: Sequence[tuple[Tensor, Tensor]], unused: Sequence[int]
) -> tuple[dict[str, Tensor], Tensor]:
    """Both heads' scores (queries, passages) by name, and the share of the texts without any sparse weight.

    `texts` are queries and passages, `outputs` the sparse weights (texts, tokens) and unit vectors (texts, tokens,
    width) of all their tokens. The ids in `unused` get weight 0, and the first token has no vector.
    """
    special = torch.tensor(unused, device=texts[0].ids.device)
    weights = [
        weight * (own.mask & ~torch.isin(own.ids, special)) for own, (weight, _) in zip(texts, outputs, strict=True)
    ]
    all_zero = 1 - torch.cat([weight.any(dim=1) for weight in weights]).float().mean()
    queries, passages = texts
    (_, a), (_, b) = outputs
    return {
        "sparse": sparse_scores(queries.ids, weights[0], passages.ids, weights[1]),
        "multi_vector": mean_maxsim(a[:, 1:], b[:, 1:], queries.mask[:, 1:], passages.mask[:, 1:]),
    }, all_zero


def mean_maxsim(a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor) -> Tensor:
    """MaxSim divided by the number of the query's tokens, (queries, passages), in bounded memory.

    `a` (queries, tokens, width) and `b` (passages, tokens, width), masks (…, tokens) bool. Where more than
    KEPT_SIMILARITIES would be kept for the backward pass, it computes them again.
    """
    score = partial(maxsim, chunk_elements=CHUNK, length_normalize=True)
    most = max(1, KEPT_SIMILARITIES // (a.shape[1] * b.shape[0] * b.shape[1]))
    if len(a) <= most:
        return score(a, b, a_mask, b_mask)
    parts = zip(a.split(most), a_mask.split(most), strict=True)
    again = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([again(queries, b, mask, b_mask) for queries, mask in parts])


def add_heads(model: SentenceTransformer, folder: Path, seed: int) -> Heads:
    """Append `first_heads` as the last module of the model, which was loaded from the folder."""
    heads = first_heads(folder, encoder_of(model).config.hidden_size, seed).requires_grad_()
    model.add_module("heads", heads)
    return heads


def heads_of(model: SentenceTransformer) -> Heads:
    """The heads that `add_heads` gave the model."""
    heads = model[-1]
    assert isinstance(heads, Heads)
    return heads


def unpad(tokens: Tensor, part: dict[str, Tensor]) -> Sequence[Tensor]:
    """Unpad `tokens`, (texts, tokens, ...) or packed (1, all tokens, ...): one tensor (its tokens, ...) a text."""
    if "cu_seq_lens_q" in part:
        return tokens[0].split(part["cu_seq_lens_q"].diff().tolist())
    return [own[:length] for own, length in zip(tokens, part["attention_mask"].sum(dim=1).tolist(), strict=True)]


def pad_selected(texts: Sequence[tuple[Tensor, Tensor]], places: Tensor) -> PaddedTexts:
    """The texts at the indices `places` (n,), padded to the longest; a text is (token features, token ids)."""
    tokens, ids = zip(*(texts[place] for place in places.tolist()), strict=True)
    lengths = torch.tensor([len(text_ids) for text_ids in ids], device=places.device)
    mask = torch.arange(int(lengths.max()), device=places.device) < lengths[:, None]
    return PaddedTexts(pad_sequence([*tokens], True), pad_sequence([*ids], True), mask)


def sparse_scores(ids: Tensor, weights: Tensor, other_ids: Tensor, other_weights: Tensor) -> Tensor:
    """Dot products (texts, other texts) of sparse vectors, whose entry at an id is the largest weight of its tokens.

    All arguments are (texts, tokens). Only the ids of the first texts get a column, not the vocabulary.
    """
    occurring = ids.unique()

    def over_occurring(ids: Tensor, weights: Tensor) -> Tensor:
        column = torch.searchsorted(occurring, ids).clamp(max=len(occurring) - 1)
        known = occurring[column] == ids
        made = weights.new_zeros(len(ids), len(occurring))
        return made.scatter_reduce(1, column, weights * known, "amax")

    return over_occurring(ids, weights) @ over_occurring(other_ids, other_weights).T

"""The loss of sparse and multi-vector heads on an encoder that stays as it is.

Of each text the encoder runs once, without a graph; all heads take its hidden states. Ranks gather the passages'
hidden states, which need no gradient, and score their own queries against the passages of the whole global batch. So
each has the whole gradient of its queries' loss, and the mean over the ranks is the gradient of one process.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Module
from sentence_transformers.util import all_gather, all_gather_padded, get_rank
from sentence_transformers.util.distributed import get_world_size
from sentence_transformers.util.similarity import maxsim
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pipeline.core.heads import IN_HYBRID, unused_ids
from training.losses import BatchLoss

IN_LOSS = {"sparse": 0.1, "multi_vector": 1.0}
CHUNK = 2**24  # numbers in a piece of MaxSim's work: 64 MB in float32


class HeadLayers(Module):
    """Both heads as the last module of a model, for the trainer's sake: it passes on what it gets."""

    def __init__(self, sparse: nn.Linear, multi_vector: nn.Linear) -> None:
        super().__init__()
        self.sparse, self.multi_vector = sparse.requires_grad_(), multi_vector.requires_grad_()

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        self.save_torch_weights(output_path)


@dataclass(frozen=True)
class FrozenTexts:
    """What the encoder makes of texts, padded to the longest."""

    hidden: Tensor  # (texts, tokens, width)
    ids: Tensor  # (texts, tokens)
    mask: Tensor  # (texts, tokens) bool; False for padding
    dense: Tensor  # (texts, dimension), of length 1

    def on_all_ranks(self) -> "FrozenTexts":
        """Those of all ranks, in rank order."""
        if get_world_size() == 1:
            return self
        hidden, mask = all_gather_padded(self.hidden, self.mask)
        ids, _ = all_gather_padded(self.ids[:, :, None], self.mask)
        return FrozenTexts(hidden, ids[:, :, 0], mask, all_gather(self.dense))


class HeadsLoss(BatchLoss):
    """The mean of the contrastive loss and of self-distillation, as BGE-M3 has it (arXiv:2402.03216, section 3.3).

    With s = s_dense + 0.3 s_sparse + s_multi, all divided by the temperature, and cross-entropies CE over all passages
    of the global batch: L = (CE(s) + 0.1 CE(s_sparse) + CE(s_multi)) / 4, and with softmax(s) as a target without
    gradient L' = (0.1 CE'(s_sparse) + CE'(s_multi)) / 3; the loss is (L + L') / 2. The dense score's own terms are
    constant here, and left out.
    """

    def __init__(self, model: SentenceTransformer, temperature: float, mini_batch_num_tokens: int) -> None:
        super().__init__(model, temperature, mini_batch_num_tokens)
        heads = model[-1]
        assert isinstance(heads, HeadLayers)
        self.heads = heads
        self.unused = unused_ids(model.tokenizer)

    def forward(self, features: Iterable[dict[str, Tensor]], labels: dict[str, Any]) -> Tensor:
        """The loss of this rank's rows; `labels` holds `position` (rows, 2 + negatives) as for `PlannedLoss`."""
        position = labels["position"]
        encoded = self._encoded(features)
        queries = chosen(encoded, position[:, 0])
        passages = chosen(encoded, position[:, 1:].flatten()).on_all_ranks()
        rows, group = position.shape[0], position.shape[1] - 1
        targets = (get_rank() * rows + torch.arange(rows, device=position.device)) * group
        with torch.autocast(position.device.type, enabled=False):
            return self._loss(*self.scores(queries, passages), targets)

    def _encoded(self, features: Iterable[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Hidden states (tokens, width), ids (tokens,) and dense vector of each text of the mini-batches."""
        texts: list[tuple[Tensor, Tensor, Tensor]] = []
        for part in features:
            made = self.model(dict(part))
            dense = F.normalize(made["sentence_embedding"].float(), dim=-1)
            hidden, ids = made["token_embeddings"].float(), part["input_ids"]
            if "cu_seq_lens_q" in part:  # packed texts
                lengths = part["cu_seq_lens_q"].diff().tolist()
                texts += zip(hidden[0].split(lengths), ids[0].split(lengths), dense, strict=True)
            else:
                lengths = part["attention_mask"].sum(dim=1).tolist()
                texts += ((h[:n], i[:n], d) for h, i, d, n in zip(hidden, ids, dense, lengths, strict=True))
        return texts

    def scores(self, queries: FrozenTexts, passages: FrozenTexts) -> tuple[Tensor, dict[str, Tensor]]:
        """Dense scores, and those of both heads by name, each (queries, passages), divided by the temperature."""
        dense = queries.dense @ passages.dense.T
        weights, of_passages = self._weights(queries), self._weights(passages)
        self.parts["all_zero"] = 1 - torch.cat([of.any(dim=1) for of in (weights, of_passages)]).float().mean()
        sparse = sparse_scores(queries.ids, weights, passages.ids, of_passages)
        (a, a_mask), (b, b_mask) = self._vectors(queries), self._vectors(passages)
        multi_vector = maxsim(a, b, a_mask, b_mask, chunk_elements=CHUNK, length_normalize=True)
        scores = {"sparse": sparse, "multi_vector": multi_vector}
        return dense / self.temperature, {name: of / self.temperature for name, of in scores.items()}

    def _weights(self, texts: FrozenTexts) -> Tensor:
        """(texts, tokens), at least 0, and 0 for padding and special tokens."""
        special = torch.isin(texts.ids, torch.tensor(self.unused, device=texts.ids.device))
        return torch.relu(self.heads.sparse(texts.hidden)).squeeze(-1) * (texts.mask & ~special)

    def _vectors(self, texts: FrozenTexts) -> tuple[Tensor, Tensor]:
        """Unit vectors (texts, tokens, width), and which of them count: those of all tokens but the first one."""
        vectors = F.normalize(self.heads.multi_vector(texts.hidden), dim=-1)
        return vectors[:, 1:], texts.mask[:, 1:]

    def _loss(self, dense: Tensor, scores: dict[str, Tensor], targets: Tensor) -> Tensor:
        ensemble = dense + IN_HYBRID["sparse"] * scores["sparse"] + IN_HYBRID["multi_vector"] * scores["multi_vector"]
        teacher = ensemble.detach().softmax(dim=-1)
        contrastive = {name: F.cross_entropy(of, targets) for name, of in {"ensemble": ensemble, **scores}.items()}
        distilled = {name: F.cross_entropy(of, teacher) for name, of in scores.items()}
        distillation = (
            IN_LOSS["sparse"] * distilled["sparse"] + IN_LOSS["multi_vector"] * distilled["multi_vector"]
        ) / 3
        weighed = [contrastive["ensemble"], *(IN_LOSS[name] * contrastive[name] for name in scores)]
        parts = {**contrastive, "distillation": distillation}
        self.parts |= {name: part.detach() for name, part in parts.items()}
        return (torch.stack(weighed).sum() / 4 + distillation) / 2


def chosen(texts: Sequence[tuple[Tensor, Tensor, Tensor]], places: Tensor) -> FrozenTexts:
    """The texts at these places, padded to the longest of them."""
    hidden, ids, dense = zip(*(texts[place] for place in places.tolist()), strict=True)
    lengths = torch.tensor([len(of) for of in ids], device=places.device)
    mask = torch.arange(int(lengths.max()), device=places.device) < lengths[:, None]
    return FrozenTexts(pad_sequence([*hidden], True), pad_sequence([*ids], True), mask, torch.stack(dense))


def sparse_scores(ids: Tensor, weights: Tensor, other_ids: Tensor, other_weights: Tensor) -> Tensor:
    """Dot products (texts, other texts) of the vectors whose entry at an id is the maximum of its tokens' weights.

    All arguments are (texts, tokens). Only the ids of the first texts get a column, not the vocabulary.
    """
    occurring = ids.unique()

    def over_occurring(ids: Tensor, weights: Tensor) -> Tensor:
        column = torch.searchsorted(occurring, ids).clamp(max=len(occurring) - 1)
        known = occurring[column] == ids
        made = weights.new_zeros(len(ids), len(occurring))
        return made.scatter_reduce(1, column, weights * known, "amax")

    return over_occurring(ids, weights) @ over_occurring(other_ids, other_weights).T

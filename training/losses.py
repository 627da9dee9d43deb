"""The training loss: contrastive, AnglE and distillation from one set of embeddings, for any number of processes.

All terms are computed on the global batch. Embeddings are gathered from all ranks with gradient, whose backward pass
sums over the ranks; DistributedDataParallel then averages. So a rank's loss is `world_size` times its share of a sum
over local queries (contrastive, distillation), or the whole term (AnglE), and the averaged gradient is that of one
process with the whole batch.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from sentence_transformers.base.losses.gradcache import RandContext
from sentence_transformers.util import all_gather_with_grad, get_rank
from sentence_transformers.util.distributed import get_world_size
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.schema.training import SideConfig


def pairwise_angle(first: Tensor, second: Tensor) -> Tensor:
    """AnglE's similarity of each row of `first` with the same row of `second`, both (pairs, dim); in [0, sqrt 2].

    The halves of a vector are read as real and imaginary parts. With J(c, d) = (-d, c), the sum of the real parts of
    the quotients is cos(u, v), that of the imaginary ones cos(u, Jv), and the similarity |cos(u, v) + cos(u, Jv)|
    (arXiv:2309.12871, in the form of angle_emb and sentence-transformers). Scale-free in both arguments.
    """
    a, b = F.normalize(first, dim=-1).chunk(2, dim=-1)
    c, d = F.normalize(second, dim=-1).chunk(2, dim=-1)
    return ((a * c + b * d) + (b * c - a * d)).sum(dim=-1).abs()


def angle_loss(first: Tensor, second: Tensor, labels: Tensor, scale: float) -> Tensor:
    """log(1 + sum over pairs i, j with label i < label j of exp(scale * (S_i - S_j))); a scalar.

    `first` and `second` are (pairs, dim), `labels` (pairs,), higher meaning more similar. Exactly 0, with zero
    gradient, where all labels are equal. The valid differences are selected rather than masked with a large number,
    which would overflow in half precision.

    One weight does not mean the same at every batch size. The gradient sums p_ij * scale * (dS_i - dS_j) over the valid
    i, j, where the p_ij sum to 1 - exp(-loss). The number of valid i, j grows with the square of the rows, so in larger
    batches that sum rises to 1 even where nearly all pairs are ordered correctly, and the few worst ones dominate it.
    The contrastive loss, a mean over rows, does neither. `angle_gradient_share` of metrics.jsonl shows the effect.
    """
    similarity = pairwise_angle(first, second) * scale
    lower, higher = (labels[:, None] < labels[None, :]).nonzero(as_tuple=True)
    differences = similarity[lower] - similarity[higher]
    return torch.logsumexp(torch.cat([differences.new_zeros(1), differences]), dim=0)


def contrastive_loss(
    embeddings: Tensor,
    usable: Tensor,
    temperature: float,
    directions: Sequence[str] = ("query_to_doc",),
    margin: float | None = None,
    queries: slice = slice(None),
    guide: Tensor | None = None,
) -> Tensor:
    """InfoNCE with in-batch and hard negatives, a scalar.

    It is the cross-entropy of each query's own positive, summed over `queries` and divided by the number of usable rows
    in the whole global batch.

    Args:
        embeddings: (rows, 2 + negatives, dim): anchor, positive and hard negatives of each row of the global batch.
        usable: (rows,) bool; other rows are neither queries nor candidates.
        temperature: cosine similarities are divided by it.
        directions: query_to_doc compares the anchor with all positives and negatives; doc_to_query adds its positive
            with all anchors, query_to_query the anchor with the other anchors, and doc_to_doc its positive with the
            other positives to the same softmax (arXiv:2308.03281, section 3.3).
        margin: leave out other rows' texts whose similarity is above that of the anchor's own positive minus this
            margin, as probable false negatives; None keeps all, or is 0 with a guide.
        queries: the rows whose cross-entropy is summed.
        guide: (rows, 2 + negatives, any width): a guide model's embeddings. False negatives are then judged by its
            similarities, not the model's own, and the row's own negatives are judged too (GISTEmbed, arXiv:2402.16829).
    """
    rows = _own(usable, queries)
    cosines, excluded = candidates(embeddings, usable, rows, directions, margin, guide)
    logits = cosines.masked_fill(excluded, float("-inf")) / temperature
    return F.cross_entropy(logits, rows, reduction="sum") / usable.sum().clamp(min=1)


def candidates(
    embeddings: Tensor,
    usable: Tensor,
    rows: Tensor,
    directions: Sequence[str],
    margin: float | None = None,
    guide: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines of each of `rows` with its candidates, and a mask of the candidates that `contrastive_loss` leaves out.

    Both are (len(rows), candidates), the mask True where one is left out. The columns are the positives of all rows of
    the global batch, then their first negatives, and so on, then the blocks of further `directions`.
    """
    blocks, cosines = _blocks(embeddings.shape[1], directions), _cosines(embeddings, rows, directions)
    own = rows[:, None] == torch.arange(len(usable), device=rows.device)
    excluded = torch.cat([~usable | (own & (one == other)) for one, other in blocks], dim=1)  # or a text with itself
    if margin is not None or guide is not None:
        judged = cosines.detach() if guide is None else _cosines(guide, rows, directions)
        positive = judged.gather(1, rows[:, None])
        spared = [own & (guide is None or one + other == 1) for one, other in blocks]
        excluded = excluded | ((judged > positive - (margin or 0.0)) & ~torch.cat(spared, dim=1))
    return cosines, excluded


def distillation_loss(
    embeddings: Tensor,
    teacher: Tensor,
    usable: Tensor,
    temperature: float,
    directions: Sequence[str] = ("query_to_doc",),
    queries: slice = slice(None),
) -> Tensor:
    """Sum over `queries` of KL(teacher | student), divided by the number of usable rows; a scalar.

    Both distributions are the softmax of cosines, divided by `temperature`, over the candidates of `contrastive_loss`
    (arXiv:2010.11386, section 3). `teacher` is (rows, 2 + negatives, any width); the other arguments are those of
    `contrastive_loss`. The usual factor temperature ** 2 is left out: then the gradient is (q - p) / temperature, like
    that of the contrastive loss, and a weight means the same at every temperature.
    """
    rows = _own(usable, queries)
    cosines, excluded = candidates(embeddings, usable, rows, directions)
    student, wanted = (
        (found / temperature).masked_fill(excluded, float("-inf")).log_softmax(dim=1)
        for found in (cosines, _cosines(teacher, rows, directions))
    )
    divergence = F.kl_div(student.masked_fill(excluded, 0.0), wanted.exp(), reduction="sum")  # 0 * -inf is NaN
    return divergence / usable.sum().clamp(min=1)


def _own(usable: Tensor, queries: slice) -> Tensor:
    """The usable rows among `queries`."""
    return torch.arange(len(usable), device=usable.device)[queries][usable[queries]]


def _blocks(columns: int, directions: Sequence[str]) -> list[tuple[int, int]]:
    """Which column of a query's row is compared with which of all rows: 0 anchors, 1 positives, then negatives."""
    others = {"doc_to_query": (1, 0), "query_to_query": (0, 0), "doc_to_doc": (1, 1)}
    return [(0, column) for column in range(1, columns)] + [others[name] for name in directions if name in others]


def _cosines(embeddings: Tensor, rows: Tensor, directions: Sequence[str]) -> Tensor:
    """Cosines of each of `rows` with its candidates, (rows, candidates), block by block; column n: row n's positive."""
    columns = F.normalize(embeddings, dim=-1).unbind(1)
    own = columns[0][rows], columns[1][rows]
    return torch.cat([own[one] @ columns[other].T for one, other in _blocks(len(columns), directions)], dim=1)


@dataclass(frozen=True)
class GlobalRows:
    """The rows of the global batch, gathered from all ranks; `local_slice` is the slice that this rank embedded."""

    embeddings: Tensor  # (rows, 2 + negatives, dim)
    scores: Tensor  # (rows,), NaN where there is none
    local_slice: slice
    guide: Tensor | None = None  # other models' vectors, (rows, 2 + negatives, any width)
    teacher: Tensor | None = None

    @property
    def usable(self) -> Tensor:
        """(rows,) bool: whether the row's positive is one, that is, has no score or score 1."""
        return self.scores.isnan() | (self.scores == 1)


class BatchLoss(nn.Module):
    """What the trainer needs of a loss: `model`, `parts` to log, and the mini-batches' budget in tokens."""

    def __init__(self, model: nn.Module, temperature: float, mini_batch_num_tokens: int) -> None:
        super().__init__()
        self.model, self.temperature = model, temperature
        self.mini_batch_num_tokens = mini_batch_num_tokens
        self.parts: dict[str, Tensor] = {}  # of the last batch; averaged over the ranks they are the global values
        self.measures = True  # whether `angle_gradient_share`, which takes two more passes over the losses, is wanted
        self.angle_gradient_share: Tensor | None = None  # of the last batch where it was, the same on every rank


class PlannedLoss(BatchLoss):
    """Contrastive loss plus weighted AnglE and distillation of a rank's slice, summed over the side's dimensions.

    The texts of all columns come as mini-batches of similar length (`training.batches.MiniBatchCollator`), so columns
    of different length are never padded to each other. A batch that fits into `mini_batch_num_tokens` is embedded
    with one autograd graph. In a larger batch as many mini-batches as fit keep their graphs; the others go through
    gradient caching (GradCache, arXiv:2101.06983): a forward pass without a graph, and, once the gradient of the loss
    with respect to their embeddings is known, a second one with a graph. The gradient is the same either way.
    """

    def __init__(self, model: nn.Module, side: SideConfig, mini_batch_num_tokens: int) -> None:
        super().__init__(model, side.temperature, mini_batch_num_tokens)
        self.side = side

    def forward(self, features: Iterable[dict[str, Tensor]], labels: dict[str, Any]) -> Tensor:
        """The loss of this rank's rows.

        `labels` holds `position` (rows, 2 + negatives), each text's place in the concatenated mini-batches, `score`
        (rows,), NaN where there is none, `angle_weight`, and from a guide or teacher model `guide` and `teacher`, its
        vectors of the texts (rows, 2 + negatives, width).
        """
        features = list(features)
        kept = kept_graphs([part["input_ids"].numel() for part in features], self.mini_batch_num_tokens)
        if all(kept) or not torch.is_grad_enabled():
            return self._of_embeddings([self._embed(part) for part in features], labels)
        return self._partly_cached(features, kept, labels)

    def _embed(self, part: dict[str, Tensor]) -> Tensor:
        return self.model(dict(part))["sentence_embedding"].float()  # a copy, which the model adds its outputs to

    def _unsynchronised(self) -> AbstractContextManager[None]:
        """Gradients stay on their rank; the forward and the backward pass must both run inside."""
        return self.model.no_sync() if isinstance(self.model, DistributedDataParallel) else nullcontext()

    def _partly_cached(self, features: list[dict[str, Tensor]], kept: list[bool], labels: dict[str, Any]) -> Tensor:
        embeddings: list[Tensor] = []
        states: dict[int, RandContext] = {}
        for index, (part, keep) in enumerate(zip(features, kept, strict=True)):
            if not keep:
                states[index] = RandContext(*part.values())  # for the same dropout the second time
            with self._unsynchronised(), torch.set_grad_enabled(keep):
                embeddings.append(self._embed(part))
        leaves = [embedding.detach().requires_grad_() for embedding in embeddings]
        loss = self._of_embeddings(leaves, labels)
        gradients = torch.autograd.grad(loss, leaves)

        def backward(factor: Tensor) -> None:
            """Give the parameters their gradients, times `factor`, which float16's scaler sets."""
            with self._unsynchronised():  # the kept graphs first: that frees them before another is made
                for embedding, gradient, keep in zip(embeddings, gradients, kept, strict=True):
                    if keep:
                        embedding.backward(gradient * factor)
            for index, state in states.items():
                last = index == max(states)  # then the ranks' gradients are averaged
                with nullcontext() if last else self._unsynchronised(), torch.enable_grad():
                    with state:
                        embedding = self._embed(features[index])
                    embedding.backward(gradients[index] * factor)

        value = loss.detach().requires_grad_()
        value.register_hook(backward)
        return value

    def _of_embeddings(self, embeddings: list[Tensor], labels: dict[str, Any]) -> Tensor:
        """The loss from the embeddings of the mini-batches, in float32 also under autocast."""
        with torch.autocast(embeddings[0].device.type, enabled=False):
            local = torch.cat(embeddings)[labels["position"]]
            return self._loss(local, self._gather_rows(local, labels), labels["angle_weight"])

    def _gather_rows(self, local: Tensor, labels: dict[str, Any]) -> GlobalRows:
        """The rows of all ranks."""
        gathered = all_gather_with_grad if get_world_size() > 1 else (lambda own: own)
        embeddings = gathered(local)
        guide, teacher = (gathered(labels[role]) if role in labels else None for role in ("guide", "teacher"))
        if self.side.teacher == "self":
            teacher = embeddings.detach()
        own = slice(get_rank() * len(local), (get_rank() + 1) * len(local))
        return GlobalRows(embeddings, gathered(labels["score"]), own, guide, teacher)

    def _loss(self, local: Tensor, global_rows: GlobalRows, angle_weight: float) -> Tensor:
        """The weighted sum of all terms, each summed over the side's dimensions; `local` are this rank's embeddings."""
        world_size, side, usable, teacher = get_world_size(), self.side, global_rows.usable, global_rows.teacher
        weights = {"contrastive": 1.0, "angle": angle_weight, "distillation": side.teacher_weight}
        margin, guide = side.false_negative_margin, global_rows.guide
        totals: dict[str, Tensor] = {}
        for width, share in side.weight_of_dimension.items():
            texts = global_rows.embeddings[..., :width]
            contrastive = contrastive_loss(
                texts, usable, side.temperature, side.directions, margin, global_rows.local_slice, guide
            )
            terms = {"contrastive": world_size * contrastive}
            if weights["angle"] > 0:
                terms["angle"] = angle_loss(*angle_pairs(texts, global_rows.scores), scale=side.angle_scale)
            if teacher is not None:
                temperature = side.teacher_temperature
                distilled = distillation_loss(
                    texts, teacher, usable, temperature, side.directions, global_rows.local_slice
                )
                terms["distillation"] = world_size * distilled
            totals = {name: totals.get(name, 0.0) + share * term for name, term in terms.items()}
        self.parts = {name: total.detach() for name, total in totals.items()}
        if self.measures and local.requires_grad:
            self.angle_gradient_share = torch.zeros(())
            if "angle" in totals:
                norm, angular = gradient_norms((totals["contrastive"], totals["angle"]), local)
                angular = weights["angle"] * angular
                self.angle_gradient_share = angular / (norm + angular).clamp(min=1e-30)
        return sum((weights[name] * total for name, total in totals.items()), start=torch.zeros(()))


def gradient_norms(losses: Sequence[Tensor], local: Tensor) -> Tensor:
    """The norm of each loss's gradient with respect to the global batch's embeddings; shape (losses,), no gradient.

    `local` (rows, texts, dim) are those of this rank. No gradient goes through the encoder, so this costs next to
    nothing. On n ranks each norm is n times that of one process, since gradients are not averaged yet: use ratios.
    """
    gradients = [torch.autograd.grad(loss, local, retain_graph=True)[0] for loss in losses]
    squares = torch.stack([gradient.square().sum() for gradient in gradients])
    if get_world_size() > 1:
        torch.distributed.all_reduce(squares)
    return squares.sqrt()


def kept_graphs(sizes: Sequence[int], max_tokens: int) -> list[bool]:
    """Which mini-batches of `sizes` tokens keep their autograd graphs: the largest first, `max_tokens` in all."""
    kept, room = [False] * len(sizes), max_tokens
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        if sizes[index] <= room:
            kept[index], room = True, room - sizes[index]
    return kept


def angle_pairs(embeddings: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The labelled pairs of a batch: (anchor, positive) with the row's score, or 1, and (anchor, negative) with 0.

    `embeddings` is (rows, 2 + negatives, dim); returns first texts, second texts and labels of rows * (1 + negatives)
    pairs.
    """
    labels = torch.zeros(embeddings.shape[0], embeddings.shape[1] - 1, device=embeddings.device)
    labels[:, 0] = scores.nan_to_num(nan=1.0)
    first = embeddings[:, :1].expand(-1, embeddings.shape[1] - 1, -1)
    return first.flatten(0, 1), embeddings[:, 1:].flatten(0, 1), labels.flatten()

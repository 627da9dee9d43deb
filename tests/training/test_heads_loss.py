"""The heads' loss against loops over tokens, on two processes, and with packed texts."""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import training.heads.loss
from pipeline.core.packed import first_position_of, use_packed
from tests.support.planned_sets import difference, features_of, gradients, random_vectors, rows, tokenised
from tests.support.training_process import (
    HEADS_ROWS,
    ONE_BATCH,
    heads_gradients,
    heads_loss,
    joint_loss,
    of_two_ranks,
    sets_of,
)
from training.batch_plan import plan_batches
from training.batches import MiniBatchCollator, PlannedDataset
from training.heads.loss import HeadsLoss, JointLoss, PaddedTexts, bge_m3_loss, mean_maxsim, pad_selected
from training.losses import PlannedLoss
from training.memory import Budget

TEMPERATURE = 0.05
SPECIAL = {0, 1, 2, 3}  # <s>, <pad>, </s>, <unk> of XLM-R


@pytest.fixture
def loss() -> HeadsLoss:
    loss = heads_loss(TEMPERATURE)
    torch.nn.init.normal_(
        loss.heads.sparse.weight, std=0.1, generator=torch.Generator().manual_seed(1)
    )  # some tokens have weight 0
    return loss


@dataclass(frozen=True)
class Texts(PaddedTexts):
    dense: Tensor  # (texts, dimension), of length 1


def texts(number: int, seed: int) -> Texts:
    """Random hidden states of texts of 3 to 9 tokens, few ids, so that texts share them and have some twice."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 10, (number, 1), generator=random)
    ids = torch.randint(2, 12, (number, 9), generator=random)
    ids[:, 0] = 0
    hidden = torch.randn(number, 9, 32, generator=random)
    dense = torch.nn.functional.normalize(torch.randn(number, 8, generator=random), dim=-1)
    return Texts(hidden, ids, torch.arange(9) < lengths, dense)


def brute_sparse(loss: HeadsLoss | JointLoss, of: PaddedTexts, row: int) -> dict[int, Tensor]:
    """Token id -> the greatest weight of its tokens, by the formula of recipe and paper."""
    found: dict[int, list[Tensor]] = defaultdict(lambda: [torch.zeros(())])
    for token, hidden, real in zip(of.ids[row].tolist(), of.tokens[row], of.mask[row], strict=True):
        if real and token not in SPECIAL:
            found[token].append((loss.heads.sparse.weight[0] * hidden).sum() + loss.heads.sparse.bias[0])
    return {token: torch.stack(weights).max() for token, weights in found.items()}


def brute_vectors(loss: HeadsLoss | JointLoss, of: PaddedTexts, row: int) -> list[Tensor]:
    made = [loss.heads.multi_vector.weight @ h + loss.heads.multi_vector.bias for h in of.tokens[row][of.mask[row]]]
    return [vector / vector.norm() for vector in made[1:]]


def brute_scores(loss: HeadsLoss | JointLoss, queries: Texts, passages: Texts) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {"dense": [], "sparse": [], "multi_vector": []}
    made = [
        [(of.dense[row], brute_sparse(loss, of, row), brute_vectors(loss, of, row)) for row in range(len(of.ids))]
        for of in (queries, passages)
    ]
    for (one, weights, vectors), (other, other_weights, others) in product(*made):
        found["dense"].append((one * other).sum())
        shared = [weights[token] * other_weights[token] for token in weights.keys() & other_weights.keys()]
        found["sparse"].append(sum(shared, torch.zeros(())))
        best = [torch.stack([vector @ near for near in others]).max() for vector in vectors]
        found["multi_vector"].append(sum(best, torch.zeros(())) / len(best))
    shape = len(queries.ids), len(passages.ids)
    return {name: torch.stack(of).reshape(shape) / TEMPERATURE for name, of in found.items()}


def encoded_texts(model: torch.nn.Module, features: list[dict[str, Tensor]], position: Tensor) -> tuple[Texts, Texts]:
    """Queries and passages of these rows as the encoder makes them."""
    encoded, vectors = list[tuple[Tensor, Tensor]](), list[Tensor]()
    for part in features:
        made = model(dict(part))
        vectors += torch.nn.functional.normalize(made["sentence_embedding"], dim=-1)
        masks = part["attention_mask"].bool()
        for text, ids, mask in zip(made["token_embeddings"], part["input_ids"], masks, strict=True):
            encoded.append((text[mask], ids[mask]))
    queries, passages = (
        Texts(**vars(pad_selected(encoded, at)), dense=torch.stack(vectors)[at])
        for at in (position[:, 0], position[:, 1:].flatten())
    )
    return queries, passages


def brute_loss(scores: dict[str, Tensor], targets: list[int]) -> Tensor:
    """The paper's sums, one exponential at a time, without the terms of only the dense score."""
    ensemble = scores["dense"] + 0.3 * scores["sparse"] + scores["multi_vector"]

    def log_probability(of: Tensor, row: int, column: int) -> Tensor:
        return of[row, column] - torch.stack([score.exp() for score in of[row]]).sum().log()

    contrastive, distilled = torch.zeros(()), torch.zeros(())
    weights = ((ensemble, 1.0), (scores["sparse"], 0.1), (scores["multi_vector"], 1.0))
    for row, target in enumerate(targets):
        for of, weight in weights:
            contrastive = contrastive - weight * log_probability(of, row, target) / 4
        for of, weight in weights[1:]:
            for column in range(ensemble.shape[1]):
                teacher = math.exp(log_probability(ensemble, row, column).item())
                distilled = distilled - weight * teacher * log_probability(of, row, column) / 3
    return (contrastive + distilled) / 2 / len(targets)


def test_scores_loss_and_gradient_are_those_of_loops_over_tokens(loss: HeadsLoss) -> None:
    queries, passages, targets = texts(4, seed=1), texts(8, seed=2), [0, 2, 4, 6]
    passages.ids[3, 1] = 12  # above all ids of the queries
    dense, scores = queries.dense @ passages.dense.T / TEMPERATURE, loss.scores(queries, passages)
    expected = brute_scores(loss, queries, passages)
    for name, of in {"dense": dense, **scores}.items():
        assert torch.allclose(of, expected[name], atol=1e-4), name
        assert of.std() > 0.1
    found = bge_m3_loss(dense, scores, torch.tensor(targets))[0]
    wanted = brute_loss(expected, targets)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    parameters = list(loss.heads.parameters())
    ours, theirs = (torch.autograd.grad(of, parameters) for of in (found, wanted))
    for one, other in zip(ours, theirs, strict=True):
        assert one.norm() > 0 and difference(other, one) <= 1e-4


def test_texts_without_any_weight_are_counted(loss: HeadsLoss) -> None:
    queries, passages = texts(4, seed=1), texts(8, seed=2)
    loss.scores(queries, passages)
    sparse = [brute_sparse(loss, of, row) for of in (queries, passages) for row in range(len(of.ids))]
    none = [not any(weight > 0 for weight in weights.values()) for weights in sparse]
    assert loss.parts["all_zero"].item() == pytest.approx(sum(none) / 12) and 0 < sum(none) < 12
    torch.nn.init.zeros_(loss.heads.sparse.weight)
    torch.nn.init.constant_(loss.heads.sparse.bias, -1.0)
    loss.scores(texts(4, seed=1), texts(8, seed=2))
    assert loss.parts["all_zero"] == 1


def test_frozen_heads_learn_with_the_scaled_cosines_of_any_dense_vectors(tmp_path: Path, loss: HeadsLoss) -> None:
    item = tokenised(tmp_path, rows(16, negatives=1))
    features, labels = features_of(item, plan_batches([item.rows], ONE_BATCH, seed=7).batches[0], 10**6, 0.0)
    loss.model.register_forward_hook(
        lambda _, given, made: {**made, "sentence_embedding": 3 * made["sentence_embedding"]}
    )
    queries, passages = encoded_texts(loss.model, features, labels["position"])
    dense = queries.dense @ passages.dense.T / TEMPERATURE
    wanted = bge_m3_loss(dense, loss.scores(queries, passages), 2 * torch.arange(16))[0]
    assert loss(features, labels).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("guided", [False, True])
def test_a_side_with_heads_learns_bge_m3s_loss_from_right_pairs(tmp_path: Path, guided: bool) -> None:
    """Loops over the encoder's hidden states; rows with a score below 1 are neither queries nor candidates.

    A guide leaves out false negatives for the heads too, while further directions apply to dense vectors alone.
    """
    item = tokenised(tmp_path, rows(16, negatives=1), angle=True)
    batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0]
    settings: dict[str, Any] = {}
    if guided:
        item = replace(item, others={"guide": random_vectors(item)})
        settings = {"guide": "init", "false_negative_margin": 0.1, "directions": ["query_to_doc", "doc_to_query"]}
    joint = joint_loss(10**6, temperature=TEMPERATURE, **settings)
    features, labels = features_of(item, batch, 10**6, 0.3)
    labels["score"][::2] = torch.tensor([0.0, 0.5] * 4)
    found = joint(features, labels)
    parts = joint.parts

    queries, passages = encoded_texts(joint.model, features, labels["position"][1::2])
    scores = brute_scores(joint, queries, passages)
    right = 2 * torch.arange(8)
    if guided:
        vectors = torch.nn.functional.normalize(labels["guide"][1::2], dim=-1)
        cosines = vectors[:, 0] @ vectors[:, 1:].flatten(0, 1).T
        left_out = cosines > cosines.gather(1, right[:, None]) - 0.1
        left_out[torch.arange(8), right] = False
        assert 0 < left_out.sum() < left_out.numel() - 16
        scores = {name: of.masked_fill(left_out, -1e4) for name, of in scores.items()}
    plain = PlannedLoss(joint.model, joint.side, 10**6)
    own = plain(features, labels)
    ensemble = (scores["dense"] + 0.3 * scores["sparse"] + scores["multi_vector"]).detach().softmax(dim=1)
    distilled = -(ensemble * scores["dense"].log_softmax(dim=1)).sum(dim=1).mean()
    wanted = brute_loss(scores, right.tolist()) + (own / 4 + distilled / 3) / 2
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert {"contrastive", "angle", "ensemble", "sparse", "multi_vector", "self_distillation"} <= parts.keys()
    assert parts["contrastive"] == plain.parts["contrastive"]
    weights = [weight for weight in joint.model.parameters() if weight.requires_grad]
    ours, theirs = (torch.autograd.grad(of, weights) for of in (found, wanted))
    assert difference(*(torch.cat([of.double().flatten() for of in all_]) for all_ in (theirs, ours))) <= 1e-4


def test_a_batch_without_right_pairs_teaches_the_heads_nothing(tmp_path: Path) -> None:
    item = tokenised(tmp_path, rows(16), angle=True)
    joint = joint_loss(10**6)
    features, labels = features_of(item, plan_batches([item.rows], ONE_BATCH, seed=7).batches[0], 10**6, 0.3)
    labels["score"][:] = torch.tensor([0.0, 0.5] * 8)
    loss = joint(features, labels)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is not None and not weight.grad.any() for weight in joint.heads.parameters())
    assert gradients(joint.model).norm() > 0  # AnglE's


def test_under_autocast_heads_and_scores_are_computed_in_32_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = tokenised(tmp_path, rows(16), angle=True)
    given = features_of(item, plan_batches([item.rows], ONE_BATCH, seed=7).batches[0], 10**6, 0.0)
    seen: list[torch.dtype] = []

    def noted(dense: Tensor, scores: dict[str, Tensor], *arguments: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen.extend(score.dtype for score in (dense, *scores.values()))
        return bge_m3_loss(dense, scores, *arguments)

    def in_16_bit(_: Any, given: Any, made: dict[str, Any]) -> dict[str, Any]:
        return made | {name: made[name].bfloat16() for name in ("sentence_embedding", "token_embeddings")}

    monkeypatch.setattr(training.heads.loss, "bge_m3_loss", noted)
    for loss in (heads_loss(), joint_loss(10**6)):
        loss.model.register_forward_hook(in_16_bit)
        for layer in (loss.heads.sparse, loss.heads.multi_vector):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            loss(*given)
        assert loss.parts.keys() >= {"ensemble", "sparse", "multi_vector", "all_zero"}  # what metrics.jsonl shows
        assert not any(part.requires_grad for part in loss.parts.values())  # they would keep the batch's graph
    assert set(seen) == {torch.float32}


def test_maxsim_in_bounded_memory_has_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, found, at_once = texts(5, seed=1), texts(7, seed=2), list[Tensor](), list[list[int]]()
    maxsim = training.heads.loss.maxsim

    def noted(a: Tensor, *arguments: Tensor, **options: Any) -> Tensor:
        at_once[-1].append(len(a))
        return maxsim(a, *arguments, **options)

    monkeypatch.setattr(training.heads.loss, "maxsim", noted)
    for kept in (5 * 9 * 7 * 9, 5 * 9 * 7 * 9 - 1, 9 * 7 * 9 * 2, 1):
        monkeypatch.setattr(training.heads.loss, "KEPT_SIMILARITIES", kept)
        a, b = (of.tokens.clone().requires_grad_() for of in (one, other))
        at_once.append([])
        scores = mean_maxsim(a, b, one.mask, other.mask)
        at_once.append([])  # what the backward pass computes again
        given = torch.autograd.grad(scores.sin().sum(), (a, b))
        found.append(torch.cat([of.flatten() for of in (scores.detach(), *given)]))
    assert at_once[::2] == [[5], [4, 1], [2, 2, 1], [1] * 5]
    assert [*map(sorted, at_once[1::2])] == [[], [1, 4], [1, 2, 2], [1] * 5]
    assert max(difference(found[0], other) for other in found[1:]) <= 1e-6


def test_the_gradient_is_the_same_on_two_processes(tmp_path: Path) -> None:
    items = sets_of(tmp_path, HEADS_ROWS, negatives=2)
    one, two = heads_gradients(items), of_two_ranks(tmp_path, items, heads_gradients)
    assert one.keys() == two.keys() and len(one) == 5
    for kind, gradient in one.items():
        assert gradient.norm() > 0 and difference(gradient, two[kind]) <= 1e-5
    for kind in HEADS_ROWS:
        assert difference(one[f"{kind} whole"], one[f"{kind} cached"]) <= 1e-5


def test_packed_texts_give_the_same_gradient_and_a_frozen_encoder_gets_none(tmp_path: Path) -> None:
    item = tokenised(tmp_path, rows(16, negatives=1))
    batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0]
    found = defaultdict[type, list[Tensor]](list)
    for packed, loss in ((packed, of()) for packed in (False, True) for of in (heads_loss, partial(joint_loss, 10**6))):
        if packed:
            use_packed(loss.model)
        collate = MiniBatchCollator(1, Budget(200, overhead=8), first_position_of(loss.model) if packed else None)
        collated = collate(PlannedDataset([item], 0.0).__getitems__(batch))
        labels, parts = collated.pop("label"), defaultdict[str, dict[str, Tensor]](dict)
        for name, value in collated.items():
            _, number, key = name.split("_", 2)
            parts[number][key] = value
        assert len(parts) > 1
        loss(parts.values(), labels).backward()
        assert isinstance(loss, JointLoss) or {
            name for name, own in loss.named_parameters() if own.grad is not None
        } == {f"model.heads.{head}.{part}" for head in ("sparse", "multi_vector") for part in ("weight", "bias")}
        found[type(loss)].append(gradients(loss))
    assert len(found) == 2 and all(difference(*of) <= 1e-5 for of in found.values())

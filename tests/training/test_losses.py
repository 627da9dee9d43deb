"""The losses against the formulas in float64, the library's own, and themselves on two processes."""

import dataclasses
import itertools
import math
from functools import partial
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import (
    AnglELoss,
    CachedGISTEmbedLoss,
    CachedMultipleNegativesRankingLoss,
    DistillKLDivLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import cos_sim, pairwise_cos_sim
from torch import Tensor

from configs.schema.training import SideConfig
from data.encoders import open_auxiliary_model
from pipeline.core.models import load_folder
from tests.support import small_bases
from tests.support.planned_sets import (
    difference,
    features_of,
    gradients,
    planned_loss,
    prepared_run,
    rows,
    tiny_model,
    tokenised,
)
from tests.support.training_process import (
    ALL_IN_ONE,
    CACHED,
    CASES,
    ONE_BATCH,
    ROWS,
    all_gradients,
    gradient,
    of_two_ranks,
    sets_of,
)
from tests.support.zoo import animal
from training import losses
from training.batch_plan import GlobalBatch, plan_batches
from training.batches import PlannedDataset
from training.losses import (
    GlobalRows,
    angle_loss,
    angle_pairs,
    contrastive_loss,
    distillation_loss,
    gradient_norms,
    kept_graphs,
)
from training.model_files import load_model
from training.sets import TokenisedSet, with_vectors

EVERYTHING = ["query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc"]


@pytest.fixture
def embeddings() -> Tensor:
    """(rows, anchor and positive and two negatives, dim)."""
    return torch.randn(6, 4, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def angle_similarity(u: list[float], v: list[float]) -> float:
    """|sum of real parts + sum of imaginary parts| of the complex quotients, written from the formula."""
    half = len(u) // 2
    a, b, c, d = u[:half], u[half:], v[:half], v[half:]
    z = sum(x * x + y * y for x, y in zip(c, d, strict=True))
    ratio = math.dist(u, [0] * len(u)) / math.dist(v, [0] * len(v))
    real = sum(a[k] * c[k] + b[k] * d[k] for k in range(half)) / z / ratio
    imaginary = sum(b[k] * c[k] - a[k] * d[k] for k in range(half)) / z / ratio
    return abs(real + imaginary)


def brute_angle(first: Tensor, second: Tensor, labels: Tensor, scale: float) -> float:
    similar = [angle_similarity(u, v) for u, v in zip(first.tolist(), second.tolist(), strict=True)]
    total = 1.0
    for i, low in enumerate(labels.tolist()):
        for j, high in enumerate(labels.tolist()):
            if low < high:
                total += math.exp(scale * (similar[i] - similar[j]))
    return math.log(total)


def cosine(u: Tensor, v: Tensor) -> float:
    return float(u @ v / u.norm() / v.norm())


def brute_contrastive(texts: Tensor, usable: list[int], temperature: float, directions: list[str]) -> float:
    """The mean cross-entropy over all pairs, one exponential at a time."""
    total = 0.0
    for i in usable:
        logits = [cosine(texts[i, 0], texts[j, 1]) for j in usable]
        logits += [cosine(texts[i, 0], texts[j, k]) for j in usable for k in range(2, texts.shape[1])]
        sides = {"doc_to_query": (1, 0, True), "query_to_query": (0, 0, False), "doc_to_doc": (1, 1, False)}
        for name in directions[1:]:
            left, right, with_own = sides[name]
            logits += [cosine(texts[i, left], texts[j, right]) for j in usable if with_own or j != i]
        own = cosine(texts[i, 0], texts[i, 1])
        total += math.log(sum(math.exp((logit - own) / temperature) for logit in logits))
    return total / len(usable)


def test_angle_is_the_formula_in_float64(embeddings: Tensor) -> None:
    labels = torch.tensor([0.0, 1.0, 0.5, 0.5, 1.0, 0.2], dtype=torch.float64)
    first, second = embeddings[:, 0], embeddings[:, 1]
    expected = brute_angle(first, second, labels, 20.0)
    assert float(angle_loss(first, second, labels, 20.0)) == pytest.approx(expected, rel=1e-12)
    assert float(angle_loss(first.float(), second.float(), labels, 20.0)) == pytest.approx(expected, rel=1e-5)


def test_angle_of_equal_labels_is_exactly_zero_without_gradient(embeddings: Tensor) -> None:
    first = embeddings[:, 0].clone().requires_grad_()
    loss = angle_loss(first, embeddings[:, 1], torch.ones(6), 20.0)
    loss.backward()
    assert loss.item() == 0.0
    assert first.grad is not None and not first.grad.any()


def test_angle_stays_finite_where_masking_overflows() -> None:
    first, second = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0)).half() * 100
    loss = angle_loss(first, second, torch.arange(64.0), 20.0)
    assert torch.isfinite(loss)


def test_a_triplet_is_a_pair_of_its_score_and_pairs_of_zero(embeddings: Tensor) -> None:
    scores = torch.tensor([float("nan"), 0.25, 1.0, 0.0, float("nan"), 0.5])
    first, second, labels = angle_pairs(embeddings, scores)
    assert labels.tolist() == [1, 0, 0, 0.25, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0.5, 0, 0]
    assert torch.equal(first.reshape(6, 3, 16)[:, 2], embeddings[:, 0])
    assert torch.equal(second.reshape(6, 3, 16), embeddings[:, 1:])


@pytest.mark.parametrize("directions", [EVERYTHING[:1], EVERYTHING[:2], EVERYTHING])
def test_contrastive_is_a_brute_force_over_all_pairs(embeddings: Tensor, directions: list[str]) -> None:
    everything = torch.ones(6, dtype=torch.bool)
    expected = brute_contrastive(embeddings, list(range(6)), 0.05, directions)
    assert float(contrastive_loss(embeddings, everything, 0.05, directions)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("directions", [EVERYTHING[:1], EVERYTHING])
def test_contrastive_equals_that_of_sentence_transformers(embeddings: Tensor, directions: list[str]) -> None:
    peer = CachedMultipleNegativesRankingLoss(tiny_model(), scale=20.0, directions=tuple(directions))
    columns = 4 if len(directions) == 1 else 2  # with negatives the library's doc_to_doc has further candidates
    expected = peer.calculate_loss([[column] for column in embeddings[:, :columns].unbind(1)])
    ours = contrastive_loss(embeddings[:, :columns], torch.ones(6, dtype=torch.bool), 0.05, directions)
    assert float(ours) == pytest.approx(float(expected), rel=1e-9)


def test_rows_below_score_one_are_neither_queries_nor_candidates(embeddings: Tensor) -> None:
    usable = torch.tensor([True, False, True, True, False, True])
    expected = brute_contrastive(embeddings, [0, 2, 3, 5], 0.05, ["query_to_doc"])
    assert float(contrastive_loss(embeddings, usable, 0.05)) == pytest.approx(expected, rel=1e-12)
    none = torch.zeros(6, dtype=torch.bool)
    assert float(contrastive_loss(embeddings, none, 0.05)) == 0.0
    assert float(distillation_loss(embeddings, embeddings.flip(0), none, 0.05)) == 0.0
    some, taught = embeddings[usable], embeddings.flip(-1)
    expected = float(distillation_loss(some, taught[usable], torch.ones(4, dtype=torch.bool), 0.05))
    assert float(distillation_loss(embeddings, taught, usable, 0.05)) == pytest.approx(expected, rel=1e-12)


def test_the_margin_leaves_out_candidates_closer_than_the_positive() -> None:
    texts = torch.eye(4, dtype=torch.float64)[torch.tensor([[0, 1], [2, 3]])]
    texts[0, 1] = torch.tensor([0.8, 0.6, 0.0, 0.0])
    texts[1, 1] = torch.tensor([0.9, 0.0, 0.4, 0.1])  # closer to the first anchor than its own positive
    both = torch.ones(2, dtype=torch.bool)
    first = slice(0, 1)
    assert float(contrastive_loss(texts, both, 0.1, margin=0.0, queries=first)) == 0.0
    assert float(contrastive_loss(texts, both, 0.1, margin=-0.5, queries=first)) > 0.5
    assert float(contrastive_loss(texts, both, 0.1, margin=None, queries=first)) > 0.5
    closer = torch.cat([texts, texts[[0, 1], :1]], dim=1)  # a row's own negative stays, however close
    assert float(contrastive_loss(closer, both, 0.1, margin=0.0, queries=first)) > 1
    texts[1, 1] = texts[0, 1]  # as close as the row's own positive is not closer
    assert float(contrastive_loss(texts, both, 0.1, margin=0.0, queries=first)) == pytest.approx(math.log(2) / 2)


def test_pairs_of_score_one_or_none_are_usable_alone() -> None:
    scores = torch.tensor([math.nan, 1.0, 0.99, 0.0])
    assert GlobalRows(torch.zeros(4, 2, 1), scores, slice(4)).usable.tolist() == [True, True, False, False]


def test_slices_of_the_queries_sum_to_the_whole(embeddings: Tensor) -> None:
    usable = torch.tensor([True, True, False, True, True, True])
    whole = contrastive_loss(embeddings, usable, 0.05)
    parts = [contrastive_loss(embeddings, usable, 0.05, queries=slice(3 * rank, 3 * rank + 3)) for rank in range(2)]
    assert float(sum(parts)) == pytest.approx(float(whole), rel=1e-12)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenisedSet]:
    return sets_of(tmp_path_factory.mktemp("sets"), ROWS)


@pytest.fixture(scope="module")
def one_process(items: dict[str, TokenisedSet]) -> dict[str, Tensor]:
    return all_gradients(items)


@pytest.fixture(scope="module")
def two_processes(items: dict[str, TokenisedSet], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    return of_two_ranks(tmp_path_factory.mktemp("two"), items, all_gradients)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("case", ["angle", *CASES])
def test_the_gradient_is_the_same_on_two_processes_and_with_caching(
    one_process: dict[str, Tensor], two_processes: dict[str, Tensor], kind: str, case: str
) -> None:
    def of(run: dict[str, Tensor], budget: str) -> Tensor:
        if case == "angle":
            return run[f"{kind} combined {budget}"] - run[f"{kind} contrastive {budget}"]
        return run[f"{kind} {case} {budget}"]

    reference = of(one_process, "whole")
    assert reference.norm() > 0
    assert difference(reference, of(one_process, "cached")) <= 1e-5
    assert difference(reference, of(two_processes, "whole")) <= 1e-5
    assert difference(reference, of(two_processes, "cached")) <= 1e-5


def decoder_gradients(items: dict[str, TokenisedSet], rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Those of a decoder that pools the last token."""
    found, side = {}, SideConfig(anchor_length=32, positive_length=32)
    for name, budget in (("whole", ALL_IN_ONE), ("cached", CACHED)):
        model = load_model(animal("Qwen3"), "sdpa", side).train()
        found[name] = gradient(items["decoder"], "combined", budget, rank, world, model)[0]
    return found


def test_a_decoder_s_gradient_is_the_same_on_two_processes_and_with_caching(tmp_path: Path) -> None:
    tokens = load_folder(animal("Qwen3"), "cpu").tokenizer
    items = {"decoder": tokenised(tmp_path, rows(16, **ROWS["triplets"]), angle=True, tokenizer=tokens)}
    one, two = decoder_gradients(items), of_two_ranks(tmp_path, items, decoder_gradients)
    for found in (one["cached"], two["whole"], two["cached"]):
        assert one["whole"].norm() > 0 and difference(one["whole"], found) <= 1e-5


@pytest.mark.parametrize("kind", ROWS)
def test_angles_share_of_the_gradient_is_the_same_on_two_processes_and_with_caching(
    one_process: dict[str, Tensor], two_processes: dict[str, Tensor], kind: str
) -> None:
    share = one_process[f"{kind} share whole"]
    assert 0 < share < 1
    for run, budget in ((one_process, "cached"), (two_processes, "whole"), (two_processes, "cached")):
        assert run[f"{kind} share {budget}"] == pytest.approx(share.item(), rel=1e-5)


def columns_of(item: TokenisedSet, batch: GlobalBatch) -> list[list[list[int]]]:
    """The token ids of the batch's anchors, positives and negatives."""
    texts = PlannedDataset([item], 0.0).__getitems__(batch)["texts"]
    return [list(column) for column in zip(*texts, strict=True)]


def padded(*columns: list[list[int]]) -> list[dict[str, Tensor]]:
    """The columns as the library's trainer hands them to a loss."""
    pad = tiny_model().tokenizer.pad
    return [dict(pad({"input_ids": column}, return_tensors="pt")) for column in columns]


@pytest.mark.parametrize("budget", [ALL_IN_ONE, CACHED])
def test_dimensions_are_the_librarys_matryoshka_over_both_losses(tmp_path: Path, budget: int) -> None:
    item = tokenised(tmp_path, rows(16, negatives=1), angle=True)
    batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0]
    dimensions, weights, (peer, ours) = [32, 16, 8], [1.0, 0.5, 2.0], (tiny_model(), tiny_model())
    ranking = MatryoshkaLoss(peer, MultipleNegativesRankingLoss(peer, scale=20.0), dimensions, weights)
    angle = MatryoshkaLoss(peer, AnglELoss(peer, scale=20.0), dimensions, weights)
    anchors, positives, negatives = columns_of(item, batch)
    expected = ranking(padded(anchors, positives, negatives), torch.zeros(0))
    labels = torch.tensor([1.0] * 16 + [0.0] * 16)
    expected = expected + 0.3 * angle(padded(anchors * 2, positives + negatives), labels)
    expected.backward()
    loss = planned_loss(ours, budget, dimensions=dimensions, dimension_weights=weights)
    value = loss(*features_of(item, batch, budget, 0.3))
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert difference(gradients(peer), gradients(ours)) <= 1e-5


@pytest.mark.parametrize("margin", [0.0, 0.2])
@pytest.mark.parametrize("directions", [EVERYTHING[:1], [EVERYTHING[0], *EVERYTHING[2:]]])
def test_a_guide_masks_as_the_librarys_does(embeddings: Tensor, margin: float, directions: list[str]) -> None:
    """Also a row's own negatives, and its anchor and positive among the others of their kind."""
    guide = embeddings.mean(dim=1, keepdim=True) + 0.8 * embeddings.flip(-1)[..., :12].repeat(1, 1, 2)[..., :16]
    both = len(directions) > 1
    peer = CachedGISTEmbedLoss(
        tiny_model(),
        tiny_model(),
        0.05,
        margin=margin,
        contrast_anchors=both,
        contrast_positives=both,
    )
    columns = [[[column] for column in vectors.unbind(1)] for vectors in (embeddings, guide)]
    usable = torch.ones(6, dtype=torch.bool)
    found = contrastive_loss(embeddings, usable, 0.05, directions, margin, guide=guide)
    assert float(found) == pytest.approx(float(peer.calculate_loss(*columns)), rel=1e-9)
    assert float(found) < float(contrastive_loss(embeddings, usable, 0.05, directions))
    assert float(found) != float(contrastive_loss(embeddings, usable, 0.05, directions, margin))


@pytest.mark.parametrize("base", [{"vocabulary": 1200}, {"vocabulary": 400, "hidden": 24}])
def test_a_guided_step_is_the_librarys_whatever_the_guides_tokenizer(tmp_path: Path, base: dict[str, int]) -> None:
    lengths = {"anchor_length": 64, "positive_length": 64}
    item = tokenised(tmp_path, rows(16, negatives=1), **lengths)
    guide = small_bases.tiny_model(seed=7, max_length=64, **base)
    other = partial(open_auxiliary_model, prepared_run(tmp_path, {}), str(guide), "training.symmetric.guide")
    item = with_vectors(item, tmp_path / "set.parquet", "symmetric", SideConfig(), tmp_path, {"guide": other})
    batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0]
    found, model = [], tiny_model()
    peer = CachedGISTEmbedLoss(model, load_folder(guide, "cpu"), 0.05, contrast_anchors=False, contrast_positives=False)
    words = peer.model.tokenizer  # it has no decoder: what the library's guide would read is in pieces

    def texts_of(rows: Tensor, **options: Any) -> list[str]:
        pieces = (words.decode(row, skip_special_tokens=True) for row in rows)
        return [text.replace(" ", "").replace("▁", " ").strip() for text in pieces]

    peer.tokenizer = SimpleNamespace(batch_decode=texts_of)  # type: ignore[assignment]
    for loss, arguments in (
        (peer, (padded(*columns_of(item, batch)), torch.zeros(0))),
        (planned_loss(model, CACHED, guide="init"), features_of(item, batch, CACHED, 0.0)),
        (planned_loss(model, CACHED), features_of(dataclasses.replace(item, others={}), batch, CACHED, 0.0)),
    ):
        model.zero_grad()
        value = loss(*arguments)
        value.backward()
        found.append((value.item(), gradients(model)))
    (expected, reference), (ours, gradient), (unguided, _) = found
    assert ours == pytest.approx(expected, rel=1e-5) and difference(reference, gradient) <= 1e-5
    assert unguided > 1.01 * ours


def test_distillation_is_the_librarys_over_all_texts_of_the_batch(embeddings: Tensor) -> None:
    teacher = embeddings[..., :10].cumsum(dim=0)
    candidates = [row for column in embeddings[:, 1:].unbind(1) for row in column]
    wanted = torch.cat([cos_sim(teacher[:, 0], column) for column in teacher[:, 1:].unbind(1)], dim=1)
    peer = DistillKLDivLoss(tiny_model(), pairwise_cos_sim, temperature=0.1)
    columns = [embeddings[:, 0], *(row.expand(6, -1) for row in candidates)]
    expected = peer.compute_loss_from_embeddings(columns, wanted) / 0.1**2
    usable = torch.ones(6, dtype=torch.bool)
    assert float(distillation_loss(embeddings, teacher, usable, 0.1)) == pytest.approx(float(expected), rel=1e-9)
    own = embeddings.clone().requires_grad_()
    distillation_loss(own, 3 * embeddings, usable, 0.1, EVERYTHING).backward()
    assert own.grad is not None and own.grad.abs().max() < 1e-12  # the model as its own teacher


def test_whole_vectors_teach_the_shorter_ones_but_not_themselves(embeddings: Tensor) -> None:
    loss = planned_loss(torch.nn.Identity(), ALL_IN_ONE, dimensions=[16, 8], teacher="self", teacher_temperature=0.1)
    labels = {"position": torch.arange(24).reshape(6, 4), "score": torch.full((6,), torch.nan), "angle_weight": 0.0}
    loss._of_embeddings([embeddings.flatten(0, 1)], labels)
    expected = distillation_loss(embeddings[..., :8], embeddings, torch.ones(6, dtype=torch.bool), 0.1)
    assert float(loss.parts["distillation"]) == pytest.approx(float(expected), rel=1e-9)
    fixed = planned_loss(torch.nn.Identity(), ALL_IN_ONE, dimensions=[16, 8], teacher="init", teacher_temperature=0.1)
    found = []
    for each, given in ((loss, labels), (fixed, labels | {"teacher": embeddings})):
        own = embeddings.clone().requires_grad_()
        each._of_embeddings([own.flatten(0, 1)], given).backward()
        assert own.grad is not None
        found.append(own.grad)
    assert torch.allclose(*found, rtol=1e-9, atol=0)  # no gradient flows into the teacher


def triplets(rows: int, seed: int = 0) -> Tensor:
    """Anchors, near positives and far negatives, as nearly all are after training, (rows, 3, 256)."""
    anchors, one, two = torch.randn(3, rows, 256, generator=torch.Generator().manual_seed(seed))
    return torch.stack([anchors, anchors + 0.5 * one, anchors + 1.8 * two], dim=1)


def test_the_gradient_s_share_is_that_of_the_weighted_norms() -> None:
    texts = triplets(16).flatten(0, 1).requires_grad_()
    loss = planned_loss(torch.nn.Identity(), ALL_IN_ONE)
    place = torch.arange(48).reshape(16, 3)
    labels = {"position": place, "score": torch.full((16,), torch.nan), "angle_weight": 0.3}
    loss._of_embeddings([texts], labels).backward()
    rows = texts.detach()[place].requires_grad_()
    scores, usable = labels["score"], torch.ones(16, dtype=torch.bool)
    (angular,) = torch.autograd.grad(angle_loss(*angle_pairs(rows, scores), scale=20.0), rows)
    (contrastive,) = torch.autograd.grad(contrastive_loss(rows, usable, 0.05), rows)
    expected = 0.3 * angular.norm() / (contrastive.norm() + 0.3 * angular.norm())
    assert loss.angle_gradient_share is not None
    assert loss.angle_gradient_share.item() == pytest.approx(expected.item(), rel=1e-5)
    assert texts.grad is not None and torch.allclose(texts.grad[place], contrastive + 0.3 * angular, atol=1e-7)


def test_angles_weight_does_not_mean_the_same_at_every_batch_size() -> None:
    """The claims of `angle_loss` about its gradient, in numbers, as means of three draws."""

    def at(count: int, seed: int) -> tuple[float, float, int]:
        """The sum of the p_ij, AnglE's gradient in units of the contrastive one, and the rows with half of it."""
        rows = triplets(count, seed).requires_grad_()
        contrastive = contrastive_loss(rows, torch.ones(count, dtype=torch.bool), 0.05)
        angle = angle_loss(*angle_pairs(rows, torch.full((count,), torch.nan)), scale=20.0)
        own, angular = gradient_norms((contrastive, angle), rows)
        squares = torch.autograd.grad(angle, rows)[0].square().sum(dim=(1, 2)).sort(descending=True).values.cumsum(0)
        return 1 - math.exp(-angle.item()), (angular / own).item(), int((squares < squares[-1] / 2).sum()) + 1

    small, large = ([at(count, seed) for seed in range(3)] for count in (32, 256))
    assert max(weight for weight, _, _ in small) < 0.7 < 0.95 < min(weight for weight, _, _ in large)
    assert fmean(ratio for _, ratio, _ in large) > 1.5 * fmean(ratio for _, ratio, _ in small)
    assert max(rows for _, _, rows in large) < 256 / 20


def test_every_split_into_kept_and_cached_graphs_has_the_same_gradient_also_with_dropout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = tokenised(tmp_path, rows(8, negatives=1), angle=True)
    batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0].slice(0, 4)  # two rows: each split doubles the time
    whole, labels = features_of(item, batch, ALL_IN_ONE, 0.3)
    features, labels = features_of(item, batch, sum(part["input_ids"].numel() for part in whole) - 1, 0.3)
    number = len(features)
    found, model = {}, tiny_model(dropout=0.2)
    for kept in itertools.product((False, True), repeat=number):
        monkeypatch.setattr(losses, "kept_graphs", lambda sizes, most, kept=kept: list(kept))
        torch.manual_seed(5)
        model.zero_grad()
        planned_loss(model, ALL_IN_ONE)(features, labels).backward()
        found[kept] = gradients(model)
    reference, plain = found.pop((True,) * number), tiny_model()
    planned_loss(plain, ALL_IN_ONE)(features, labels).backward()
    assert 4 <= number <= 5 and reference.norm() > 0
    assert difference(reference, gradients(plain)) > 0.05  # dropout was on
    assert max(difference(reference, gradient) for gradient in found.values()) <= 1e-5


class Saved:
    """A tensor that a graph keeps; the bytes of all live ones, and their peak."""

    alive = most = 0

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Saved.alive += tensor.nbytes
        Saved.most = max(Saved.most, Saved.alive)

    def __del__(self) -> None:
        Saved.alive -= self.tensor.nbytes


def test_memory_with_some_graphs_kept_lies_between_that_with_all_and_with_one_at_a_time(tmp_path: Path) -> None:
    item = tokenised(tmp_path, rows(16, negatives=1), angle=True)
    batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0]
    features, labels = features_of(item, batch, CACHED, 0.3)
    total = sum(part["input_ids"].numel() for part in features)
    peaks = []
    for budget in (1, total // 2, total):
        Saved.alive = Saved.most = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            planned_loss(tiny_model(), budget)(features, labels).backward()
        peaks.append(Saved.most)
    assert peaks[0] < 0.2 * peaks[2]
    assert 0.4 * peaks[2] < peaks[1] < 0.7 * peaks[2]


def test_the_largest_mini_batches_that_fit_together_keep_their_graphs() -> None:
    assert kept_graphs([10, 40, 30, 20], 100) == [True] * 4
    assert kept_graphs([10, 40, 30, 20], 99) == [False, True, True, True]
    assert kept_graphs([10, 40, 30, 20], 55) == [True, True, False, False]
    assert kept_graphs([70, 60], 50) == [False, False]


def test_a_scaled_loss_has_the_scaled_gradient(tmp_path: Path) -> None:
    item = tokenised(tmp_path, rows(8), angle=True)
    batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0]
    found = []
    for factor in (1.0, 1024.0):  # as the scaler of float16 multiplies it
        model = tiny_model()
        (factor * planned_loss(model, CACHED)(*features_of(item, batch, CACHED, 0.0))).backward()
        found.append(gradients(model))
    assert difference(1024.0 * found[0], found[1]) <= 1e-5


def test_embeddings_and_losses_are_float32_under_autocast(tmp_path: Path) -> None:
    item = tokenised(tmp_path, rows(16), angle=True)
    batch = plan_batches([item.rows], ONE_BATCH, seed=7).batches[0]
    model = tiny_model()
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output["token_embeddings"].dtype))
    loss = planned_loss(model, ALL_IN_ONE)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(*features_of(item, batch, ALL_IN_ONE, 0.0))
    assert seen == [torch.float32] * len(seen)
    assert value.dtype == torch.float32
    labels = {"position": torch.arange(8).reshape(4, 2), "score": torch.full((4,), torch.nan), "angle_weight": 0.0}
    vectors = [torch.randn(8, 16, generator=torch.Generator().manual_seed(0))]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss._of_embeddings(vectors, labels)
    assert torch.equal(found, loss._of_embeddings(vectors, labels))

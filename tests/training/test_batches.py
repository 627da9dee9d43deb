"""Where a batch is cut into mini-batches, padded or packed."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from configs.schema.training import HeadsConfig, SideConfig
from training.batch_plan import BatchPlan, GlobalBatch, SetRows
from training.batches import (
    MiniBatchCollator,
    ends_within,
    mini_batch_ends,
    packed_ends,
    plan_report,
    warn_of_small_steps,
    warn_of_untried,
    with_padding,
)
from training.memory import Budget, encoding_budget
from training.sets import TokenIds, TokenisedSet

LENGTHS = np.array([2, 3, 3, 5, 8, 8, 9, 20])  # 58 tokens


def test_packed_texts_fill_mini_batches_in_their_order() -> None:
    assert packed_ends(LENGTHS, 58) == [8]
    assert packed_ends(LENGTHS, 21) == [5, 7, 8]
    assert packed_ends(LENGTHS, 4) == [1, 2, 3, 4, 5, 6, 7, 8]  # one longer text makes its own


def test_a_batch_that_fits_is_one_packed_mini_batch_and_a_larger_one_has_four_in_a_budget() -> None:
    assert ends_within(LENGTHS, Budget(58, 96), packed=True) == [8]
    assert ends_within(LENGTHS, Budget(57, 96), packed=True) == packed_ends(LENGTHS, 14)


def test_on_a_gpu_a_pass_of_heads_has_the_requested_tokens_even_where_four_passes_hold_the_batch() -> None:
    lengths = np.full(2000, 100)
    on_gpu, on_cpu = (encoding_budget(HeadsConfig(), None, gpu) for gpu in (True, False))
    assert ends_within(lengths, on_gpu, packed=True) == [655, 1310, 1965, 2000]  # 65,536 tokens
    assert ends_within(lengths, encoding_budget(HeadsConfig(), 100_000, True), packed=True) == [1000, 2000]
    assert ends_within(lengths[:15], on_cpu) == [15]
    asked = encoding_budget(HeadsConfig(mini_batch_tokens=200_000), None, True)
    assert ends_within(lengths, asked, packed=True) == [2000]


@pytest.mark.parametrize("most", [4 * 20, 160, 200])
def test_padded_mini_batches_fit_the_budget_together_or_a_fourth_of_it_each(most: int) -> None:
    ends = ends_within(LENGTHS, Budget(most, 4))
    sizes = [with_padding(LENGTHS[start:end], [end - start]) for start, end in zip([0, *ends], ends, strict=False)]
    assert sum(sizes) == with_padding(LENGTHS, ends)
    assert sum(sizes) <= most or max(sizes) <= max(most // 4, LENGTHS[-1])


def rows_of(texts: list[list[list[int]]]) -> dict[str, Any]:
    scores = np.ones(len(texts), np.float32)
    return {"texts": texts, "score": scores, "angle_weight": 0.0, "others": {}}


def test_packed_and_padded_mini_batches_hold_the_same_texts() -> None:
    rows = rows_of([[[5] * 3, [6] * 7], [[7] * 5, [6] * 7]])  # one text twice
    padded, packed = (MiniBatchCollator(1, Budget(1000, 1000), first)(rows) for first in (None, 2))
    assert padded["text_0_input_ids"].shape == (3, 7)
    assert packed["text_0_input_ids"].tolist() == [[5] * 3 + [7] * 5 + [6] * 7]
    assert packed["text_0_cu_seq_lens_q"].tolist() == [0, 3, 8, 15] and "text_0_attention_mask" not in packed
    assert padded["label"]["tokens"] == packed["label"]["tokens"] == 15
    assert torch.equal(padded["label"]["position"], packed["label"]["position"])
    assert packed["label"]["position"].tolist() == [[0, 2], [1, 2]]


@pytest.mark.parametrize("first_position", [None, 2])
def test_the_loss_finds_every_text_at_its_position_among_mini_batches(first_position: int | None) -> None:
    random, pad = np.random.default_rng(0), 1
    texts = [[random.integers(5, 99, random.integers(1, 12)).tolist() for _ in range(3)] for _ in range(9)]
    inputs = MiniBatchCollator(pad, Budget(60, 4), first_position)(rows_of(texts))
    found: list[list[int]] = []
    number = sum(name.endswith("_input_ids") for name in inputs)
    for ids, part in ((inputs[f"text_{each}_input_ids"], f"text_{each}_") for each in range(number)):
        if first_position is None:
            mask = inputs[f"{part}attention_mask"].bool()
            assert (ids[~mask] == pad).all() and mask[-1].all()  # as wide as its longest text
            found += [own[real].tolist() for own, real in zip(ids, mask, strict=True)]
        else:
            found += [own.tolist() for own in ids[0].split(inputs[f"{part}cu_seq_lens_q"].diff().tolist())]
    assert number > 4 and [len(text) for text in found] == sorted(map(len, found))
    assert [[found[place] for place in row] for row in inputs["label"]["position"].tolist()] == texts


@pytest.mark.parametrize(("most", "overhead"), [(1000, 6), (1000, 0), (1000, 50), (24, 6), (7, 6)])
def test_padded_mini_batches_are_the_cheapest_of_all_cuts(most: int, overhead: int) -> None:
    def cost(ends: tuple[int, ...]) -> float:
        parts = [LENGTHS[start:end] for start, end in itertools.pairwise((0, *ends))]
        allowed = all(len(part) == 1 or len(part) * part[-1] <= most for part in parts)
        return sum(len(part) * part[-1] + overhead for part in parts) if allowed else math.inf

    cuts = [(*inner, 8) for number in range(8) for inner in itertools.combinations(range(1, 8), number)]
    assert cost(tuple(mini_batch_ends(LENGTHS, most, overhead))) == min(map(cost, cuts)) < math.inf


def test_of_equally_cheap_mini_batches_the_last_one_is_the_largest() -> None:
    """The same as when every start is tried, which takes seconds for a batch of many short texts."""
    random = np.random.default_rng(0)
    for _ in range(300):
        lengths = np.sort(random.integers(1, random.integers(2, 40), random.integers(1, 100)))
        most, overhead = int(random.integers(1, 400)), int(random.choice([0, 5, 96]))
        cost, cut = np.zeros(len(lengths) + 1), [0] * (len(lengths) + 1)
        for end, width in enumerate(lengths.tolist(), 1):
            tried = np.arange(max(0, end - max(1, most // width)), end)
            costs = cost[tried] + (end - tried) * width
            cost[end], cut[end] = costs.min() + overhead, tried[costs.argmin()]
        ends = [len(lengths)]
        while cut[ends[0]]:
            ends.insert(0, cut[ends[0]])
        assert mini_batch_ends(lengths, most, overhead) == ends


def test_the_plans_report_counts_padding_in_total_and_in_the_largest_batch() -> None:
    texts = [TokenIds(np.zeros(0, np.int32), np.cumsum([0, *own])) for own in ([2, 4], [6, 10])]  # tokens
    each = np.arange(2)
    negatives, scores = [each[:0]] * 2, np.array([math.nan, 0.5], np.float32)
    rows = SetRows("pairs", each, each, negatives, np.array([6, 10]), scores, 0, 1.0, 1, angle=True)
    batches = [GlobalBatch("pairs", np.array(own), np.zeros((len(own), 0), np.int64)) for own in ([0], [0, 1], [0])]
    report = plan_report(BatchPlan(batches, {"pairs": {}}), {"pairs": TokenisedSet(rows, *texts)}, SideConfig())
    assert report["largest_batch"] == 4 * 10
    assert (report["tokens"], report["padding_share"]) == (8 + 22 + 8, round(1 - 38 / (12 + 40 + 12), 4))
    assert report["angle_share"] == 0.3333


def test_few_tokens_per_rank_and_step_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_small_steps("symmetric", tokens=90_000 * 10, batches=10, ranks=8)
    assert not caplog.records
    warn_of_small_steps("symmetric", tokens=11_360 * 10, batches=10, ranks=16)
    (record,) = caplog.records
    assert record.getMessage().startswith("symmetric: 710 tokens per rank and step leave a GPU mostly idle (fewer")


def test_too_few_steps_and_untried_learning_rates_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_untried("symmetric", SideConfig(learning_rate=3e-5), steps=60, parameters=28_000_000)
    warn_of_untried("symmetric", SideConfig(learning_rate=3e-5, max_steps=20), steps=20, parameters=28_000_000)
    assert not caplog.records
    warn_of_untried("symmetric", SideConfig(learning_rate=1e-4), steps=59, parameters=28_000_000)
    steps, rate = [record.getMessage() for record in caplog.records]
    assert steps.startswith("symmetric: 59 steps, but the study's shortest run has 60")
    assert rate.endswith(
        "from 1e-05 to 5e-05, on 28 million parameters; 0.0001 is untried on this base (SWEEP=learning_rate)"
    )
    warn_of_untried("asymmetric", SideConfig(learning_rate=1e-5), steps=5000, parameters=359_026_688)
    assert caplog.records[-1].getMessage().startswith("asymmetric: the study tried learning rates")


def test_too_few_evaluations_to_keep_the_best_weights_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for side in (SideConfig(dev_steps=223), SideConfig(dev_steps=500, keep_best=False), SideConfig()):
        warn_of_untried("symmetric", side, steps=447, parameters=28_000_000)
    assert not caplog.records
    for dev_steps, evaluations in ((224, 2), (447, 1), (500, 1)):
        warn_of_untried("symmetric", SideConfig(dev_steps=dev_steps), steps=447, parameters=28_000_000)
        what = f"symmetric: 447 steps have {evaluations} evaluation(s) for keep_best to choose from"
        assert caplog.records.pop().getMessage() == f"{what}: lower training.symmetric.dev_steps ({dev_steps})"

"""The batch plan: what may be in a batch, what is left out, and that nothing depends on the number of processes."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.schema.training import SideConfig
from pipeline.application import composed
from pipeline.core.errors import UserError
from training import batch_plan
from training.batch_plan import (
    BatchPlan,
    GlobalBatch,
    SetRows,
    batch_rows,
    has_angle,
    has_contrast,
    plan_batches,
    read_plan,
    wanted_batches,
)

SIDE = SideConfig(batch_size=32, batch_multiple=8, bucket_batches=4)


def set_rows(
    name: str, size: int, texts: int | None = None, negatives: int = 0, weight: float = 1.0, seed: int = 0
) -> SetRows:
    """A set of random rows; with `texts`, its texts come from that many, so they repeat."""
    random = np.random.default_rng(seed)
    numbers = random.integers(0, texts, 2 * size) if texts else random.permutation(2 * size)
    return SetRows(
        name=name,
        anchors=numbers[:size].astype(np.int64),
        positives=numbers[size:].astype(np.int64),
        negatives=[random.integers(0, 4 * size, index % (negatives + 1)) for index in range(size)],
        lengths=random.integers(4, 200, size),
        scores=np.full(size, np.nan, np.float32),
        max_negatives=negatives,
        weight=weight,
        repeat=1,
        angle=False,
    )


def plan(*sets: SetRows, seed: int = 11, **changes: object) -> BatchPlan:
    return plan_batches(sets, dataclasses.replace(SIDE, **changes), seed)


def test_rows_of_a_batch_share_no_text_that_would_be_a_false_negative() -> None:
    rows = set_rows("pairs", 3000, texts=900, negatives=2)
    for batch in plan(rows).batches:
        anchors, positives = rows.anchors[batch.rows].tolist(), rows.positives[batch.rows].tolist()
        assert len(set(anchors)) == len(anchors)
        assert len(set(positives)) == len(positives)
        for i, pair in enumerate(zip(anchors, positives, strict=True)):
            assert set(pair).isdisjoint(anchors[:i] + anchors[i + 1 :])
            for j, chosen in enumerate(batch.negatives):
                assert i == j or set(pair).isdisjoint(rows.negatives[batch.rows[j]][chosen].tolist())


def test_a_written_plan_is_read_back_unchanged(tmp_path: Path) -> None:
    planned = plan(set_rows("one", 500, negatives=3), set_rows("two", 300, texts=90, seed=1))
    planned.write(tmp_path / "plan.npz")
    found = read_plan(tmp_path / "plan.npz")
    assert found.digest == planned.digest and found.left_out == planned.left_out
    assert any(batch.negatives.shape[1] for batch in found.batches)


def test_another_set_row_or_negative_is_another_digest() -> None:
    batch = GlobalBatch("one", np.arange(4), np.zeros((4, 1), np.int64))
    others = [{"set": "two"}, {"rows": np.arange(4)[::-1]}, {"negatives": np.ones((4, 1), np.int64)}]
    batches = [batch, *(dataclasses.replace(batch, **other) for other in others)]
    assert len({BatchPlan([each], {}).digest for each in batches}) == 4


def test_a_batch_has_rows_of_one_set_with_the_same_number_of_negatives() -> None:
    some = dataclasses.replace(set_rows("one", 500, negatives=3), max_negatives=2)
    sets = {rows.name: rows for rows in (some, set_rows("two", 300, seed=1))}
    batches = plan(*sets.values()).batches
    assert any(2 in batch.negatives for batch in batches)  # not always the first two
    for batch in batches:
        most = sets[batch.set].max_negatives
        assert batch.negatives.shape == (len(batch.rows), batch.negatives.shape[1])
        available = {min(most, len(sets[batch.set].negatives[row])) for row in batch.rows}
        assert available == {batch.negatives.shape[1]}
        for row, chosen in zip(batch.rows, batch.negatives, strict=True):
            assert len(set(chosen)) == len(chosen)
            assert all(index < len(sets[batch.set].negatives[row]) for index in chosen)


def test_rows_of_a_batch_are_of_similar_length() -> None:
    rows = set_rows("pairs", 32 * 40)
    batches = plan(rows).batches
    spreads = [int(np.ptp(rows.lengths[batch.rows])) for batch in batches]
    means = [rows.lengths[batch.rows].mean() for batch in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5  # long ones don't all come last
    assert max(spreads) <= 40  # of 196: a bucket is a tenth of the rows
    assert np.ptp(rows.lengths) > 190


@pytest.mark.parametrize("negatives", [0, 2])
def test_long_texts_make_smaller_batches(negatives: int) -> None:
    rows = set_rows("pairs", 32 * 100, texts=10**6, negatives=negatives)
    planned = plan(rows, batch_tokens=2048)
    for batch in planned.batches:
        longest, texts = int(rows.lengths[batch.rows].max()), 1 + batch.negatives.shape[1]
        assert len(batch.rows) == 8 or len(batch.rows) * longest * texts <= 2048
    sizes = Counter(len(batch.rows) for batch in planned.batches)
    assert sizes[32] and sizes[8] and len(sizes) > 2
    taken = [row for batch in planned.batches for row in batch.rows.tolist()]
    assert len(taken) == len(set(taken)) == len(rows.anchors) - sum(planned.left_out["pairs"].values())


def test_a_full_batch_holds_what_fits_its_budget_in_whole_multiples() -> None:
    side = dataclasses.replace(SIDE, batch_tokens=2048)
    rows = [batch_rows(side, longest, negatives) for longest, negatives in ((32, 0), (32, 1), (32, 3), (43, 1), (1, 0))]
    assert rows == [32, 32, 16, 16, 32]
    assert batch_rows(side, 1000, 3) == 8  # texts that fit no budget are in the smallest batches


def test_a_budget_that_no_batch_reaches_changes_nothing() -> None:
    rows = set_rows("pairs", 1000, negatives=2)
    assert plan(rows, batch_tokens=10**9).digest == plan(rows).digest


def test_an_epoch_takes_every_row_once_except_those_it_counts_as_left_out() -> None:
    rows = set_rows("pairs", 1003, texts=100_000)
    planned = plan(rows)
    taken = np.concatenate([batch.rows for batch in planned.batches])
    assert len(set(taken.tolist())) == len(taken)
    assert len(taken) + sum(planned.left_out["pairs"].values()) == 1003
    assert planned.left_out["pairs"]["less than a multiple"] == 1003 % 8
    sizes = Counter(len(batch.rows) for batch in planned.batches)
    assert sizes == {32: 31, 8: 1}


def test_a_negative_may_occur_in_a_batch_more_than_once() -> None:
    rows = dataclasses.replace(set_rows("pairs", 64), negatives=[np.array([999])] * 64, max_negatives=1)
    planned = plan(rows)
    assert len(planned.batches) == 2 and not sum(planned.left_out["pairs"].values())


def test_a_row_of_many_repeats_is_left_out_and_counted() -> None:
    some = set_rows("pairs", 256)
    some.anchors[:100] = 10**6
    planned = plan(some)
    per_batch = [int((some.anchors[batch.rows] == 10**6).sum()) for batch in planned.batches]
    assert max(per_batch) == 1
    assert planned.left_out["pairs"]["repeated text"] >= 90
    assert sum(planned.left_out["pairs"].values()) == 256 - sum(len(batch.rows) for batch in planned.batches)


def test_work_grows_with_the_rows_where_all_of_them_share_few_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, place = list[int](), batch_plan._place
    monkeypatch.setattr(
        batch_plan, "_place", lambda rows, bucket, *of: sizes.append(len(bucket)) or place(rows, bucket, *of)
    )
    rows = set_rows("labels", 4000)
    planned = plan(dataclasses.replace(rows, anchors=10**6 + rows.anchors % 20))
    assert len(sizes) > 100 and max(sizes[:-1]) <= (4 + 4) * 32  # the rows that wait, and new ones; the last takes all
    assert sum(len(batch.rows) for batch in planned.batches) > 1900


def test_a_bucket_looks_at_its_own_lengths_not_at_those_of_all_rows_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two million rows in batches of 32 took four minutes to plan, four times as long as half of them."""
    sizes, size = list[int](), batch_plan._size
    monkeypatch.setattr(batch_plan, "_size", lambda lengths, *of: sizes.append(len(lengths)) or size(lengths, *of))
    planned = plan(set_rows("large", 4000))
    assert len(planned.batches) > 100 and max(sizes) == SIDE.bucket_batches * SIDE.batch_size


def test_small_sets_stay_in_with_smaller_batches() -> None:
    planned = plan(set_rows("large", 3200), set_rows("small", 20, seed=1))
    assert Counter(batch.set for batch in planned.batches) == {"large": 100, "small": 1}
    assert [len(batch.rows) for batch in planned.batches if batch.set == "small"] == [16]


def test_small_sets_stay_in_when_steps_are_few() -> None:
    sets = [set_rows("large", 3200), *(set_rows(f"small {number}", 16, seed=number) for number in range(1, 9))]
    for seed in range(20):
        of_set = Counter(batch.set for batch in plan(*sets, seed=seed, max_steps=12).batches)
        assert of_set["large"] == 4 and len(of_set) == 9
    assert len(plan(*sets, max_steps=5).batches) == 5


def test_a_set_that_is_rounded_up_to_its_one_batch_gets_no_second_by_its_remainder() -> None:
    sets = [set_rows("small", 9 * 32), set_rows("b", 46 * 32, seed=1), set_rows("c", 45 * 32, seed=2)]
    of_set = Counter(batch.set for batch in plan(*sets, max_steps=10).batches)
    assert of_set == {"small": 1, "b": 5, "c": 4}


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_slices_of_the_ranks_are_the_global_batch_in_order(world: int) -> None:
    for batch in plan(set_rows("one", 500, negatives=2), set_rows("two", 60, seed=1)).batches:
        slices = [batch.slice(rank, world) for rank in range(world)]
        assert len({len(part.rows) for part in slices}) == 1
        assert np.array_equal(np.concatenate([part.rows for part in slices]), batch.rows)
        assert np.array_equal(np.concatenate([part.negatives for part in slices]), batch.negatives)


def test_the_plan_is_a_function_of_the_seed() -> None:
    sets = [set_rows("one", 500), set_rows("two", 300, seed=1)]
    assert plan(*sets).digest == plan(*sets).digest
    assert plan(*sets).digest != plan(*sets, seed=12).digest
    of_one = [batch.rows.tolist() for batch in plan(*sets).batches if batch.set == "one"]
    alone = [batch.rows.tolist() for batch in plan(sets[0]).batches]
    assert of_one == alone  # another set shifts nothing in this one
    twin = plan(dataclasses.replace(sets[0], name="twin"))
    assert [batch.rows.tolist() for batch in twin.batches] != alone


def test_further_epochs_make_other_batches_of_the_same_rows() -> None:
    rows = dataclasses.replace(set_rows("one", 320), lengths=np.arange(1, 321))  # only random order makes other batches
    batches = plan(rows, epochs=2.0).batches
    first, second = batches[:10], batches[10:]
    seen = [sorted(np.concatenate([batch.rows for batch in part]).tolist()) for part in (first, second)]
    assert seen[0] == seen[1] == list(range(320))
    assert {frozenset(batch.rows) for batch in first}.isdisjoint(frozenset(batch.rows) for batch in second)


def test_rows_of_equal_length_share_batches_wherever_they_are_in_the_set() -> None:
    rows = dataclasses.replace(set_rows("one", 320), lengths=np.full(320, 9))
    assert all(np.ptp(batch.rows) > 128 for batch in plan(rows).batches)  # places in the set: more than a bucket's


def test_steps_are_the_epochs_batches_rounded_and_at_least_one() -> None:
    for epochs, steps in ((1.0, 10), (0.26, 3), (2.44, 24), (0.01, 1)):
        assert wanted_batches({"a": 10}, {"a": 1.0}, dataclasses.replace(SIDE, epochs=epochs))[0] == steps


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [("proportional", {"a": 80, "b": 20}), ("temperature", {"a": 67, "b": 33}), ("round_robin", {"a": 50, "b": 50})],
)
def test_sets_are_mixed_by_their_share(mixing: str, expected: dict[str, int]) -> None:
    batches = plan(set_rows("a", 2560), set_rows("b", 640, seed=1), mixing=mixing).batches
    assert Counter(batch.set for batch in batches) == expected
    quarter = Counter(batch.set for batch in batches[:25])
    assert all(abs(quarter[name] - count / 4) <= 2 for name, count in expected.items())  # evenly over the run
    in_turn = all(one.set != next_one.set for one, next_one in itertools.pairwise(batches))
    assert in_turn == (mixing == "round_robin")


def test_a_repeated_set_is_seen_that_often_in_one_epoch() -> None:
    sets = [set_rows("a", 320), dataclasses.replace(set_rows("b", 64, seed=1), repeat=3)]
    batches = plan(*sets).batches
    assert Counter(batch.set for batch in batches) == {"a": 10, "b": 6}
    taken = Counter(np.concatenate([batch.rows for batch in batches if batch.set == "b"]).tolist())
    assert set(taken.values()) == {3}


def test_weights_change_shares() -> None:
    sets = [set_rows("a", 640), set_rows("b", 640, seed=1, weight=3.0)]
    batches = plan(*sets, max_steps=40).batches
    assert Counter(batch.set for batch in batches) == {"a": 10, "b": 30}


def test_scores_below_one_need_angle() -> None:
    rows = set_rows("scored", 320)
    rows.scores[:] = np.where(np.arange(320) % 4 == 0, 1.0, 0.5)
    without = plan(rows)
    assert without.left_out["scored"]["score below 1 without AnglE"] == 240
    assert all((rows.scores[batch.rows] == 1.0).all() for batch in without.batches)
    angled = dataclasses.replace(rows, angle=True)
    batches = plan(angled).batches
    assert sum(len(batch.rows) for batch in batches) == 320
    assert all(has_angle(angled, batch) for batch in batches)
    rows.scores[rows.scores == 1.0] = 0.25
    assert sum(len(batch.rows) for batch in plan(angled).batches) == 320  # AnglE needs no positive


def test_a_batch_of_one_label_has_no_angle() -> None:
    rows = dataclasses.replace(set_rows("pairs", 64, negatives=1), angle=True)
    everything = np.arange(64)
    assert not has_angle(rows, GlobalBatch("pairs", everything, np.zeros((64, 0), np.int64)))
    with_negatives = GlobalBatch("pairs", everything, np.zeros((64, 1), np.int64))
    assert has_angle(rows, with_negatives) and not has_angle(dataclasses.replace(rows, angle=False), with_negatives)


@pytest.mark.parametrize(
    ("scores", "negatives", "expected"),
    [
        ([np.nan, 1.0, 0.5], 0, True),
        ([1.0, 0.5, 0.5], 0, False),  # only its positive
        ([1.0, 0.5, 0.5], 1, True),
        ([0.5, 0.5, 0.5], 1, False),
    ],
)
def test_the_contrastive_loss_needs_two_positives_or_one_with_a_negative(
    scores: list[float], negatives: int, expected: bool
) -> None:
    rows = dataclasses.replace(set_rows("scored", 3), scores=np.array(scores, np.float32))
    assert has_contrast(rows, GlobalBatch("scored", np.arange(3), np.zeros((3, negatives), np.int64))) == expected


def test_a_set_below_one_multiple_is_refused_with_an_override_that_leaves_it_out() -> None:
    with pytest.raises(UserError, match=r"7 rows yield no batch of at least 8.*add rows") as refused:
        plan_batches([set_rows("few", 7)], SIDE, 0, "training.symmetric")
    override = str(refused.value).partition("leave it out: ")[2]
    assert composed("profile=tiny", override).side("symmetric").sets["few"].weight == 0


def test_a_set_whose_rows_share_a_text_is_refused_with_that_reason() -> None:
    rows = set_rows("common", 64)
    same = dataclasses.replace(rows, positives=np.full(64, 999))
    what = r"64 rows yield no batch .*: 64 have the same positive, and a batch takes each text once \(set common\)"
    with pytest.raises(UserError, match=rf"{what}; add rows with another positive, or .*common:.weight:0"):
        plan(same)
    with pytest.raises(UserError, match="60 have the same anchor"):
        plan(dataclasses.replace(rows, anchors=np.maximum(np.arange(64), 59)))


def test_rows_that_are_alone_in_their_batches_need_larger_ones() -> None:
    with pytest.raises(UserError, match=r"7 would each be alone in a batch, without negatives.*; raise batch_size"):
        plan(set_rows("pairs", 7), batch_size=1, batch_multiple=1)


def test_a_set_with_only_scores_is_refused_with_that_reason() -> None:
    rows = set_rows("scored", 64)
    rows.scores[:] = 0.5
    with pytest.raises(UserError, match="64 have a score below 1, which only AnglE uses"):
        plan(rows)
    with pytest.raises(UserError, match="64 have the same score and no negatives"):
        plan(dataclasses.replace(rows, angle=True))

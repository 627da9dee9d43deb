"""Intervals cover; differences are found where there are some."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import false_discovery_control, norm, permutation_test

import evaluation.significance
from evaluation.metrics import FIXED, STATISTICS
from evaluation.outcome import Measure, Outcome, joined
from evaluation.results import MEAN, Difference
from evaluation.significance import (
    Resampling,
    _swapped_differences,
    bootstrap_p_value,
    corrected,
    holm,
    interval,
    mean_over_tasks,
    measured,
    permutation_p_values,
    replicates,
)
from pipeline.core.errors import UserError

RNG = np.random.default_rng(5)
Draw = Callable[[np.random.Generator, int], dict[str, np.ndarray]]


def outcome(statistic: str, **columns: np.ndarray) -> Outcome:
    n = len(next(iter(columns.values())))
    score = STATISTICS[statistic](np.ones((1, n)), *columns.values())[0]
    return Outcome(dict(columns), (Measure("metric", float(score), statistic, tuple(columns)),))


def two_models(rng: np.random.Generator, n: int, gain: float) -> dict[str, Outcome]:
    """Right or wrong answers of two models that share what is hard; the second is right `gain` more often."""
    hard = rng.normal(size=n)
    right = [norm.cdf(hard + shift) > rng.random(n) for shift in (0.0, gain)]
    return {"base": outcome("mean", correct=right[0]), "merge": outcome("mean", correct=right[1])}


def rows_of(outcomes: dict[str, Outcome], plan: Resampling) -> Difference:
    return next(measured(outcomes, [0.0, 0.0], plan, "suite", "task").differences())


def coverage(statistic: str, draw: Draw, truth: float, n: int, runs: int) -> float:
    rng, inside = np.random.default_rng(11), 0
    for run in range(runs):
        plan = Resampling(resamples=400, seed=run)
        low, high = interval(replicates([outcome(statistic, **draw(rng, n))], plan, "coverage")[0])
        inside += low <= truth <= high
    return inside / runs


def correlated(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    gold = rng.normal(size=n)
    return {"prediction": gold + rng.normal(size=n), "gold": gold}


def separated(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    gold = rng.integers(0, 2, n)
    return {"prediction": gold + rng.normal(size=n), "gold": gold}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "draw", "truth"),
    [
        ("mean", lambda rng, n: {"correct": rng.random(n) < 0.3}, 0.3),
        ("pearson", correlated, 1 / np.sqrt(2)),
        ("spearman", correlated, 6 / np.pi * np.arcsin(1 / np.sqrt(2) / 2)),
        ("roc_auc", separated, norm.cdf(1 / np.sqrt(2))),
    ],
)
def test_95_percent_intervals_cover_the_truth_in_93_to_97_percent(statistic: str, draw: Draw, truth: float) -> None:
    assert 0.93 <= coverage(statistic, draw, truth, n=400, runs=2000) <= 0.97


def test_intervals_of_a_difference_cover_it() -> None:
    rng, inside, runs, plan = np.random.default_rng(3), 0, 1000, Resampling(resamples=400)
    hard = np.random.default_rng(0).normal(size=2_000_000)
    truth = float(np.mean(norm.cdf(hard + 0.2)) - np.mean(norm.cdf(hard)))
    for _ in range(runs):
        outcomes = two_models(rng, 300, 0.2)
        base, merge = replicates(list(outcomes.values()), plan, "difference")
        low, high = interval(merge - base)
        inside += low <= truth <= high
    assert 0.93 <= inside / runs <= 0.97


def test_a_known_difference_is_found() -> None:
    truth = norm.cdf(0.5 / np.sqrt(2)) - 0.5  # of a standard normal item plus 0.5, under a normal link
    row = rows_of(two_models(np.random.default_rng(1), 20_000, 0.5), Resampling(2000))
    assert 0 < row.ci_low < truth < row.ci_high and row.p_value < 0.01 and row.test == "permutation"
    assert row.difference == pytest.approx(truth, abs=0.015)


def test_no_difference_is_found_too_often_where_there_is_none() -> None:
    rng, plan = np.random.default_rng(2), Resampling(200)
    found = [rows_of(two_models(rng, 200, 0.0), plan).p_value <= 0.05 for _ in range(400)]
    assert 0.02 <= np.mean(found) <= 0.08


def test_the_same_model_twice_differs_by_nothing() -> None:
    one = two_models(np.random.default_rng(4), 300, 0.0)["base"]
    row = rows_of({"base": one, "merge": one}, Resampling(500))
    assert (row.difference, row.ci_low, row.ci_high, row.p_value) == (0, 0, 0, 1)


def test_the_permutation_test_agrees_with_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.significance, "CHUNK", 60 * 7777)  # the last chunk is smaller
    outcomes = two_models(np.random.default_rng(8), 60, 0.3)
    base, merge = outcomes["base"], outcomes["merge"]
    ours = permutation_p_values([(merge, base)], Resampling(20_000), "suite", "task")[0]
    theirs = permutation_test(
        (merge.columns["correct"].astype(float), base.columns["correct"].astype(float)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert ours == pytest.approx(theirs, abs=0.02)


def test_swapped_texts_have_the_macro_f1_of_swapped_texts() -> None:
    rng = np.random.default_rng(9)
    gold = rng.integers(1, 9, (30, 4))
    models = []
    for share in (0.5, 0.8):
        hits = rng.binomial(gold, share)
        models.append(outcome("macro_f1", hits=hits, predicted=hits + rng.integers(0, 3, gold.shape), gold=gold))
    pairs = [(models[1], models[0]), (models[0], models[1])]
    swaps = rng.integers(0, 2, (5, 30))
    found = _swapped_differences(pairs, np.ones(30))(swaps.astype(float))
    for row, swapped in zip(found, swaps[:, :, None].astype(bool), strict=True):
        columns = [{name: np.where(swapped, other.columns[name], one.columns[name]) for name in one.columns}
                   for one, other in pairs]  # fmt: skip
        better, worse = (outcome("macro_f1", **own).measures[0].score for own in columns)
        assert row == pytest.approx([better - worse, worse - better])
    p_value = permutation_p_values(pairs[:1], Resampling(2000), "suite", "task")[0]
    assert p_value < 0.01 and rows_of(dict(zip("ab", models, strict=True)), Resampling(100)).test == "permutation"
    assert permutation_p_values([(models[0], models[0])], Resampling(200), "suite", "task") == [1]


def test_the_bootstrap_p_value_counts_the_smaller_side() -> None:
    assert bootstrap_p_value(np.array([1.0] * 98 + [-1.0])) == pytest.approx(2 * 2 / 100)
    assert bootstrap_p_value(np.zeros(99)) == 1


def test_resamples_without_a_value_are_not_evidence() -> None:
    values = np.linspace(-1.0, 9.0, 101)
    few, many = (np.concatenate([values, np.full(number, np.nan)]) for number in (5, 50))
    assert interval(few) == interval(values)
    assert bootstrap_p_value(few) == pytest.approx(2 * (11 + 5 + 1) / 107)
    assert np.isnan(interval(many)).all()
    assert bootstrap_p_value(many) > 0.5


@pytest.mark.parametrize(("statistic", "gold"), [("spearman", [0.0, 1.0]), ("roc_auc", [0.0, 1.0, 1.0])])
def test_two_or_three_items_show_no_difference(statistic: str, gold: list[float]) -> None:
    scores = {"worse": -np.array(gold), "better": np.array(gold)}
    models = {name: outcome(statistic, prediction=own, gold=np.array(gold)) for name, own in scores.items()}
    found = rows_of(models, Resampling(500))
    assert found.p_value > 0.5 and np.isnan(found.ci_low)


@pytest.mark.parametrize("items", [1, 2, 3, 5])
def test_few_items_that_agree_are_no_evidence_beyond_their_signs(items: int) -> None:
    models = {name: outcome("mean", value=gain + np.arange(items)) for name, gain in (("worse", 0), ("better", 0.5))}
    found = measured(models, [0.0, 0.0], Resampling(1000), "suite", "task", permuted=False)
    (row,) = found.differences()
    assert (row.test, row.p_value) == ("bootstrap", 2 / 2**items)
    assert np.isnan([row.ci_low, *(score.ci_low for score in found.rows())]).all() == (items == 1)


def test_holm_is_the_step_down_procedure() -> None:
    # Holm 1979's rule by hand, and never below Benjamini and Hochberg's.
    values = [0.01, 0.04, 0.03, 0.005, float("nan")]
    assert holm(values)[:4] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert np.isnan(holm(values)[4])
    assert holm([0.9, 0.3, 0.6]) == pytest.approx([1, 0.9, 1])  # a probability
    assert (np.array(holm(values)[:4]) >= false_discovery_control(values[:4]) - 1e-12).all()


def test_holm_corrects_over_the_tasks_of_a_suite_for_each_pair() -> None:
    def row(
        task: str,
        p_value: float,
        against: str = "base",
        main: bool = True,
        metric: str = "accuracy",
        model: str = "merge",
        suite: str = "suite",
    ) -> Difference:
        return Difference(model, against, suite, task, metric, 0, 0, 0, p_value, np.nan, "permutation", 9, main)

    rows = [row("a", 0.01), row("b", 0.02), row("a", 0.03, "init"), row("a", 0.04, main=False)]
    rows += [row("Mean", 0.05, metric=MEAN), row("a", 0.06, model="joint"), row("a", 0.07, suite="other")]
    assert [found.p_holm for found in corrected(rows)] == [0.02, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07]


def test_a_task_in_parts_scores_the_mean_of_its_parts() -> None:
    values = np.array([1.0] * 10 + [0.0] * 30)
    parts = np.array(["dev"] * 10 + ["test"] * 30, dtype=object)
    two = Outcome({"value": values, "part": parts}, (Measure("m", 0.5, "mean", ("value",)),))
    assert np.allclose(replicates([two], Resampling(100), "parts"), 0.5)
    flipped = Outcome({"value": 1 - values, "part": parts}, two.measures)
    assert permutation_p_values([(two, flipped)], Resampling(200), "parts") == [1]


def test_replicates_depend_only_on_the_seed_and_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    one = two_models(np.random.default_rng(4), 300, 0.0)["base"]
    first = replicates([one], Resampling(200), "suite", "task")
    assert (first == replicates([one, one], Resampling(200), "suite", "task")[1]).all()
    assert (first != replicates([one], Resampling(200), "suite", "other")).any()
    monkeypatch.setattr(evaluation.significance, "CHUNK", 300 * 7)  # resamples in memory at once, fewer at the end
    assert (first == replicates([one], Resampling(200), "suite", "task")).all()


def test_all_models_get_the_same_experiments() -> None:
    values = RNG.integers(0, 2, (40, 10)).astype(float)
    same = outcome("mean_of_experiments", value=values)
    one, other = replicates([same, same], Resampling(50), "suite", "task")
    assert (one == other).all()


def test_lucky_draws_of_training_texts_are_not_evidence_of_every_item() -> None:
    draws = np.array([[1, 1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]], dtype=float)
    models = {name: outcome("mean_of_experiments", correct=np.tile(draws[n], (200, 1))) for n, name in enumerate("ab")}
    (found,) = measured(models, [0.0, 0.0], Resampling(1000), "suite", "task").differences()
    assert found.test == "bootstrap" and found.ci_low < 0 < found.ci_high and found.p_value > 0.2


def named(values: np.ndarray, names: list[str], **more: np.ndarray) -> Outcome:
    """Values of items that name their texts."""
    measures = (Measure("metric", float(values.mean()), "mean", ("value",)),)
    return Outcome({"value": values, "item": np.array(names, dtype=object), **more}, measures)


def test_two_tasks_over_the_same_texts_are_resampled_together_and_no_others() -> None:
    names, order, values = [f"text {n}" for n in range(80)], RNG.permutation(80), RNG.random(80)
    one, other = named(values, names), named(values[order], [names[n] for n in order])
    elsewhere = named(values, [f"other {n}" for n in range(80)])
    plan = Resampling(500)
    parts = {
        task: measured({"model": found}, [0.0], plan, "suite", task)
        for task, found in {"intents": one, "scenarios": other, "else": elsewhere}.items()
    }
    np.testing.assert_allclose(parts["intents"].replicates, parts["scenarios"].replicates)
    assert abs(np.corrcoef(parts["intents"].replicates[0], parts["else"].replicates[0])[0, 1]) < 0.2
    together = mean_over_tasks("Mean", [parts["intents"], parts["scenarios"]])
    apart = mean_over_tasks("Mean", [parts["intents"], parts["else"]])
    widths = [row.ci_high - row.ci_low for mean in (parts["intents"], together, apart) for row in mean.rows()]
    assert widths[1] == pytest.approx(widths[0]) and widths[2] < 0.85 * widths[0]
    assert (together.items, apart.items) == (80, 160)


def test_parts_over_the_same_texts_are_not_more_evidence_than_one() -> None:
    names, plan = [f"question {n}" for n in range(60)], Resampling(2000)
    rng = np.random.default_rng(7)
    base = rng.random(60)
    change = rng.normal(0, 0.4, 60)
    merge = base + change - change.mean() + 0.06  # about one standard error
    directions = np.array(["ru-ru"] * 60 + ["ru-en"] * 60, dtype=object)

    def p_and_width(names: list[str], *models: np.ndarray, **more: np.ndarray) -> tuple[float, float]:
        row = rows_of({name: named(v, names, **more) for name, v in zip("ab", models, strict=True)}, plan)
        assert row.items == len(set(names))
        return row.p_value, row.ci_high - row.ci_low

    once = p_and_width(names, base, merge)
    doubled = [np.concatenate([values, values]) for values in (base, merge)]
    twice = p_and_width([*names, *names], *doubled, part=directions)
    apart = p_and_width([*names, *(f"{name} again" for name in names)], *doubled, part=directions)
    assert twice == pytest.approx(once, abs=0.02)
    assert apart[0] < once[0] - 0.02 and apart[1] < 0.8 * once[1]


def test_a_mean_compares_the_models_that_have_all_its_tasks() -> None:
    plan = Resampling(100)
    tasks = {"one": {name: outcome("mean", value=RNG.random(30)) for name in "abc"}}
    tasks["other"] = {name: outcome("mean", value=RNG.random(30)) for name in "ca"}
    parts = [measured(outcomes, [2.0] * len(outcomes), plan, "suite", task) for task, outcomes in tasks.items()]
    mean = mean_over_tasks("Mean", parts)
    assert mean.models == ["a", "c"] and mean.seconds.tolist() == [4, 4]
    (row,) = mean.differences()
    assert (row.model, row.against) == ("c", "a")
    gains = [found["c"].measures[0].score - found["a"].measures[0].score for found in tasks.values()]
    assert row.difference == pytest.approx(np.mean(gains))


def test_each_pair_of_models_has_its_own_p_value() -> None:
    values = RNG.random(60)
    models = {name: outcome("mean", value=values + gain) for name, gain in (("a", 0.0), ("b", 0.5), ("c", 0.5))}
    rows = list(measured(models, [0.0] * 3, Resampling(200), "suite", "task").differences())
    assert {(row.model, row.against): row.p_value for row in rows} == {
        ("b", "a"): 1 / 201, ("c", "a"): 1 / 201, ("c", "b"): 1,
    }  # fmt: skip


def test_models_that_were_scored_on_different_items_are_not_compared() -> None:
    models = {name: outcome("mean", value=RNG.random(items)) for name, items in (("a", 30), ("b", 29))}
    with pytest.raises(UserError, match=r"models were scored on different items: a 30, b 29 \(suite/task\)"):
        measured(models, [0.0] * 2, Resampling(100), "suite", "task")


def test_the_bootstrap_tests_where_items_can_t_be_swapped_or_no_permutation_is_wanted() -> None:
    plan = Resampling(100)
    ranked = {name: outcome("spearman", prediction=RNG.random(30), gold=RNG.random(30)) for name in "ab"}
    assert rows_of(ranked, plan).test == "bootstrap"
    means = {name: outcome("mean", value=RNG.random(30)) for name in "abc"}
    found = measured(means, [0.0] * 3, plan, "suite", "task", permuted=False, compared=lambda one, other: other == "c")
    rows = list(found.differences())
    assert [(row.model, row.against, row.test) for row in rows] == [("c", "a", "bootstrap"), ("c", "b", "bootstrap")]


def test_what_has_no_items_has_neither_interval_nor_test_and_stays_as_it_is_in_a_mean() -> None:
    plan = Resampling(500)
    clustering = {name: outcome(FIXED, value=RNG.random(10)) for name in ("base", "merge")}
    found = measured(clustering, [0.0, 0.0], plan, "suite", "clustering")
    assert all(np.isnan([row.ci_low, row.ci_high]).all() and row.items == 0 for row in found.rows())
    (row,) = found.differences()
    assert row.test == "none" and np.isnan([row.ci_low, row.ci_high, row.p_value]).all()
    other = measured(two_models(RNG, 200, 0.2), [0.0, 0.0], plan, "suite", "classification")
    mean = mean_over_tasks("Mean", [found, other])
    assert mean.scores == pytest.approx((found.scores + other.scores) / 2)
    np.testing.assert_allclose(mean.replicates, (found.scores[:, None] + other.replicates) / 2)
    (alone,) = mean_over_tasks("Mean", [found, found]).differences()
    assert (alone.test, alone.items) == ("none", 0) and np.isnan([alone.ci_low, alone.ci_high, alone.p_value]).all()


def test_modes_of_one_outcome_are_swapped_by_their_own_columns() -> None:
    random = np.random.default_rng(0)
    values = random.random(400)
    parts = {name: Outcome({"score": column}, (Measure("score", float(column.mean()), "mean", ("score",)),))
             for name, column in (("dense", values), ("hybrid", values + 0.1))}  # fmt: skip
    whole = joined(parts)
    dense, hybrid = (dataclasses.replace(whole, measures=(measure,)) for measure in whole.measures)
    assert permutation_p_values([(hybrid, dense)], Resampling(2000), "suite", "task") == [1 / 2001]

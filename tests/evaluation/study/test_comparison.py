"""Arms over seeds: means, spreads, intervals over seeds and items, and Holm's correction over arms."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evaluation.outcome import Measure, Outcome
from evaluation.significance import Resampling
from evaluation.study.comparison import ArmScore, compare_arms
from evaluation.study.table import by_mode
from pipeline.core.errors import UserError

PLAN = Resampling(resamples=4000, seed=7)
SEEDS, ITEMS = (1, 2, 3), 300


def outcome(values: np.ndarray) -> Outcome:
    return Outcome({"value": values}, (Measure("accuracy", float(values.mean()), "mean", ("value",)),))


def arms(seed: int = 0, **gains: float) -> dict[tuple[str, int], dict[str, Outcome]]:
    """Arms over the same items, whose difficulty they share; each gains the given amount, with its own noise."""
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0.5, 0.3, ITEMS)
    return {
        (arm, number): {"own/task": outcome(difficulty + gain + rng.normal(0, 0.05, ITEMS))}
        for arm, gain in gains.items()
        for number in SEEDS
    }


def row(rows: list[ArmScore], arm: str, against: str = "") -> ArmScore:
    (found,) = [row for row in rows if (row.arm, row.against) == (arm, against)]
    return found


def test_an_arm_s_score_is_the_mean_over_its_seeds_and_its_spread_their_deviation() -> None:
    found = arms(base=0.0, joint=0.1)
    scores = [found["joint", seed]["own/task"].measures[0].score for seed in SEEDS]
    joint = row(compare_arms(found, PLAN), "joint")
    assert joint.score == pytest.approx(np.mean(scores)) and joint.spread == pytest.approx(np.std(scores, ddof=1))
    assert joint.seeds == 3 and joint.ci_low < joint.score < joint.ci_high


def test_differences_are_paired_so_that_difficulty_shared_by_all_arms_leaves_the_interval() -> None:
    rows = compare_arms(arms(base=0.0, joint=0.02), PLAN)
    own, difference = row(rows, "joint"), row(rows, "joint", "base")
    assert difference.ci_high - difference.ci_low < 0.3 * (own.ci_high - own.ci_low)
    assert difference.ci_low > 0 and difference.p_holm < 0.01


def test_where_items_agree_a_difference_is_student_s_over_the_seeds() -> None:
    steady, shifts = np.full(ITEMS, 0.5), (0, 3, 6)
    found = {("base", seed): {"own/task": outcome(steady)} for seed in SEEDS}
    found |= {("arm", seed): {"own/task": outcome(steady + shift)} for seed, shift in zip(SEEDS, shifts, strict=True)}
    difference = row(compare_arms(found, PLAN), "arm", "base")
    expected = stats.ttest_1samp(shifts, 0)
    low, high = expected.confidence_interval(0.95)
    assert (difference.score, difference.p_holm) == (pytest.approx(3), pytest.approx(expected.pvalue))
    assert (difference.ci_low, difference.ci_high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize("of_seeds", [0.0, 0.02, 0.1])  # next to items' 0.3 / sqrt(300) = 0.017
def test_95_percent_of_intervals_hold_the_truth_and_5_percent_of_equal_arms_differ(of_seeds: float) -> None:
    rng, trials = np.random.default_rng(11), 300
    held, certain = 0, 0
    for trial in range(trials):
        found = {("base", seed): {"own/task": outcome(np.zeros(ITEMS))} for seed in SEEDS}
        items = rng.normal(0, 0.3, ITEMS)
        found |= {("arm", seed): {"own/task": outcome(items + rng.normal(0, of_seeds))} for seed in SEEDS}
        difference = row(compare_arms(found, Resampling(200, seed=trial)), "arm", "base")
        held += difference.ci_low <= 0 <= difference.ci_high
        certain += difference.p_holm <= 0.05
    assert held == trials - certain
    assert 0.02 <= certain / trials <= 0.085


def test_what_is_one_model_for_all_seeds_has_the_interval_of_only_the_items() -> None:
    rng = np.random.default_rng(5)
    one = outcome(rng.normal(0.5, 0.3, ITEMS))
    found = {("base", seed): {"own/task": one} for seed in SEEDS}
    base = row(compare_arms(found, PLAN), "base")
    half = 1.96 * one.columns["value"].std() / np.sqrt(ITEMS)
    assert base.spread == 0 and (base.ci_high - base.ci_low) / 2 == pytest.approx(half, rel=0.05)


def test_p_values_are_corrected_over_the_arms() -> None:
    one = row(compare_arms(arms(base=0.0, arm=0.006), PLAN), "arm", "base")
    many = row(compare_arms(arms(base=0.0, arm=0.006, **{f"other{n}": 0.0 for n in range(8)}), PLAN), "arm", "base")
    assert many.p_holm >= one.p_holm


def test_encodechka_s_mean_is_that_of_its_sentence_tasks() -> None:
    names = {"STS": "spearman", "PI": "spearman", "NLI": "accuracy", "SA": "accuracy",
             "TI": "roc_auc", "IA": "roc_auc", "IC": "accuracy", "ICX": "accuracy"}  # fmt: skip
    rng, found = np.random.default_rng(1), {}
    for arm in ("base", "arm"):
        for seed in SEEDS:
            made = {}
            for task, metric in names.items():
                values = rng.random(50)
                made[f"encodechka_model/{task}"] = Outcome(
                    {"value": values}, (Measure(metric, float(values.mean()), "mean", ("value",)),)
                )
            found[arm, seed] = made
    (mean,) = [row for row in compare_arms(found, PLAN) if (row.arm, row.against, row.task) == ("arm", "", "Mean S")]
    scores = [[one.measures[0].score for one in found["arm", seed].values()] for seed in SEEDS]
    assert mean.score == pytest.approx(np.mean(scores))


def test_other_items_are_refused() -> None:
    found = arms(base=0.0, arm=0.1)
    found["arm", 2] = {"own/task": outcome(np.ones(ITEMS - 1))}
    with pytest.raises(UserError, match=r"different items"):
        compare_arms(found, PLAN)


def test_each_mode_of_a_model_is_its_own_task_and_what_has_no_model_is_none() -> None:
    names = ("{}", "{}.sparse", "bm25")
    measures = tuple(
        Measure(metric, place + 0.5, "mean", ("value",), by)
        for place, by in enumerate(names)
        for metric in ("ndcg_at_10", "recall_at_1")
    )
    found = by_mode(Outcome({"value": np.full(4, 0.5)}, measures))
    assert {mode: [m.metric for m in own.measures] for mode, own in found.items()} == {
        "": ["ndcg_at_10", "recall_at_1"],
        ".sparse": ["ndcg_at_10", "recall_at_1"],
    }
    assert [own.measures[0].score for own in found.values()] == [0.5, 1.5]


def test_the_table_reads_back_what_it_wrote(tmp_path: Path) -> None:
    rows = compare_arms(arms(base=0.0, joint=0.1), PLAN)
    ArmScore.write(tmp_path / "study.csv", rows)
    read = ArmScore.read(tmp_path / "study.csv")
    assert [(row.arm, row.against) for row in read] == [(row.arm, row.against) for row in rows]
    assert [row.score for row in read] == pytest.approx([row.score for row in rows], abs=1e-6)

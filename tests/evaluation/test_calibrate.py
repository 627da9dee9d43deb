"""Calibration sets our figures next to the published ones."""

from math import nan
from pathlib import Path

import pytest

from evaluation.calibrate import Row, build, compared, show, tolerance
from evaluation.published_scores import published_name, published_rows
from evaluation.results import Score
from pipeline.application import composed
from pipeline.core.artefact import StageFolder
from pipeline.core.errors import UserError


def score(suite: str, task: str, metric: str, value: float) -> Score:
    return Score("m", suite, task, metric, value, nan, nan, 1, 0.0)


def test_figures_find_their_published_counterparts() -> None:
    scores = [
        score("encodechka", "STS", "spearman", 0.862),
        score("encodechka", "Mean S", "mean", 0.70),
        score("card_30", "RuBQReranking", "map_at_1000", 0.74),
        score("card_30", "BelebeleRetrieval", "recall_at_100", 0.997),
        score("samples", "sts", "spearman", 0.5),
        score("card_30", "TERRa", "cosine_ap", 0.6),
    ]
    rows = {(row.suite, row.task): row for row in compared(scores, "BAAI/bge-m3")}
    found = {"encodechka": {"STS", "Mean S"}, "card_30": {"RuBQReranking", "BelebeleRetrieval"}}
    assert set(rows) == {(suite, task) for suite, tasks in found.items() for task in tasks}
    assert rows["encodechka", "STS"].published == 0.86 and rows["encodechka", "STS"].within
    assert rows["encodechka", "Mean S"].difference == pytest.approx(-0.087) and not rows["encodechka", "Mean S"].within


def test_a_figure_over_other_splits_or_tasks_is_not_a_counterpart() -> None:
    of_two_splits = score("card_30", "STSBenchmarkMultilingualSTS", "cosine_spearman", (0.823892 + 0.7927) / 2)
    of_30_tasks, of_23_tasks = score("card_30", "Mean", "mean", 0.6893), score("rus_v1_1", "Mean", "mean", 0.6164)
    rows = list(compared([of_two_splits, of_30_tasks, of_23_tasks], "BAAI/bge-m3"))
    assert [(row.suite, row.task) for row in rows] == [("card_30", of_two_splits.task), ("rus_v1_1", "Mean")]
    assert all(row.within for row in rows)


@pytest.mark.parametrize(("chosen", "figures"), [([], 2), (["evaluation.without=[STS22]"], 1)])
def test_the_mean_of_fewer_tasks_is_not_compared(chosen: list[str], figures: int, tmp_path: Path) -> None:
    model = "evaluation.models=[BAAI/bge-m3]"
    config = composed("profile=tiny", "evaluation=calibration", model, *chosen)
    rows = [score("rus_v1_1", "TERRa", "max_ap", 0.606), score("rus_v1_1", "Mean", "mean", 0.6164)]
    Score.write(tmp_path / "scores.csv", rows)
    assert build(config, StageFolder("calibrate", tmp_path, "", {"evaluate": tmp_path}))["figures"] == figures


@pytest.mark.parametrize("suite", ["encodechka", "card_30", "rus_v1_1"])
def test_every_suite_of_the_card_has_published_figures_of_both_models(suite: str) -> None:
    for name in ("BAAI/bge-m3", "deepvk/USER-bge-m3"):
        scores = [score(suite, row["task"], row["metric"], 0.5) for row in published_rows()]
        assert len(list(compared(scores, name))) > 9


def test_a_published_model_is_named_in_full_or_by_its_last_part() -> None:
    assert published_name("deepvk/USER-bge-m3") == published_name("USER-bge-m3") == "deepvk/USER-bge-m3"
    with pytest.raises(UserError, match=r"my-model \(config key evaluation.published\).*BAAI/bge-m3"):
        published_name("my-model")


def test_tolerances_follow_the_noise_of_the_task() -> None:
    assert tolerance("encodechka", "NE1") > tolerance("encodechka", "STS") > tolerance("card_30", "TERRa")


def test_nothing_to_compare_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="BAAI/bge-m3 has no published figure"):
        show("BAAI/bge-m3", [])
    show("BAAI/bge-m3", [Row("encodechka", "STS", "spearman", 0.8, 0.86, -0.06, 0.01, "card")])
    assert "0 of 1 figures within" in capsys.readouterr().out

"""The rows of the card's two score tables are means of the right tasks."""

import pytest
import yaml

from evaluation.published_scores import (
    AVERAGE,
    CARD_ENCODECHKA,
    CARD_MTEB,
    CARD_SUITE,
    DOMINANT,
    GROUPS,
    WITHOUT,
    mean_of,
    parts_of,
    published_figure,
    published_figures,
)
from evaluation.report.claims import CLAIMS
from pipeline.application import CONFIGS
from tests.support.runs import read_csv

CARD = {row["key"]: float(row["card"]) for row in read_csv(CLAIMS)}


def test_the_average_is_over_the_tasks_of_the_suite() -> None:
    suite = yaml.safe_load((CONFIGS / f"evaluation/suite/{CARD_SUITE}.yaml").read_text(encoding="utf-8"))
    assert sorted(task for task, _ in CARD_MTEB[AVERAGE]) == sorted(suite["tasks"])
    assert len(suite["tasks"]) == 30 and len(CARD_MTEB[WITHOUT]) == 27


@pytest.mark.parametrize("group", ["Reranking", "PairClassification", "MultilabelClassification"])
def test_published_scores_of_the_tasks_yield_the_card_s_figure_of_their_group(group: str) -> None:
    figures = published_figures("deepvk/USER-bge-m3")

    def score(task: str, metric: str) -> float | None:
        found = published_figure(figures, CARD_SUITE, task, metric)
        return found[0] if found else None

    assert mean_of(GROUPS[group], score) == pytest.approx(CARD[f"mteb/USER-bge-m3/{group}"], abs=0.0015)


def test_the_average_is_also_taken_without_the_dominant_tasks() -> None:
    scores = {task: 0.9 if task in DOMINANT else 0.5 for task, _ in CARD_MTEB[AVERAGE]}
    assert mean_of(CARD_MTEB[AVERAGE], lambda task, metric: scores[task]) == pytest.approx((3 * 0.9 + 27 * 0.5) / 30)
    assert mean_of(CARD_MTEB[WITHOUT], lambda task, metric: scores[task]) == pytest.approx(0.5)


def test_a_mean_needs_all_its_tasks() -> None:
    scores = {task: 0.5 for task, _ in CARD_ENCODECHKA["Mean S"]} | {"ICX": 0.9}
    assert mean_of(CARD_ENCODECHKA["Mean S"], lambda task, metric: scores[task]) == pytest.approx((7 * 0.5 + 0.9) / 8)
    del scores["STS"]
    assert mean_of(CARD_ENCODECHKA["Mean S"], lambda task, metric: scores.get(task)) is None


def test_the_first_metric_that_is_known_counts() -> None:
    scores = {("RuBQReranking", "map"): 0.7, ("MIRACLReranking", "ndcg_at_10"): 0.6}
    assert parts_of(GROUPS["Reranking"], lambda *cell: scores.get(cell)) == [0.6, 0.7]
    scores["RuBQReranking", "map_at_1000"] = 0.8
    assert parts_of(GROUPS["Reranking"], lambda *cell: scores.get(cell)) == [0.6, 0.8]

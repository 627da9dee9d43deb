"""Means over tasks: the card's rows, and intervals that resample the items of each task jointly for all models."""

from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import STATISTICS
from evaluation.outcome import Measure, Outcome
from evaluation.published_scores import CARD_MTEB, CARD_SUITE, GROUPS
from evaluation.results import Difference, Score
from evaluation.scoring import Scorer
from evaluation.suites.task import Task
from evaluation.tables import show_scores, write_tables
from pipeline.core.artefact import StageFolder
from pipeline.core.errors import UserError
from tests.evaluation.test_evaluate import make_config
from tests.support.runs import read_csv

ITEMS, RESAMPLES = 60, 2000
MODELS = ("base", "merge")
SPEARMAN, PEARSON = "cosine_spearman", "cosine_pearson"
Columns = dict[str, np.ndarray]


def columns_of(task: str, metrics: tuple[str, ...]) -> dict[str, Columns]:
    """Two models that find the same items hard, the second a little better."""
    rng = np.random.default_rng(sorted(task.encode()))
    gold, noise, less = rng.normal(size=(3, ITEMS))
    gain = 0.15 + rng.normal(0, 0.05, ITEMS)
    found: dict[str, Columns] = {}
    for model, better in zip(MODELS, (0.0, gain), strict=True):
        similar = {"prediction": gold + noise * (1 - np.asarray(better)) + 0.1 * less, "gold": gold}
        found[model] = similar if PEARSON in metrics else {"value": noise + better}
    return found


def outcome(columns: Columns, metrics: tuple[str, ...]) -> Outcome:
    measures = []
    for metric in metrics:
        statistic = {SPEARMAN: "spearman", PEARSON: "pearson"}.get(metric, "mean")
        score = STATISTICS[statistic](np.ones((1, ITEMS)), *columns.values())[0]
        measures.append(Measure(metric, float(score), statistic, tuple(columns)))
    return Outcome(columns, tuple(measures))


def brute_force(tasks: dict[str, dict[str, Columns]]) -> tuple[float, float]:
    """95 % interval of the difference of means over tasks: the same items of a task drawn for both models."""
    rng, differences = np.random.default_rng(5), []
    for _ in range(RESAMPLES):
        of_tasks = []
        for models in tasks.values():
            drawn = rng.integers(0, ITEMS, ITEMS)
            base, merge = (
                np.corrcoef(*(column[drawn] for column in models[model].values()))[0, 1]
                if "gold" in models[model]
                else models[model]["value"][drawn].mean()
                for model in MODELS
            )
            of_tasks.append(merge - base)
        differences.append(np.mean(of_tasks))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


class Scored(Task):
    """A task whose results exist already."""

    def score(self, scorer: Scorer) -> Outcome:
        raise NotImplementedError


@pytest.fixture(scope="module")
def metrics() -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for parts in GROUPS.values():
        for task, names in parts:
            found[task] = (*found.get(task, ()), names[0])
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, metrics: dict[str, tuple[str, ...]]) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    config = make_config(folder, f"evaluation.resamples={RESAMPLES}")
    results: dict[str, dict[str, dict[str, object]]] = {}
    for task, names in metrics.items():
        for model, columns in columns_of(task, names).items():
            place = f"predictions/{model}/{task}.parquet"
            outcome(columns, names).write(folder / place)
            results.setdefault(f"{CARD_SUITE}/{task}", {})[model] = {"predictions": place, "seconds": 1.0}
    tasks = [Scored(CARD_SUITE, task, {}) for task in metrics]
    write_tables(config, StageFolder("test", folder, "f" * 48, {}), tasks, results)
    return folder


@pytest.mark.parametrize("row", ["Retrieval by Recall@100", "STS by Pearson"])
def test_the_interval_of_a_group_s_difference_is_that_of_a_brute_force(
    row: str, written: Path, metrics: dict[str, tuple[str, ...]]
) -> None:
    (found,) = [line for line in read_csv(written / "comparison.csv") if line["task"] == row]
    assert (found["model"], found["against"], found["metric"], found["test"]) == ("merge", "base", "mean", "bootstrap")
    low, high = brute_force({task: columns_of(task, metrics[task]) for task, _ in GROUPS[row]})
    width = high - low
    assert float(found["ci_low"]) == pytest.approx(low, abs=0.08 * width)
    assert float(found["ci_high"]) == pytest.approx(high, abs=0.08 * width)
    scores = [line for line in read_csv(written / "scores.csv") if line["task"] == row]
    assert all(float(line["ci_high"]) - float(line["ci_low"]) > 2 * width for line in scores)  # pairing matters
    assert {line["items"] for line in scores} == {str(ITEMS * len(GROUPS[row]))}


def test_every_row_of_the_card_is_the_mean_of_its_tasks(written: Path) -> None:
    scores = {
        (line["task"], line["metric"]): float(line["score"])
        for line in read_csv(written / "scores.csv")
        if line["model"] == "merge"
    }
    for row, parts in CARD_MTEB.items():
        mean = np.mean([scores[task, names[0]] for task, names in parts])
        assert scores[row, "mean"] == pytest.approx(mean, abs=1e-5), row


def test_the_mean_of_a_suite_is_over_main_metrics(written: Path, metrics: dict[str, tuple[str, ...]]) -> None:
    lines = [line for line in read_csv(written / "scores.csv") if line["model"] == "merge"]
    (mean,) = [float(line["score"]) for line in lines if line["task"] == "Mean"]
    own = [float(line["score"]) for line in lines if metrics.get(line["task"], ("",))[0] == line["metric"]]
    assert len(own) == 30 and mean == pytest.approx(np.mean(own), abs=1e-5)


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        Difference("merge", "base", "s", "t", metric, 0.25, -0.5, 0.75, 0.5, 1.0, "bootstrap", 9, metric == "ap")
        for metric in ("ap", "f1")
    ]
    Difference.write(tmp_path / "comparison.csv", rows)
    assert Difference.read(tmp_path / "comparison.csv") == rows
    Score.write(tmp_path / "scores.csv", [Score("m", "s", "t", "ap", 0.5, np.nan, np.nan, 4, 0.1)])
    (score,) = Score.read(tmp_path / "scores.csv")
    assert (score.score, score.items) == (0.5, 4) and np.isnan([score.ci_low, score.ci_high]).all()


def test_a_table_of_an_earlier_version_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "comparison.csv").write_text("model,against,suite\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"lacks the column .*main.*make evaluate"):
        Difference.read(tmp_path / "comparison.csv")


@pytest.mark.parametrize(
    ("tasks", "metrics", "titles", "heads"),
    [
        (2, ["accuracy"], ["scores on suite"], ["model accuracy accuracy"]),
        (2, ["ndcg_at_10", "bytes_per_passage"], ["scores on suite, t0", "scores on suite, t1"],
         ["model ndcg_at_10 bytes_per_passage"] * 2),
        (11, ["spearman", "pearson"], ["scores on suite"], ["task metric base"]),
    ],
)  # fmt: skip
def test_printed_scores_fit_a_terminal(
    tasks: int, metrics: list[str], titles: list[str], heads: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    scored = [(f"t{place}", metric) for place in range(tasks) for metric in metrics]
    show_scores([Score("base", "suite", task, metric, 1536.5, 1536.4, 1536.6, 4, 0.0) for task, metric in scored])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("scores on")] == titles
    assert [" ".join(line.split()) for line in lines if line.split()[:1] in (["model"], ["task"])] == heads
    assert sum("1,536" in line for line in lines) == ("bytes_per_passage" in metrics) * tasks

"""Published figures of known models, with their sources: published_scores.csv."""

import csv
from pathlib import Path

from configs.schema.evaluation import EvaluationConfig
from pipeline.core.errors import UserError

PUBLISHED = Path(__file__).with_name("published_scores.csv")
SOURCES = {  # our suite -> published suites, the first that has the figure counts
    "encodechka": ("encodechka",),
    "card_30": ("mteb-card30", "mteb-rus-v1"),
    "rus_v1_1": ("mteb-rus-v1.1", "mteb-rus-v1"),
}
METRICS = {"map": "map_at_1000"}  # names that mteb has changed since
TASKS = {"Mean (Task)": "Mean", "BelebeleRetrieval (mean of 3 pairs)": "BelebeleRetrieval"}
MEANS = ("Mean", "Mean S", "Mean S+W")
Figures = dict[tuple[str, str, str], tuple[float, str]]  # (suite, task, metric) -> score and source


def published_rows() -> list[dict[str, str]]:
    """The rows of published_scores.csv."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published_figures(name: str) -> Figures:
    """All figures of a model, in today's names of tasks and metrics."""
    figures = {}
    for row in published_rows():
        if row["model"].lower() == name.lower():
            task = TASKS.get(row["task"], row["task"])
            metric = "" if task in MEANS else METRICS.get(row["metric"], row["metric"])
            figures[row["suite"], task, metric] = (float(row["score"]), row["source"])
    return figures


def published_figure(figures: Figures, suite: str, task: str, metric: str) -> tuple[float, str] | None:
    """The figure, with its source, for a row of scores.csv; means over tasks have no metric."""
    keys = ((source, task, "" if task in MEANS else metric) for source in SOURCES.get(suite, ()))
    return next((figures[key] for key in keys if key in figures), None)


def calibrated_name(config: EvaluationConfig) -> str:
    """The published model whose figures a calibration is compared with; raises UserError where there is not one."""
    if config.chain or len(config.models) != 1:
        models = ", ".join([*config.chain, *config.models]) or "none"
        where, remedy = "config keys evaluation.chain and evaluation.models", "make calibrate MODEL=BAAI/bge-m3"
        raise UserError(f"calibration takes one model, not {models}", where=where, remedy=remedy)
    return published_name(config.published or config.models[0].partition("@")[0])


def published_name(wanted: str) -> str:
    """The published model that is meant: its full name, or the part after the slash, as folders are often called."""
    names = sorted({row["model"] for row in published_rows()})
    end = Path(wanted).name
    for name in names:
        if wanted.lower() == name.lower() or end.lower() == name.rpartition("/")[2].lower():
            return name
    raise UserError(
        f"no published scores of {wanted}",
        where="config key evaluation.published",
        remedy=f"name the published model that it is: {', '.join(names)}",
    )

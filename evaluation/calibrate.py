"""Compares our scores of a published model with the published ones: `make calibrate MODEL=<hub id or folder>`.

Before trusting a new model's scores, check that the harness reproduces known ones. Figures and their sources are in
published_scores.csv; the reason for each tolerance is below.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from configs.schema.config import Config
from evaluation.published_scores import PUBLISHED_SUITES, calibrated_name, published_figure, published_figures
from evaluation.results import Score, TableRow
from pipeline.core.artefact import StageFolder
from pipeline.core.console import console, show_table
from pipeline.core.errors import UserError

ROUNDED = 0.01  # encodechka publishes two digits, and solvers and tokenizers have changed since
WORDS = 0.02  # half of NE1's average rests on tags with fewer than 50 words
FEW_SHOT = 0.01  # ten draws of eight texts per label; older results used other prompts and tokenizers
DRIFTED = {"STS22": 0.05, "SensitiveTopicsClassification": 0.015}  # other data or sampling in newer versions of mteb
DEFAULT = 0.005


@dataclass(frozen=True)
class Row(TableRow):
    """One of our scores next to the published one."""

    suite: str
    task: str
    metric: str
    ours: float
    published: float
    difference: float
    tolerance: float
    source: str

    @property
    def within(self) -> bool:
        """Whether the difference is within the tolerance."""
        return abs(self.difference) <= self.tolerance


def build(config: Config, stage: StageFolder) -> dict[str, Any]:
    """Print every difference and write calibration.csv; raises UserError if one is out of tolerance."""
    name = calibrated_name(config.evaluation)
    scores = Score.read(stage.inputs["evaluate"] / "scores.csv")
    if config.evaluation.tasks or config.evaluation.without:  # "Mean" covers fewer tasks than the published one
        scores = [score for score in scores if score.task != "Mean"]
    rows = list(compared(scores, name))
    show(name, rows)
    with stage.replacing("calibration.csv") as path:
        Row.write(path, rows)
    if outside := [row.task for row in rows if not row.within]:
        what = f"{len(outside)} of {len(rows)} figures of {name} are out of tolerance: {', '.join(outside)}"
        remedy = "fix the harness, or the data it reads, before trusting other scores"
        raise UserError(what, where=str(stage.path / "calibration.csv"), remedy=remedy)
    return {"figures": len(rows), "largest difference": max(abs(row.difference) for row in rows)}


def compared(scores: Iterable[Score], name: str) -> Iterator[Row]:
    """A row for each score that has a published figure for the model `name`."""
    figures = published_figures(name)
    for score in scores:
        suite, task, metric, ours = score.suite, score.task, score.metric, score.score
        if found := published_figure(figures, suite, task, metric):
            theirs, source = found
            yield Row(suite, task, metric, ours, theirs, round(ours - theirs, 6), tolerance(suite, task), source)


def tolerance(suite: str, task: str) -> float:
    """The largest acceptable difference of a score from the published one."""
    if suite == "encodechka":
        return WORDS if task in ("NE1", "NE2") else ROUNDED
    return DRIFTED.get(task, FEW_SHOT if task.endswith("Classification") else DEFAULT)


def show(name: str, rows: list[Row]) -> None:
    """Print the table of differences and the verdict; raises UserError if nothing could be compared."""
    if not rows:
        what = f"{name} has no published figure for any of the scores"
        remedy = f"run one of the suites {', '.join(PUBLISHED_SUITES)}"
        raise UserError(what, where="config key evaluation.suites", remedy=remedy)
    columns = ["suite", "task", "metric", "ours", "published", "difference", "tolerance", "within"]
    lines = [
        [r.suite, r.task, r.metric, r.ours, r.published, f"{r.difference:+.4f}", r.tolerance,
         "yes" if r.within else "NO"]
        for r in rows
    ]  # fmt: skip
    show_table(f"calibration on {name}", columns, lines)
    console.print(f"{sum(row.within for row in rows)} of {len(rows)} figures within tolerance")

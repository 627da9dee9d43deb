"""Scores a published model and sets each figure beside the published one: `make calibrate MODEL=<hub id or folder>`.

Who wants to trust a new model's scores first shows that the harness gives the known ones. Figures and their sources
stand in published_scores.csv; every tolerance has its reason below.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from evaluation.evaluate import STAGE
from evaluation.models import scored_models
from evaluation.published import SOURCES, published_figure, published_figures, published_rows
from pipeline.application import hydra_application
from pipeline.artefact import replacing
from pipeline.config import Config
from pipeline.console import console, show_table
from pipeline.errors import UserError
from pipeline.stage import run_stage

ROUNDED = 0.01  # encodechka publishes two digits, and solvers and tokenizers have changed since
WORDS = 0.02  # half of NE1's average rests on tags with fewer than 50 words
FEW_SHOT = 0.01  # ten draws of eight texts a label; prompts and tokenizers of older results
DRIFTED = {"STS22": 0.05, "SensitiveTopicsClassification": 0.015}  # other data or sampling in newer versions of mteb
DEFAULT = 0.005


@dataclass(frozen=True)
class Row:
    """One figure beside the published one."""

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
        """Whether the difference lies within the tolerance."""
        return abs(self.difference) <= self.tolerance


def calibrate(config: Config) -> None:
    """Score the model, print every difference, write calibration.csv; status 1 when one is out of tolerance."""
    models = scored_models(config)
    if len(models) != 1:
        raise UserError(
            f"calibration takes one model, not {len(models)}",
            where="config keys evaluation.chain and evaluation.models",
            remedy="make calibrate MODEL=BAAI/bge-m3",
        )
    name = published_name(config.evaluation.published or models[0].name)
    run_stage(STAGE, config)
    folder = config.folder("evaluate")
    rows = list(compared(read_csv(folder / "scores.csv"), name))
    show(name, rows)
    with replacing(folder.parent / "calibration.csv") as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    if not all(row.within for row in rows):
        sys.exit(1)


def published_name(wanted: str) -> str:
    """The published model that is meant: its full name, or the part after the slash, as folders are often called."""
    names = sorted({row["model"] for row in published_rows()})
    for name in names:
        if wanted.lower() in (name.lower(), name.rpartition("/")[2].lower()):
            return name
    raise UserError(
        f"no published scores of {wanted}",
        where="config key evaluation.published",
        remedy=f"name the published model that it is: {', '.join(names)}",
    )


def compared(scores: Iterable[dict[str, str]], name: str) -> Iterator[Row]:
    """Rows of scores.csv for which `name` has a published figure."""
    figures = published_figures(name)
    for score in scores:
        suite, task = score["suite"], score["task"]
        if found := published_figure(figures, suite, task, score["metric"]):
            ours, (theirs, source) = float(score["score"]), found
            limit = tolerance(suite, task)
            yield Row(suite, task, score["metric"], ours, theirs, round(ours - theirs, 6), limit, source)


def tolerance(suite: str, task: str) -> float:
    """How far a figure may be from the published one before the harness is in doubt."""
    if suite == "encodechka":
        return WORDS if task in ("NE1", "NE2") else ROUNDED
    return DRIFTED.get(task, FEW_SHOT if task.endswith("Classification") else DEFAULT)


def show(name: str, rows: list[Row]) -> None:
    """The table of differences and the verdict; raises UserError where nothing could be compared."""
    if not rows:
        raise UserError(
            f"none of the scores has a published figure of {name}",
            where="config key evaluation.suites",
            remedy=f"run a suite among {', '.join(SOURCES)}",
        )
    columns = ["suite", "task", "metric", "ours", "published", "difference", "tolerance", "within"]
    lines = [
        [
            r.suite,
            r.task,
            r.metric,
            r.ours,
            r.published,
            f"{r.difference:+.4f}",
            r.tolerance,
            "yes" if r.within else "NO",
        ]
        for r in rows
    ]
    show_table(f"calibration on {name}", columns, lines)
    console.print(f"{sum(row.within for row in rows)} of {len(rows)} figures within their tolerance")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


main = hydra_application(calibrate)

if __name__ == "__main__":
    main()

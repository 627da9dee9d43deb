"""The cost of smaller forms of the model, for page and card: bytes per vector, quality, speed and file sizes."""

import math
from collections.abc import Iterator
from typing import Any

from markupsafe import Markup

from evaluation.export.formats import FORMATS
from evaluation.report import format as show
from evaluation.report import page
from evaluation.report.charts import Line, line_chart, signed
from evaluation.report.record import RunRecord
from evaluation.results import Difference, Score

COLOURS = {"float32": "var(--merge)", "int8": "var(--accent)", "binary": "var(--symmetric)"}
BYTES, RATE = "bytes a vector", "texts a second"
MEASURED = ("cosine mean", "cosine min", "correlation of pairs' cosines")  # of exports, as in their stage's metrics
VECTORS = (
    "The merged model's vectors are cut to their first dimensions and scaled to length 1 again; documents are stored "
    "with 8 bits or one bit per dimension, queries in float32. Scores have 95 % intervals, changes from full vectors "
    "p-values (bootstrap, Holm)."
)
EXPORTS = (
    "An export's cosines compare its vectors of the bundled samples with torch's; the correlation compares the cosines "
    "of the samples' pairs. Speeds are from one pass over these texts on a CPU."
)


def cost(run: RunRecord) -> list[page.Section]:
    """The page's section, if anything was measured: a table, a picture per task, and all models' scores by form."""
    rows = table(run, show.SMALL_BELOW)
    if not rows:
        return []
    pictures = [_picture(run, task) for task in dict.fromkeys(note["of"] for *_, note in _stored(run))]
    blocks = [page.text(words(run)), page.table("What smaller forms cost", rows[0], rows[1:])]
    blocks.append(page.group("pictures", pictures))
    for suite, models, lines in run.suite_tables(forms=True):
        cells = [[task, *map(show.score, scores)] for task, _, _, scores in lines]
        blocks.append(page.folded("All models by form", page.table(f"Suite {suite}", ["task", *models], cells)))
    return [page.Section("cost", "What it costs", blocks)]


def words(run: RunRecord) -> str:
    """How to read the table."""
    parts = [VECTORS] if any(_stored(run)) else []
    parts += [EXPORTS] if exported(run) else []
    return " ".join(parts)


def exported(run: RunRecord) -> list[str]:
    """The formats that the stage export made."""
    return [name for name in FORMATS if f"{name} bytes" in _exports(run)]


def fewer_dimensions(run: RunRecord) -> int | None:
    """The largest number of dimensions, below the full one, whose cost was measured."""
    counts = sorted({note["dimensions"] for *_, note in _stored(run)})
    return counts[-2] if len(counts) > 1 else None


def table(run: RunRecord, frame: str) -> list[list[str]]:
    """The header, then a row per form of the vectors and per export; empty if there are none.

    `frame` formats a score with its interval.
    """
    rows: dict[str, dict[str, str]] = {}
    for score, change, form, note in _stored(run):
        row = rows.setdefault(form, {BYTES: show.count(note["bytes"])})
        gained = f"{signed(change.difference, 3)} (p {show.p_value(change.p_holm)})" if change else show.DASH
        row |= {f"{note['of']}, {score.metric}": show.score(score, frame), f"{note['of']}, change": gained}
    metrics = _exports(run)
    for name in ("torch", *exported(run)) if metrics else ():
        counts = {BYTES: BYTES, RATE: "texts per second", "file, bytes": "bytes"}
        row = {column: show.count(metrics.get(f"{name} {key}")) for column, key in counts.items()}
        found = {measure: metrics.get(f"{name} {measure}") for measure in MEASURED}
        rows[name] = row | {measure: f"{value:.4f}" for measure, value in found.items() if value is not None}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    filled = [[name, *(row.get(column, show.DASH) for column in columns)] for name, row in rows.items()]
    return [["form", *columns], *filled] if rows else []


def _stored(run: RunRecord) -> Iterator[tuple[Score, Difference | None, str, dict[str, Any]]]:
    """The merge's scores in each form: score, difference from full vectors, the form in words, and its facts."""
    for score in run.scores:
        note = run.notes.get(f"{score.suite}/{score.task}", {}).get("stored")
        if note and score.model == "merge":
            change = run.difference("merge", f"merge on {note['full']}", score.suite, score.task)
            yield score, change, f"{show.count(note['dimensions'])} dimensions, {note['precision']}", note


def _exports(run: RunRecord) -> dict[str, Any]:
    """The metrics of the stage export, if its files are made from this merge."""
    return run.made["export"].metrics if run.status("export") == "complete" else {}


def _picture(run: RunRecord, task: str) -> Markup:
    """Quality against bytes per vector on one task, with a line per precision."""
    found = [(score, note) for score, _, _, note in _stored(run) if note["of"] == task]
    lines = []
    for precision, colour in COLOURS.items():
        points = [(math.log2(note["bytes"]), score.score) for score, note in found if note["precision"] == precision]
        lines += [Line(precision, colour, sorted(points))] if points else []
    metric = found[0][0].metric
    listed = "; ".join(f"{note['bytes']} bytes {score.score:.3f}" for score, note in found)
    describe = f"{metric} on {task} against bytes a vector: {listed}"
    svg = line_chart(lines, x_label=BYTES, y_label=metric, describe=describe, powers=True)
    caption = f"{metric} on {task} against bytes a vector. "
    return page.picture(svg, caption + show.key(lines))

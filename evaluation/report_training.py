"""The page's parts about training and merging: plan, curves, weights, search."""

import base64
import re
from typing import Any

from evaluation import report_format as show
from evaluation.report_charts import BINS, Line, line_chart
from evaluation.run_record import RunRecord

LOSSES = (("loss", "training loss"), ("angle", "AnglE loss, where it applies"))
DEV_SCORE, DEV_MEAN = re.compile(r"dev_(.*_)?score"), "dev_score"
DEV_COLOURS = ("var(--merge)", "var(--symmetric)", "var(--asymmetric)", "var(--init)", "var(--joint)", "var(--base)")
MOST_DEV_LINES = len(DEV_COLOURS) - 1
LEAST_SCORES = 0.02  # range of the axis of scores
TAKEN = "\u00a0*"
PLAN_COLUMNS = (
    ("batches", "batches"),
    ("batch_size", "rows a batch"),
    ("rows_seen", "rows seen"),
    ("tokens", "tokens"),
    ("padding_share", "padding"),
    ("angle_share", "batches with AnglE"),
)


def plan_table(run: RunRecord) -> tuple[list[str], list[list[Any]]]:
    """One row a side."""
    columns = ["side", *(title for _, title in PLAN_COLUMNS)]
    return columns, [[side, *_planned(plan)] for side, plan in run.plans.items()]


def set_table(plan: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """One row a set of a side's plan."""
    shown = [(key, title) for key, title in PLAN_COLUMNS if key != "batch_size"]
    rows = [
        [name, show.count(entry.get("rows")), *_planned(entry, shown)]
        for name, entry in (plan.get("sets") or {}).items()
    ]
    return ["set", "rows", *(title for _, title in shown)], rows


def _planned(entry: dict[str, Any], columns: Any = PLAN_COLUMNS) -> list[str]:
    return [show.share(entry.get(key)) if key.endswith("_share") else show.count(entry.get(key)) for key, _ in columns]


def side_views(run: RunRecord) -> list[dict[str, Any]]:
    """For each trained side its charts and its plan by set."""
    views = []
    for side in dict.fromkeys([*run.plans, *run.curves]):
        columns, rows = set_table(run.plans.get(side, {}))
        losses = [loss_chart(run, side, name, words) for name, words in LOSSES]
        charts = [chart for chart in (*losses, dev_chart(run, side)) if chart[0]]
        views.append({"name": side.capitalize(), "charts": charts, "set_columns": columns, "sets": rows})
    return views


def loss_chart(run: RunRecord, side: str, name: str, words: str) -> tuple[str, str]:
    """The training loss, or a part of it, over the steps."""
    line = Line(name, "var(--accent)", _points(run, side, name))
    svg = line_chart([line], x_label="step", y_label=words, describe=f"{words} of the {side} side: {_ends([line])}")
    binned = len(line.points) > BINS
    return svg, words[0].upper() + words[1:] + ("; mean and range of neighbouring steps." if binned else ".")


def dev_chart(run: RunRecord, side: str) -> tuple[str, Any]:
    """The dev scores over the steps, and their mean where there are several."""
    entries = run.curves.get(side, [])
    names = list(dict.fromkeys(key for entry in entries for key in entry if DEV_SCORE.fullmatch(key)))
    sets = [name for name in names if name != DEV_MEAN][:MOST_DEV_LINES]
    shown = [DEV_MEAN, *sets] if DEV_MEAN in names and len(sets) != 1 else sets
    lines = [Line(_dev_name(n), colour, _points(run, side, n)) for n, colour in zip(shown, DEV_COLOURS, strict=False)]
    describe = f"Dev scores of the {side} side by step: {_ends(lines)}"
    svg = line_chart(lines, x_label="step", y_label="score", describe=describe, least_range=LEAST_SCORES)
    return svg, "Scores on held-out dev rows. " + show.key([(line.name, line.colour) for line in lines])


def _dev_name(name: str) -> str:
    return "mean" if name == DEV_MEAN else name.removeprefix("dev_").removesuffix("_score").replace("_", " ")


def _points(run: RunRecord, side: str, name: str) -> list[tuple[float, float]]:
    entries = run.curves.get(side, [])
    points = [(entry["step"], entry[name]) for entry in entries if isinstance(entry.get(name), int | float)]
    return [point for point in points if name != "angle" or point[1]]  # 0: a batch to which AnglE doesn't apply


def _ends(lines: list[Line]) -> str:
    parts = [f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines if line.points]
    return "; ".join(parts)


def merge_facts(run: RunRecord) -> list[tuple[str, str]]:
    """How the merge was weighed."""
    found = run.weights
    if not found:
        return []
    facts = [("method", str(found.get("method", "?")).replace("_", " "))]
    facts += [(f"weight of {name}", f"{weight:.3f}") for name, weight in (found.get("weights") or {}).items()]
    facts += [(f"few-shot loss of {name}", f"{loss:.3f}") for name, loss in (found.get("losses") or {}).items()]
    if found.get("temperature") is not None:
        facts.append(("temperature", show.number(found["temperature"])))
    return facts


def compared_table(run: RunRecord) -> tuple[list[str], list[list[Any]]]:
    """The models and the ways of choosing weights, scored on the same dev rows."""
    found = run.weights or {}
    compared = found.get("compared") or {}
    models = found.get("models") or []
    sides = [side for side in ("symmetric", "asymmetric") if any(side in row for row in compared.values())]
    rows = []
    for name, row in compared.items():
        marked = name.replace("_", " ") + (TAKEN if name == found.get("method") else "")
        weights = [_fixed(row.get(f"weight_{model}")) for model in models]
        scores = [_fixed(row.get(key)) for key in ("dev", *sides, "guard_loss")]
        rows.append([marked, *weights, *scores, show.number(row.get("allowed"))])
    columns = ["", *(f"weight of {name}" for name in models), "dev", *(f"dev {side}" for side in sides)]
    return [*columns, "guard loss", "allowed"], rows


def _fixed(value: float | None) -> str:
    return show.DASH if value is None or value != value else f"{value:.3f}".replace("-", "−")


def search_table(run: RunRecord) -> tuple[list[str], list[list[Any]]]:
    """search.csv as it is, numbers shortened."""
    if not run.search:
        return [], []
    columns = list(run.search[0])
    rows = [[_shortened(row[column]) for column in columns] for row in run.search]
    return [column.replace("_", " ") for column in columns], rows


def _shortened(text: str) -> str:
    try:
        return f"{float(text):.4f}".replace("-", "−") if "." in text else text or show.DASH
    except ValueError:
        return text.replace("_", " ")


def simplex(run: RunRecord) -> tuple[str | None, str]:
    """The search's picture as a data URI, and what it shows in words."""
    if not run.simplex:
        return None, ""
    words = (
        f"Weights of the {len(run.search)} candidates that were tried, coloured by their dev score"
        if run.search
        else "Weights of the merge"
    )
    return "data:image/svg+xml;base64," + base64.b64encode(run.simplex.encode()).decode(), words + "."

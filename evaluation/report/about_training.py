"""The page's sections on training and merging: plan, curves, weights, search."""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import median
from typing import Any

from markupsafe import Markup

from configs.schema.data import DATA_SIDES
from evaluation.report import format as show
from evaluation.report import page
from evaluation.report.charts import BINS, DASHES, Line, line_chart, signed
from evaluation.report.record import RunRecord

LOSSES = (("loss", "training loss"), ("angle", "AnglE loss, where it applies"))
DEV_SCORE, DEV_MEAN = re.compile(r"dev_(.*_)?score"), "dev_score"
DEV_COLOURS = ("merge", "symmetric", "asymmetric", "init", "joint", "base", "accent", "ink")  # CSS variables
DEV_STYLES = [(f"var(--{colour})", dash) for dash in DASHES for colour in DEV_COLOURS]
LEAST_SCORES = 0.02  # smallest range of the score axis
AROUND, PEAK, MOST_PEAKS = 10, 6.0, 4  # steps on each side, multiple of the usual distance, most peaks listed
BOUNDS = ("guard_loss_low", "guard_loss_high")  # of the guard loss's interval, shown next to the loss
TAKEN = "\u00a0*"
PLAN_COLUMNS = (
    ("batches", "batches"),
    ("batch_size", "rows per batch"),
    ("rows_seen", "rows seen"),
    ("tokens", "tokens"),
    ("padding_share", "padding"),
    ("angle_share", "batches with AnglE"),
)


def training(run: RunRecord) -> page.Section:
    """The plans, then each trained side's charts and its plan by set."""
    sides = dict.fromkeys([*run.plans, *run.curves])
    if not sides:
        return page.Section("training", "Plan and training", [page.absent("symmetric or asymmetric")])
    columns = ["side", *(title for _, title in PLAN_COLUMNS)]
    rows = [[side, *_planned(plan)] for side, plan in run.plans.items()]
    blocks = [page.table("Planned training of each side", columns, rows)]
    for side in sides:
        losses = [loss_chart(run, side, name, words) for name, words in LOSSES]
        blocks += [
            page.heading(side.capitalize()),
            page.group("pictures", [*losses, dev_chart(run, side)]),
            page.folded("Plan by set", _sets(side, run.plans.get(side, {}))),
        ]
    return page.Section("training", "Plan and training", blocks)


def _sets(side: str, plan: dict[str, Any]) -> Markup:
    """A side's plan, one row per set."""
    shown = [(key, title) for key, title in PLAN_COLUMNS if key != "batch_size"]
    rows = [
        [name, show.count(entry.get("rows")), *_planned(entry, shown)]
        for name, entry in (plan.get("sets") or {}).items()
    ]
    caption = f"Planned batches of the {side.capitalize()} side"
    return page.table(caption, ["set", "rows", *(title for _, title in shown)], rows)


def _planned(entry: dict[str, Any], columns: Any = PLAN_COLUMNS) -> list[str]:
    return [show.share(entry.get(key)) if key.endswith("_share") else show.count(entry.get(key)) for key, _ in columns]


def loss_chart(run: RunRecord, side: str, name: str, words: str) -> Markup:
    """The training loss, or one of its terms, by step; peaks are marked and listed with their sets."""
    line = Line(name, "var(--accent)", _points(run, side, name))
    high = peaks(line.points)
    describe = f"{words} of the {side} side: {_ends([line])}"
    svg = line_chart([line], x_label="step", y_label=words, describe=describe, marked=high)
    binned = len(line.points) > BINS
    suffix = "; mean and range of neighbouring steps." if binned else "."
    sets = {entry["step"]: entry.get("set") or "several sets" for entry in run.curves.get(side, []) if name in entry}
    named = "; ".join(f"{value:.3g} at step {step:,} ({sets[step]})" for step, value in high)
    return page.picture(svg, words[0].upper() + words[1:] + suffix + (f" Peaks: {named}." if named else ""))


def peaks(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The few points that rise most above the median of their neighbours, in order of steps.

    A peak is above that median by more than PEAK times the usual distance, which is the median of all distances. Near
    the ends of the curve the window shrinks but stays symmetric, because a loss falls fastest at its start.
    """
    values = [value for _, value in points]
    reach = [min(AROUND, place, len(values) - 1 - place) for place in range(len(values))]
    above = [values[i] - median(values[i - reach[i] : i + reach[i] + 1]) for i in range(len(values))]
    usual = median(map(abs, above)) if above else 0.0
    far = sorted((i for i in range(len(values)) if above[i] > PEAK * usual), key=above.__getitem__)[-MOST_PEAKS:]
    return [points[i] for i in sorted(far)]


def dev_chart(run: RunRecord, side: str) -> Markup:
    """Dev scores by step, and their mean where there are several sets."""
    entries = run.curves.get(side, [])
    names = list(dict.fromkeys(key for entry in entries for key in entry if DEV_SCORE.fullmatch(key)))
    sets = [name for name in names if name != DEV_MEAN]
    shown = [DEV_MEAN, *sets] if DEV_MEAN in names and len(sets) != 1 else sets
    styles = zip(shown, cycle(DEV_STYLES), strict=False)
    lines = [Line(_dev_name(name), colour, _points(run, side, name), dash) for name, (colour, dash) in styles]
    describe = f"Dev scores of the {side} side by step: {_ends(lines)}"
    svg = line_chart(lines, x_label="step", y_label="score", describe=describe, least_range=LEAST_SCORES)
    return page.picture(svg, "Scores on held-out dev rows. " + show.key(lines))


def _dev_name(name: str) -> str:
    return "mean" if name == DEV_MEAN else name.removeprefix("dev_").removesuffix("_score").replace("_", " ")


def _points(run: RunRecord, side: str, name: str) -> list[tuple[float, float]]:
    entries = run.curves.get(side, [])
    points = [(entry["step"], entry[name]) for entry in entries if isinstance(entry.get(name), int | float)]
    return [point for point in points if name != "angle" or point[1]]  # 0: a batch to which AnglE doesn't apply


def _ends(lines: list[Line]) -> str:
    parts = [f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in lines if line.points]
    return "; ".join(parts)


def merge(run: RunRecord) -> page.Section:
    """How the merge weights were chosen, and the other candidates."""
    found = run.weights
    if not found:
        return page.Section("merge", "Merge", [page.absent("merge")])
    facts = [("method", str(found.get("method", "?")).replace("_", " "))]
    facts += [(f"weight of {name}", f"{weight:.3f}") for name, weight in (found.get("weights") or {}).items()]
    facts += [(f"few-shot loss of {name}", f"{loss:.3f}") for name, loss in (found.get("losses") or {}).items()]
    if found.get("temperature") is not None:
        facts.append(("temperature", show.number(found["temperature"])))
    tried = page.folded(f"All {len(run.search)} candidates", _search(run))
    pictures = page.group("pictures", [_simplex(run)])
    return page.Section("merge", "Merge", [page.facts(facts), pictures, _compared(found), tried])


def _compared(found: dict[str, Any]) -> Markup:
    """The models and the methods of choosing weights, scored on the same dev rows."""
    compared = found.get("compared") or {}
    models = found.get("models") or []
    sides = [side for side in DATA_SIDES if any(side in row for row in compared.values())]
    keys = [*(f"weight_{name}" for name in models), "dev", *sides, "guard_loss", "allowed"]
    rows = []
    for name, row in compared.items():
        marked = name.replace("_", " ") + (TAKEN if name == found.get("method") else "")
        rows.append([marked, *(_candidate(key, row) for key in keys)])
    caption = "Models and weighting methods, scored on the dev sets; * marks the one used"
    return page.table(caption, ["", *map(_column, keys)], rows)


def _search(run: RunRecord) -> Markup:
    """The candidates in search.csv, without scores by set."""
    keys = [key for key in (run.search[0] if run.search else ()) if "/" not in key and key not in BOUNDS]
    rows = [[_candidate(key, row) for key in keys] for row in run.search]
    return page.table("All candidates; merge/search.csv also has scores by set", [_column(key) for key in keys], rows)


def _column(key: str) -> str:
    """Title of a column in the merge tables, which have weights and scores of the same models."""
    if key == "guard_loss":
        return "guard: gain +, loss −"
    if key.startswith("weight_"):
        return f"weight of {key.removeprefix('weight_')}"
    return f"dev {key}" if key in DATA_SIDES else key.replace("_", " ")


def _candidate(key: str, row: Mapping[str, Any]) -> str:
    """A cell of the merge tables, from JSON or CSV; a guard loss is shown as a negative gain."""
    value = _number(row.get(key))
    if key == "guard_loss" and value is not None:
        bounds = [_number(row.get(bound)) for bound in reversed(BOUNDS)]
        interval = " to ".join(signed(0 - bound, 4) for bound in bounds if bound is not None)
        return signed(0 - value, 4) + (f" ({interval})" if interval else "")
    if value is not None:
        return f"{value:.4f}".replace("-", "−")
    words = {"True": "yes", "False": "no"} | ({"": "not guarded"} if key == "allowed" else {})
    text = str(row.get(key) if row.get(key) is not None else "")
    return words.get(text, text.replace("_", " ") or show.DASH)


def _number(value: Any) -> float | None:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _simplex(run: RunRecord) -> Markup:
    """The picture that the merge search drew."""
    if not run.simplex:
        return Markup()
    tried = f"Weights of the {len(run.search)} candidates, coloured by dev score."
    words, data = tried if run.search else "Weights of the merge.", base64.b64encode(run.simplex.encode()).decode()
    image = Markup('<img class="paper" src="data:image/svg+xml;base64,{}" alt="{}">').format(data, words)
    return page.picture(image, words)

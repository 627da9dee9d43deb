"""The page's parts about what came out: scores, differences, the published card's tables and claims."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from evaluation import report_format as show
from evaluation.card_metadata import base_id
from evaluation.card_table import ENCODECHKA, MTEB, SUITE, Rows, mean_of
from evaluation.claims import PUBLISHED_BASE, VERDICTS, Claim, encodechka_score, mteb_score
from evaluation.comparison import Difference
from evaluation.published import Figures, published_figure, published_figures
from evaluation.report_charts import Interval, forest_plot, signed
from evaluation.run_record import MODELS, RunRecord, Score

Table = tuple[str, list[str], list[list[Any]]]
FORESTS = (("merge", "base"), ("merge", "symmetric"), ("merge", "asymmetric"), ("init", "base"))
CLAIM_GROUPS = {
    "dimension": "Size of the model",
    "vocabulary": "Size of the model",
    "parameters": "Size of the model",
    "pairs": "Training data",
    "negatives": "Training data",
    "encodechka": "encodechka",
    "mteb": "Russian MTEB",
    "tasks": "Russian MTEB",
    "usage": "Usage example",
}


def suite_tables(run: RunRecord) -> list[dict[str, Any]]:
    """A table for each suite: a task, its metric and number of items in a row's head, then a column a model."""
    tables = []
    for suite in dict.fromkeys(score.suite for score in run.scores):
        scores = [score for score in run.scores if score.suite == suite]
        models = models_of(scores)
        cells = {(s.task, s.metric, s.model): s for s in scores}
        lines = dict.fromkeys((s.task, s.metric) for s in scores)
        rows = [
            [
                show.row_head(task, metric, f"{_items(cells, task, metric)} items"),
                *(_cell(cells.get((task, metric, model))) for model in models),
            ]
            for task, metric in lines
        ]
        tables.append({"caption": f"Suite {suite}", "columns": ["task", *models], "rows": rows})
    return tables


def models_of(scores: Sequence[Score]) -> list[str]:
    """The models that were scored, the chain's own first."""
    there = list(dict.fromkeys(score.model for score in scores))
    return [*(name for name in MODELS if name in there), *(name for name in there if name not in MODELS)]


def _cell(score: Score | None) -> Any:
    return show.score(score.value, score.low, score.high) if score else show.DASH


def _items(cells: dict[tuple[str, str, str], Score], task: str, metric: str) -> str:
    found = {s.items for (t, m, _), s in cells.items() if (t, m) == (task, metric) and s.items is not None}
    return " / ".join(show.count(items) for items in sorted(found)) or show.DASH


def forests(run: RunRecord) -> list[tuple[str, str]]:
    """Charts of the differences between the models that matter most, on each task's own score."""
    charts = []
    for model, against in FORESTS:
        found = [d for d in run.differences if (d.model, d.against) == (model, against) and d.main and _bounded(d)]
        rows = [Interval(d.task.replace("_", " "), d.difference, d.ci_low, d.ci_high) for d in found]
        words = f"{model} minus {against}"
        listed = "; ".join(f"{row.label} {signed(row.value, 3)}" for row in rows)
        svg = forest_plot(rows, x_label="difference", describe=f"{words}, with 95 % intervals: {listed}")
        charts.append((svg, f"{words.capitalize()}, with 95 % intervals; grey where the interval holds zero."))
    return [chart for chart in charts if chart[0]]


def _bounded(difference: Difference) -> bool:
    return math.isfinite(difference.ci_low) and math.isfinite(difference.ci_high)


COMPARISON_COLUMNS = [
    *("task", "suite", "metric", "model", "against", "difference", "95 % interval", "p", "p, Holm-corrected", "test")
]


def comparison_rows(run: RunRecord) -> list[list[Any]]:
    """comparison.csv in full."""
    rows = []
    for d in run.differences:
        where = [d.task, d.suite, d.metric, d.model, d.against, signed(d.difference, 4), _interval(d)]
        rows.append([*where, show.p_value(d.p_value), show.p_value(d.p_holm), d.test])
    return rows


def _interval(difference: Difference) -> str:
    if not _bounded(difference):
        return show.DASH
    return f"{signed(difference.ci_low, 4)} to {signed(difference.ci_high, 4)}"


@dataclass(frozen=True)
class CardTable:
    """One of the card's score tables: the suite its rows are measured on, and how a model's row is found."""

    caption: str
    claims: str  # the kind of claims that hold the card's figures
    suite: str
    rows: Rows
    score: Callable[[RunRecord, str, str], Score | None]


CARD_TABLES = (
    CardTable("encodechka", "encodechka", "encodechka", ENCODECHKA, encodechka_score),
    CardTable("Russian MTEB, the card's 30 data sets", "mteb", SUITE, MTEB, mteb_score),
)


def card_tables(run: RunRecord, claims: Sequence[Claim]) -> list[Table]:
    """The card's two score tables with our base, parents and merge beside them, and the direction."""
    printed = {claim.key: claim.card for claim in claims}
    return [(table.caption, *_card_table(run, printed, table)) for table in CARD_TABLES]


def _card_table(run: RunRecord, printed: dict[str, str], table: CardTable) -> tuple[list[str], list[list[Any]]]:
    further = [name for name in models_of(run.scores) if name not in MODELS]
    models = ["base", *(name for name in ("symmetric", "asymmetric", "joint") if name in run.stages), "merge", *further]
    own = base_id(run)
    figures = published_figures(own) if own and own.lower() != PUBLISHED_BASE.lower() else {}
    columns = [
        *("row, direction, and whether it holds here", "bge-m3, card", "USER-bge-m3, card"),
        *([f"{own.rpartition('/')[2]}, published"] if own and figures else []),
        *(f"our {name}" for name in models),
    ]
    cells = []
    for row in table.rows:
        before, after = (printed.get(f"{table.claims}/{who}/{row}") for who in ("bge-m3", "USER-bge-m3"))
        ours = {name: table.score(run, name, row) for name in models}
        published = [show.score(_published(figures, table, row))] if figures else []
        head: str | Markup = row
        if before and after:
            judged = _judged(before, after, ours, run.difference("merge", "base", table.suite, row))
            head = show.row_head(row, judged)
        scores = [_cell(score) for score in ours.values()]
        cells.append([head, before or show.DASH, after or show.DASH, *published, *scores])
    return columns, cells


def _published(figures: Figures, table: CardTable, row: str) -> float | None:
    """The published figure of another base; of a mean that nobody published, the mean of its tasks' figures."""

    def score(task: str, metric: str) -> float | None:
        found = published_figure(figures, table.suite, task, metric)
        return found[0] if found else None

    whole = score(row, "")
    return whole if whole is not None else mean_of(table.rows[row], score)


def _judged(before: str, after: str, ours: dict[str, Score | None], difference: Difference | None) -> Markup:
    change, step = float(after) - float(before), 10.0 ** -len(after.partition(".")[2])
    arrow = "rises" if change > 0 else "falls" if change < 0 else "unchanged"
    within = difference is not None and difference.ci_low <= 0 <= difference.ci_high
    base, merge = (score.value if (score := ours[name]) else None for name in ("base", "merge"))
    verdict = show.verdict(direction(change, base, merge, step))
    return Markup("{}: {}{}").format(arrow, verdict, " (within noise)" if within else "")


def direction(change: float, base: float | None, merge: float | None, step: float) -> str:
    """Whether our merge moves from our base as the card's model does from its own.

    Where the card prints the same figure twice, a move of less than `step`, its last printed digit, holds.
    """
    if base is None or merge is None:
        return "not run"
    moved = merge - base
    if change == 0:
        return "holds" if abs(moved) < step else "does not hold"
    return "holds" if moved * change > 0 else "does not hold"


def claim_groups(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Claims under headings, with the verdicts counted; a group that was measured is open."""
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(CLAIM_GROUPS[claim.group], []).append(claim)
    return [
        {"name": name, "rows": _claim_rows(members), "summary": verdict_counts(members), "open": _measured(members)}
        for name, members in groups.items()
    ]


def _claim_rows(claims: Sequence[Claim]) -> list[list[Any]]:
    return [
        [c.claim, show.verdict(c.verdict), _grouped(c.card), _grouped(c.printed), c.tolerance, show.long(c.where)]
        for c in claims
    ]


def _grouped(text: str) -> str:
    return show.count(text) if text.isdigit() else text or show.DASH


def _measured(claims: Sequence[Claim]) -> bool:
    return any(claim.ours is not None for claim in claims)


def verdict_counts(claims: Sequence[Claim]) -> str:
    """The verdicts and how often each occurs, in words."""
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number)

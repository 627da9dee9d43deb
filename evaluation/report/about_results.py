"""The page's sections on results: scores, differences, the published card's tables and claims."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

from markupsafe import Markup

from configs.schema.config import SIDES
from configs.schema.data import DATA_SIDES
from evaluation.published_scores import (
    CARD_TABLES,
    PUBLISHED_MODEL,
    CardTable,
    Figures,
    mean_of,
    published_figure,
    published_figures,
)
from evaluation.report import format as show
from evaluation.report import page
from evaluation.report.charts import Interval, forest_plot, signed
from evaluation.report.claims import VERDICTS, Claim
from evaluation.report.record import MODELS, RunRecord
from evaluation.results import SIZES, Difference, Score, dense

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
MOST_DIFFERENCES = 10_000  # on the page, 2 MB; their number grows with the square of the models
DIFFERENCES = ("task", "suite", "metric", "model", "against", "difference", "95 % interval", "p", "p (Holm)")


def scores(run: RunRecord) -> page.Section:
    """A table per suite, with a row per task and metric and a column per model, and the differences."""
    if not run.scores:
        return page.Section("scores", "Scores", [page.absent("evaluate")])
    words = (
        "Correlations lie between −1 and 1, other scores between 0 and 1. The range under a score is its 95 % interval."
    )
    blocks = [page.text(words)]
    for suite, models, lines in run.suite_tables():
        rows = [
            [show.row_head(task, metric, *[f"{show.count(items)} items"] * (items > 0)), *map(show.score, cells)]
            for task, metric, items, cells in lines
        ]
        blocks.append(page.table(f"Suite {suite}", ["task", *models], rows))
    modes = ways_to_search(run, show.SMALL_BELOW)
    blocks += [page.table(f"Ways to search: {task} of {suite}", *table) for (suite, task), table in modes.items()]
    if run.differences:
        pairs = [*(("merge", other) for other in (run.reference, *DATA_SIDES)), ("init", "base")]
        forests = [forest for pair in pairs for forest in _forests(run, *pair)]
        blocks += [page.heading("Differences between models"), page.group("pictures", forests), _differences(run)]
    return page.Section("scores", "Scores", blocks)


def ways_to_search(run: RunRecord, frame: str) -> dict[tuple[str, str], tuple[list[str], list[list[Any]]]]:
    """Columns, and a row per way to search, by (suite, task) that is scored with more than dense vectors.

    A row has the scores and intervals, formatted by `frame`, the gain over the model's dense vectors in the last
    metric, and the size of a passage's vectors; columns without a figure are left out.
    """
    tables, scores = {}, defaultdict[tuple[str, str], dict[tuple[str, str], Score]](dict)
    for s in run.scores:
        scores[s.suite, s.task][s.model, s.metric] = s
    own = (d for d in run.differences if not dense(d.model) and d.against == d.model.rpartition(".")[0])
    gains = {(d.suite, d.task, d.metric, d.model): d for d in own}
    for suite, task in dict.fromkeys((s.suite, s.task) for s in run.scores if not dense(s.model)):
        found = scores[suite, task]
        metrics = [name for name in dict.fromkeys(metric for _, metric in found) if name not in SIZES]
        last = metrics[-1]
        rows = []
        for name in dict.fromkeys(model for model, _ in found):
            scored = [show.score(found.get((name, metric)), frame) for metric in metrics]
            gain = show.gain(gains.get((suite, task, last, name)))
            rows.append([name, *scored, gain, *(show.amount(found.get((name, size))) for size in SIZES)])
        columns = ["model and mode", *metrics, f"{last} − dense", *SIZES]
        filled = [any(cell != show.DASH for cell in cells) for cells in zip(*rows, strict=True)]
        tables[suite, task] = list(compress(columns, filled)), [list(compress(row, filled)) for row in rows]
    return tables


def _forests(run: RunRecord, model: str, against: str) -> Iterator[Markup]:
    """The differences between two models in each task's main score, a picture per suite."""
    found = [d for d in run.main_differences(model, against) if show.has_interval(d)]
    for suite in dict.fromkeys(d.suite for d in found):
        own = [d for d in found if d.suite == suite]
        rows = [Interval(d.task.replace("_", " "), d.difference, d.ci_low, d.ci_high) for d in own]
        words, intervals = f"{model} minus {against} on {suite}", "with 95 % intervals"
        listed = "; ".join(f"{row.label} {signed(row.value, 3)}" for row in rows)
        svg = forest_plot(rows, x_label="difference", describe=f"{words}, {intervals}: {listed}")
        caption = f"{words[0].upper()}{words[1:]}, {intervals}; grey where the interval contains zero."
        yield page.picture(svg, caption)


def _differences(run: RunRecord) -> Markup:
    """comparison.csv without sizes and the names of the tests, to fit the page's width; if long, only its main part."""
    found = [d for d in run.differences if d.metric not in SIZES]
    summary = f"All {len(found)} paired differences"
    if len(found) > MOST_DIFFERENCES:
        summary = f"Paired differences from merge or {run.reference}; comparison.csv has all {len(found)}"
        found = [d for d in found if {"merge", run.reference} & {d.model, d.against}]
    rows = []
    for d in found:
        other, _, form = d.against.partition(" on ")  # a form of vectors is compared with the full ones
        against = f"{other}, {form.rpartition('-')[2]}" if form else other
        where = [d.task, d.suite, d.metric, d.model, against, signed(d.difference, 4), show.interval(d, 4)]
        rows.append([*where, show.p_value(d.p_value), show.p_value(d.p_holm)])
    caption = "Paired differences with 95 % intervals and corrected p-values"
    return page.folded(summary, page.table(caption, DIFFERENCES, rows))


def published_card(run: RunRecord, claims: Sequence[Claim]) -> page.Section:
    """The card's two score tables next to our base, sides and merge, and the direction of change."""
    printed = {claim.key: claim.card for claim in claims}
    address = Markup('<a href="https://huggingface.co/{0}">{0}</a>').format(PUBLISHED_MODEL)
    words = (
        Markup("The two score tables of {}, row by row, next to this run. ").format(address)
        + f"A direction holds when our merge moves from our {run.reference} as the card's model does from its base; "
        "it is within noise where the 95 % interval of our difference contains zero."
    )
    inferred = (
        "The card names neither its 30 data sets nor their metrics: both are inferred, and for STS and retrieval two "
        "readings are shown. Three of the sets account for two thirds of the card's gain, so the average is also "
        "shown without them."
    )
    tables = [_card_table(run, printed, kind, table) for kind, table in CARD_TABLES.items()]
    return page.Section("card", "The published card", [page.text(words), page.text(inferred), *tables])


def _card_table(run: RunRecord, printed: dict[str, str], kind: str, table: CardTable) -> Markup:
    further = [name for name in run.models() if name not in MODELS]
    models = [run.reference, *(name for name in SIDES if name in run.stages), "merge", *further]
    own = run.base_id
    figures = published_figures(own) if own and not run.starts_from_published_base else {}
    columns = [
        *("row, direction, and whether it holds here", "bge-m3, card", "USER-bge-m3, card"),
        *([f"{own.rpartition('/')[2]}, published"] if own and figures else []),
        *(f"our {name}" for name in models),
    ]
    cells = []
    for row in table.rows:
        before, after = (printed.get(f"{kind}/{who}/{row}") for who in ("bge-m3", "USER-bge-m3"))
        ours = {name: run.on_card(name, table, row) for name in models}
        published = [_published(figures, table, row)] if figures else []
        head: str | Markup = row
        if before and after:
            found = run.difference("merge", run.reference, table.suite, row)
            judged = _judged(before, after, ours[run.reference], ours["merge"], found)
            head = show.row_head(row, judged)
        cells.append([head, before or show.DASH, after or show.DASH, *published, *map(show.score, ours.values())])
    return page.table(table.caption, columns, cells)


def _published(figures: Figures, table: CardTable, row: str) -> str:
    """Another base's published figure; for an unpublished mean, the mean of its tasks' figures."""

    def score(task: str, metric: str) -> float | None:
        found = published_figure(figures, table.suite, task, metric)
        return found[0] if found else None

    whole = score(row, "")
    value = whole if whole is not None else mean_of(table.rows[row], score)
    return show.DASH if value is None else f"{value:.3f}"


def _judged(
    before: str, after: str, reference: Score | None, merged: Score | None, difference: Difference | None
) -> Markup:
    change, step = float(after) - float(before), 10.0 ** -len(after.partition(".")[2])
    arrow = "rises" if change > 0 else "falls" if change < 0 else "unchanged"
    within = difference is not None and difference.ci_low <= 0 <= difference.ci_high
    base, merge = (found.score if found else None for found in (reference, merged))
    verdict = show.verdict(direction(change, base, merge, step))
    return Markup("{}: {}{}").format(arrow, verdict, " (within noise)" if within else "")


def direction(change: float, base: float | None, merge: float | None, step: float) -> str:
    """Whether our merge moves from our base in the same direction as the card's model from its own.

    Where the card prints the same figure twice, a change below `step`, one unit of its last printed digit, holds.
    """
    if base is None or merge is None:
        return "not run"
    holds = (merge - base) * change > 0 if change else abs(merge - base) < step
    return "holds" if holds else "does not hold"


def claims_by_group(claims: Sequence[Claim]) -> page.Section:
    """Claims by group, with the verdicts counted; groups with a measured claim are unfolded."""
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(CLAIM_GROUPS[claim.group], []).append(claim)
    blocks = [page.text(f"Of the card's {len(claims)} figures: {_verdicts(claims)}.")]
    columns = ["claim", "verdict", "card", "ours", "tolerance", "where"]
    for name, members in groups.items():
        rows = [
            [c.claim, show.verdict(c.verdict), _grouped(c.card), _grouped(c.printed), c.tolerance, show.long(c.where)]
            for c in members
        ]
        measured = any(claim.ours is not None for claim in members)
        table = page.table(f"Claims: {name}", columns, rows)
        blocks.append(page.folded(f"{name}: {_verdicts(members)}", table, measured))
    return page.Section("claims", "Claims", blocks)


def _grouped(text: str) -> str:
    return show.count(text) if text.isdigit() else text or show.DASH


def _verdicts(claims: Sequence[Claim]) -> str:
    """How often each verdict occurs, in words."""
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS}
    return ", ".join(f"{number} {verdict}" for verdict, number in counts.items() if number)

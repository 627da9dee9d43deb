"""Formatting of figures and small marks on page and card; every result is safe HTML or plain text."""

import math
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from evaluation.report.charts import Line, signed
from evaluation.results import ZERO_SHARE, Difference, Score

DASH = "–"
SMALL_BELOW = Markup("{}<small>{} to {}</small>")
FIGURE = re.compile(rf"(<|&lt;)? *[+−-]?\d[\d,.]*($|[ e<%/])|{DASH}$")  # a cell with a figure, or none


def count(value: Any) -> str:
    """A whole number with thousands separators; a dash if there is none."""
    return DASH if value is None or value == "" else f"{round(float(value)):,}"


def share(part: float | None, whole: float | None = 1.0) -> str:
    """A share as a percentage with one decimal."""
    return DASH if part is None or not whole else f"{100 * part / whole:.1f} %"


def number(value: Any) -> str:
    """A measured number: integers with thousands separators, others with four significant digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value or DASH)
    if not math.isfinite(value):
        return DASH
    whole = isinstance(value, int) or (value.is_integer() and abs(value) >= 1)
    return f"{int(value):,}" if whole else f"{value:.4g}".replace("-", "−")


def duration(seconds: float) -> str:
    """12.3 s, 4 min 05 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(amount: float | None) -> str:
    """Bytes in MB or GB (powers of ten)."""
    if amount is None:
        return DASH
    return f"{amount / 1e9:.2f} GB" if amount >= 1e9 else f"{amount / 1e6:.1f} MB"


def p_value(value: float) -> str:
    if math.isnan(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def score(found: Score | None, frame: str = SMALL_BELOW) -> str:
    """A score with its interval, formatted by `frame`; a dash if there is none."""
    if found is None or not math.isfinite(found.score):
        return DASH
    value, low, high = (f"{number:.3f}".replace("-", "−") for number in (found.score, found.ci_low, found.ci_high))
    return frame.format(value, low, high) if has_interval(found) else value


def change(before: Score, after: Score, found: Difference | None) -> str:
    """Two scores, with the interval of their difference below them."""
    words = f"{before.score:.3f} → {after.score:.3f}"
    if found is None:
        return words
    return Markup("{}<small>{}, 95 % interval {}</small>").format(
        words, signed(after.score - before.score, 3), interval(found)
    )


def interval(found: Difference, digits: int = 3) -> str:
    """The bounds of a difference; a dash if it has none."""
    return f"{signed(found.ci_low, digits)} to {signed(found.ci_high, digits)}" if has_interval(found) else DASH


def has_interval(found: Score | Difference) -> bool:
    """Whether it has a confidence interval, that is, its items are a sample."""
    return math.isfinite(found.ci_low + found.ci_high)


def gain(found: Difference | None) -> str:
    """A difference with its interval."""
    return DASH if found is None else f"{signed(found.difference, 3)} ({interval(found)})"


def amount(found: Score | None) -> str:
    """A metric that is not a score: a share, or a count of ids or bytes."""
    if found is None:
        return DASH
    return f"{found.score:.3f}" if found.metric == ZERO_SHARE else count(found.score)


def row_head(name: str, *remarks: str) -> Markup:
    """A row's name with remarks below it."""
    return Markup("{}<small>{}</small>").format(name, Markup(", ").join(remarks))


def fingerprint(value: str | None) -> Markup | str:
    """The first digits of a fingerprint, with the whole as a tooltip."""
    return Markup('<code title="{}">{}</code>').format(value, value[:10]) if value else DASH


def bar(text: str, part: float, whole: float) -> Markup:
    """A figure above a bar that shows its share."""
    width = 100 * part / whole if whole else 0
    return Markup('{}<span class="bar" style="width:{}%"></span>').format(text, f"{width:.1f}")


def long(text: str) -> Markup | str:
    """Text that may wrap inside a table."""
    return Markup('<span class="long">{}</span>').format(text) if text else DASH


def key(lines: Sequence[Line]) -> Markup:
    """A chart's legend: each line's name after its colour and dash."""
    mark = '<span class="key" style="--line:{} {}">{}</span>'
    return Markup("").join(Markup(mark).format(line.dash, line.colour, line.name) for line in lines)


def verdict(word: str) -> Markup:
    return Markup('<span class="verdict {}">{}</span>').format(word.replace(" ", "-"), word)

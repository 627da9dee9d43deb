"""Hand-written inline SVG charts for the report page; CSS variables give them light and dark colours.

matplotlib, which draws the pictures of merge and study, writes fixed colours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import fmean

from markupsafe import Markup

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 36
SIDE = 28  # left and right margins of a forest plot
ROW = 34  # height of a forest plot's row
LABEL = 32  # most characters of its label, which would otherwise overlap its figures
LETTER = 7  # width of a digit at the charts' 12 px
BINS = 40  # most points of a line; longer series are averaged
DASHES = {"solid": "none", "dashed": "7 4", "dotted": "2 3"}  # CSS border style -> stroke-dasharray


@dataclass(frozen=True)
class Line:
    """A named series of (x, y) points; `colour` is a CSS colour or variable of the page; `dash` is from DASHES."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]
    dash: str = "solid"


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval, drawn in its own row."""

    label: str
    value: float
    low: float
    high: float


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    describe: str,
    least_range: float = 0.0,
    marked: Sequence[tuple[float, float]] = (),
    powers: bool = False,
) -> Markup:
    """Lines over a shared x axis; the range of each bin of a long series is drawn as a band behind it.

    The y axis spans at least `least_range`, so that noise doesn't look like a change. `marked` points of the lines
    get a ring. With `powers`, x is a base-2 logarithm and the axis is labelled with the powers.
    """
    binned = [_bins([point for point in line.points if math.isfinite(point[1])]) for line in lines]
    flat = [point for bins in binned for point in bins]
    if not flat:
        return Markup()
    low, high = min(p.low for p in flat), max(p.high for p in flat)
    missing = max(0.0, least_range - (high - low)) / 2
    y_ticks = ticks(low - missing, high + missing, 5)
    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    y_labels = [f"{mark:.{digits}f}" for mark in y_ticks]
    left = max(LEFT, 22 + LETTER * max(map(len, y_labels)))
    x_scale = _Scale(min(p.x for p in flat), max(p.x for p in flat), left, WIDTH - RIGHT)
    y_scale = _Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP)
    parts = list(_grid(x_scale, y_scale, dict(zip(y_ticks, y_labels, strict=True)), x_label, y_label, powers))
    for line, bins in zip(lines, binned, strict=True):
        parts += _series(line, bins, x_scale, y_scale)
    ring = 'r="4" fill="none" stroke="var(--ink)"'
    parts += [f'<circle cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" {ring}/>' for x, y in marked]
    return _svg(parts, HEIGHT, describe)


def _series(line: Line, bins: Sequence["_Bin"], x_scale: "_Scale", y_scale: "_Scale") -> Iterable[str]:
    """One line, with a band if its bins have a range, and with its points if they are few."""
    upper = [(x_scale(p.x), y_scale(p.high)) for p in bins]
    lower = [(x_scale(p.x), y_scale(p.low)) for p in reversed(bins)]
    middle = [(x_scale(p.x), y_scale(p.mean)) for p in bins]
    if any(p.high > p.low for p in bins):
        yield f'<polygon points="{_path(upper + lower)}" fill="{line.colour}" opacity=".18"/>'
    style = f'fill="none" stroke="{line.colour}" stroke-width="1.8" stroke-linejoin="round"'
    style += f' stroke-dasharray="{DASHES[line.dash]}"'
    yield f'<polyline points="{_path(middle)}" {style}/>'
    if len(bins) < 12:
        yield from (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>' for x, y in middle)


def forest_plot(rows: Sequence[Interval], *, x_label: str, describe: str) -> Markup:
    """Differences with their intervals around a line at zero, one row each."""
    if not rows:
        return Markup()
    marks = ticks(min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows)), 4)
    height = TOP + ROW * len(rows) + BOTTOM
    scale = _Scale(marks[0], marks[-1], SIDE, WIDTH - SIDE)
    bottom = height - BOTTOM
    parts = []
    for mark in marks:
        style = "axis" if abs(mark) < 1e-12 else "grid"
        parts.append(f'<line class="{style}" x1="{scale(mark):.1f}" x2="{scale(mark):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{scale(mark):.1f}" y="{bottom + 15}" text-anchor="middle">{signed(mark)}</text>')
    for position, row in enumerate(rows):
        parts += _interval(row, scale, TOP + ROW * position)
    parts.append(f'<text x="{WIDTH / 2}" y="{height - 4}" text-anchor="middle">{escape(x_label)}</text>')
    return _svg(parts, height, describe)


def _interval(row: Interval, scale: "_Scale", top: float) -> Iterable[str]:
    certain = row.low > 0 or row.high < 0
    colour = "var(--muted)" if not certain else "var(--good)" if row.value > 0 else "var(--bad)"
    line = top + ROW * 0.74
    label = row.label if len(row.label) <= LABEL else f"{row.label[: LABEL - 1]}…"
    yield f'<text class="label" x="{SIDE}" y="{top + ROW * 0.4:.1f}">{escape(label)}</text>'
    note = f"{signed(row.value, 3)} [{signed(row.low, 3)}, {signed(row.high, 3)}]"
    yield f'<text x="{WIDTH - SIDE}" y="{top + ROW * 0.4:.1f}" text-anchor="end">{escape(note)}</text>'
    ends = f'x1="{scale(row.low):.1f}" x2="{scale(row.high):.1f}"'
    yield f'<line {ends} y1="{line:.1f}" y2="{line:.1f}" stroke="{colour}" stroke-width="2"/>'
    yield f'<circle cx="{scale(row.value):.1f}" cy="{line:.1f}" r="3.6" fill="{colour}"/>'


def signed(value: float, digits: int | None = None) -> str:
    """A number with its sign, a typographic minus, and `digits` decimals, or as few as it needs."""
    text = f"{value:+.{digits}f}" if digits is not None else f"{value:+.6g}"
    return "0" if float(text) == 0 and digits is None else text.replace("-", "−")


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers from below `low` to above `high`, about `count` of them, in steps of 1, 2 or 5 times 10^n."""
    if not high > low:
        low, high = low - max(abs(low), 1.0) * 0.05, high + max(abs(high), 1.0) * 0.05
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


@dataclass(frozen=True)
class _Bin:
    x: float
    mean: float
    low: float
    high: float


def _bins(points: Sequence[tuple[float, float]]) -> list[_Bin]:
    size = max(1, math.ceil(len(points) / BINS))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [_Bin(fmean(xs), fmean(ys), min(ys), max(ys)) for xs, ys in (zip(*group, strict=True) for group in groups)]


@dataclass(frozen=True)
class _Scale:
    """A linear map from data to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def _grid(
    x: _Scale, y: _Scale, y_ticks: Mapping[float, str], x_label: str, y_label: str, powers: bool
) -> Iterable[str]:
    left, right = x.start, x.end
    for mark, label in y_ticks.items():
        yield f'<line class="grid" x1="{left:g}" x2="{right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>'
        yield f'<text x="{left - 6:g}" y="{y(mark) + 4:.1f}" text-anchor="end">{label}</text>'
    bottom = HEIGHT - BOTTOM
    yield f'<line class="axis" x1="{left:g}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    for mark in ticks(x.low, x.high, 5):
        if x.low <= mark <= x.high:
            label = f"{2**mark if powers else mark:,.6g}"
            yield f'<text x="{x(mark):.1f}" y="{bottom + 15}" text-anchor="middle">{label}</text>'
    yield f'<text x="{(left + right) / 2:g}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    turned = f"translate(11 {(TOP + bottom) / 2}) rotate(-90)"
    yield f'<text transform="{turned}" text-anchor="middle">{escape(y_label)}</text>'


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _svg(parts: Iterable[str], height: float, describe: str) -> Markup:
    label = escape(describe, quote=True)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">'
        f"<title>{label}</title>{''.join(parts)}</svg>"
    )

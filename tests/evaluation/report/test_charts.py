"""Charts drawn by hand: the positions of points and ticks."""

import re
from xml.etree import ElementTree

import pytest

from evaluation.report.charts import BINS, Interval, Line, forest_plot, line_chart, signed, ticks


def test_ticks_are_round_and_hold_the_data() -> None:
    assert ticks(0.0, 1.0, 5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-0.031, 0.117, 4) == pytest.approx([-0.05, 0, 0.05, 0.1, 0.15])
    assert ticks(3.0, 3.0, 5)[0] < 3 < ticks(3.0, 3.0, 5)[-1]


def test_signs_are_typographic() -> None:
    assert [signed(0.04), signed(-0.04), signed(0.0), signed(-0.0004, 3)] == ["+0.04", "−0.04", "0", "−0.000"]


def polyline(chart: str) -> list[tuple[float, float]]:
    points = re.search(r'<polyline points="([^"]+)"', chart)
    assert points
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.group(1).split())]


def test_a_falling_line_falls_from_left_to_right() -> None:
    chart = line_chart([Line("loss", "red", [(1, 2.0), (2, 1.0), (3, 0.5)])], x_label="s", y_label="l", describe="d")
    points = polyline(chart)
    assert points == sorted(points) and [y for _, y in points] == sorted(y for _, y in points)  # y grows downwards
    assert points[0][0] == 56.0 and points[-1][0] == 408.0


def label_ends_and_axis(chart: str) -> tuple[float, float]:
    """Where the y axis's labels end, and how far to the left the longest of them reaches."""
    labels = re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]+)<', chart)
    return float(labels[0][0]), float(labels[0][0]) - 7 * max(len(label) for _, label in labels)


def test_long_labels_stay_clear_of_the_axis_s_name() -> None:
    line = Line("score", "red", [(1, 0.790427), (2, 0.790465)])
    chart = line_chart([line], x_label="s", y_label="score", describe="d")
    end, start = label_ends_and_axis(chart)
    assert start >= 16 and polyline(chart)[0][0] == end + 6


def test_a_change_of_nothing_is_drawn_flat() -> None:
    line = Line("score", "red", [(1, 0.790427), (2, 0.790465)])
    points = polyline(line_chart([line], x_label="s", y_label="y", describe="d", least_range=0.02))
    assert abs(points[0][1] - points[1][1]) < 1


def test_a_long_series_is_binned_with_its_range_drawn_behind_it() -> None:
    series = [(float(step), float(step % 2)) for step in range(1000)]
    chart = line_chart([Line("loss", "red", series)], x_label="s", y_label="l", describe="d")
    assert len(polyline(chart)) <= BINS and "<polygon" in chart


def test_values_that_are_not_numbers_are_left_out() -> None:
    chart = line_chart(
        [Line("x", "red", [(1, 1.0), (2, float("nan")), (3, 2.0)])], x_label="", y_label="", describe="d"
    )
    assert len(polyline(chart)) == 2
    assert line_chart([Line("x", "red", [(1, float("nan"))])], x_label="", y_label="", describe="d") == ""


def test_an_interval_that_contains_zero_is_grey() -> None:
    rows = [
        Interval("better", 0.1, 0.05, 0.15),
        Interval("worse", -0.1, -0.2, -0.01),
        Interval("alike", 0.0, -0.1, 0.1),
    ]
    chart = forest_plot(rows, x_label="difference", describe="d")
    colours = re.findall(r'<circle[^>]*fill="var\(--(\w+)\)"', chart)
    assert colours == ["good", "bad", "muted"]


def test_a_long_label_ends_before_its_figures() -> None:
    name = "Average without LanguageClassification, XNLI, XNLIV2"
    chart = forest_plot([Interval(name, 0.1, 0.0, 0.2)], x_label="x", describe="d")
    assert ">Average without LanguageClassif…<" in chart


def test_charts_are_well_formed_and_escape_names() -> None:
    chart = forest_plot([Interval("a < b & c", 0.1, 0.0, 0.2)], x_label="x", describe='a "title" <here>')
    root = ElementTree.fromstring(chart)
    assert root.attrib["aria-label"] == 'a "title" <here>'
    assert "a < b & c" in "".join(root.itertext())

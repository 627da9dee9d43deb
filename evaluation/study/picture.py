"""The study in one picture: what each arm gains on one suite's mean, and how its retrieval changes."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from evaluation.results import MEAN
from evaluation.study.comparison import REFERENCES, RETRIEVAL_METRIC, ArmScore

LINE, LABEL = 9, 110  # points: height and maximum width of an arm's name


def draw_differences(path: Path, rows: Sequence[ArmScore]) -> None:
    """Write an SVG: a point per arm, at its differences from the base; bars are their intervals.

    x is the first suite's mean over non-retrieval tasks; y is the retrieval set where the arm is worst, as a gain on
    one doesn't make up for a loss on another. Draws nothing unless the rows have both.
    """
    against = [row for row in rows if row.against == REFERENCES[0]]
    means = {row.arm: row for row in reversed(against) if row.metric == MEAN}
    worst = {row.arm: row for row in sorted(against, key=lambda row: -row.score) if row.metric == RETRIEVAL_METRIC}
    if not (arms := [arm for arm in means if arm in worst]):
        return
    matplotlib.rcParams["svg.hashsalt"] = "study"  # the same picture has the same bytes
    axes = (figure := Figure(figsize=(7.5, 5.5), layout="constrained")).subplots()
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.axvline(0, color="0.7", linewidth=0.8)
    colours = {}
    for arm in sorted(arms):
        x, y = means[arm], worst[arm]
        across, up = [[x.score - x.ci_low], [x.ci_high - x.score]], [[y.score - y.ci_low], [y.ci_high - y.score]]
        point = axes.errorbar(x.score, y.score, xerr=across, yerr=up, fmt="o", markersize=4, linewidth=0.7)
        colours[arm] = point[0].get_color()
    axes.margins(x=0.15)
    figure.draw_without_rendering()  # fixes the scales
    taken: list[tuple[float, float]] = []
    for arm in sorted(arms):
        place = means[arm].score, worst[arm].score
        across, up = axes.transData.transform(place) * 72 / figure.dpi
        near = [y for x, y in taken if abs(across - x) < LABEL]  # names that this one must not overlap
        rise = next(rise for rise in count(4, LINE) if all(abs(up + rise - y) >= LINE for y in near))
        taken.append((across, up + rise))
        name, style = arm.replace("_", " "), {"fontsize": 8, "color": colours[arm]}
        axes.annotate(name, place, textcoords="offset points", xytext=(5, rise), **style)
    axes.set_xlabel(f"{means[arms[0]].suite}, {means[arms[0]].task}: difference from the base")
    axes.set_ylabel("nDCG@10 of the held-out set that loses most: difference from the base")
    figure.savefig(path, format="svg", metadata={"Date": None})

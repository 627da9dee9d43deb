"""The plot of a search: every candidate in the plane of the weights, coloured by its dev score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from merging.search import Candidate

MARKERS = {"uniform": "s", "lm_cocktail": "D", "fixed": "P", "search": "*", "extrapolated": "X"}
RING: dict[str, Any] = {"facecolors": "none", "edgecolors": "crimson", "linewidths": 1.4, "s": 220, "zorder": 3}


def draw_simplex(
    target: Path, models: Sequence[str], candidates: Sequence[Candidate], compared: Mapping[str, Candidate]
) -> None:
    """Write an SVG: the weights of the first two models after the base as axes, dev score as colour.

    A candidate that the guard rejects is drawn as a cross. With one model after the base, the dev score is the
    vertical axis instead.
    """
    matplotlib.rcParams["svg.hashsalt"] = "simplex"  # makes the bytes reproducible
    blends = [candidate for candidate in candidates if candidate.weights is not None]
    axes = (figure := Figure(figsize=(5.6, 4.6), layout="constrained")).subplots()
    names = list(models[1:3])
    scores = [candidate.dev.score for candidate in blends]
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": min(scores), "vmax": max(scores), "s": 70, "zorder": 2}
    for marker, label, rejected in (("o", "candidate", False), ("x", "rejected by the guard", True)):
        if shown := [candidate for candidate in blends if (candidate.allowed is False) == rejected]:
            xs, ys = zip(*(_place(candidate, names) for candidate in shown), strict=True)
            dots = axes.scatter(xs, ys, c=[one.dev.score for one in shown], marker=marker, label=label, **scale)
    figure.colorbar(dots, ax=axes, label="dev score")
    for name, candidate in compared.items():
        if name not in models and candidate.weights is not None:
            x, y = _place(candidate, names)
            axes.scatter([x], [y], marker=MARKERS.get(name, "o"), label=name.replace("_", " "), **RING)
    if len(names) == 2:
        axes.plot([0, 1, 0, 0], [0, 0, 1, 0], color="0.6", linewidth=1, zorder=1)
        axes.set_aspect("equal")
    axes.set_xlabel(f"weight of {names[0]}")
    axes.set_ylabel(f"weight of {names[1]}" if len(names) == 2 else "dev score")
    axes.set_title(f"The rest up to 1 is {models[0]}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, markerscale=0.6)
    figure.savefig(target, format="svg", metadata={"Date": None})


def _place(candidate: Candidate, names: Sequence[str]) -> tuple[float, float]:
    assert candidate.weights is not None
    first = candidate.weights[names[0]]
    return (first, candidate.weights[names[1]]) if len(names) == 2 else (first, candidate.dev.score)

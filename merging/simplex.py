"""The picture of a search: every candidate in the plane of the weights, coloured by its dev score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from merging.search import Candidate

MARKERS = {"uniform": "s", "lm_cocktail": "D", "fixed": "P", "search": "*", "extrapolated": "X"}


def draw_simplex(
    target: Path, models: Sequence[str], candidates: Sequence[Candidate], compared: Mapping[str, Candidate]
) -> None:
    """Write an SVG: the weights of the first two models after the base as axes, dev score as colour.

    A candidate that the guard rejects is drawn as a cross. With one model after the base, the dev score is the
    vertical axis instead.
    """
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "simplex"  # the same picture gives the same bytes
    blends = [candidate for candidate in candidates if candidate.weights is not None]
    figure, axes = pyplot.subplots(figsize=(5.6, 4.6), layout="constrained")
    names = list(models[1:3])
    places = [_place(candidate, names) for candidate in blends]
    scores = [candidate.dev for candidate in blends]
    scale: dict[str, Any] = {"cmap": "viridis", "vmin": min(scores), "vmax": max(scores)}
    for marker, rejected in (("o", False), ("x", True)):
        shown = [number for number, candidate in enumerate(blends) if (candidate.allowed is False) == rejected]
        if shown:
            xs, ys = zip(*(places[number] for number in shown), strict=True)
            label = "rejected by the guard" if rejected else "candidate"
            dots = axes.scatter(
                xs, ys, c=[scores[n] for n in shown], marker=marker, s=70, label=label, zorder=2, **scale
            )
    figure.colorbar(dots, ax=axes, label="dev score")
    for name, candidate in compared.items():
        if name not in models and candidate.weights is not None:
            x, y = _place(candidate, names)
            style: dict[str, Any] = {"facecolors": "none", "edgecolors": "crimson", "linewidths": 1.4}
            axes.scatter(
                [x], [y], marker=MARKERS.get(name, "o"), s=220, label=name.replace("_", " "), zorder=3, **style
            )
    if len(names) == 2:
        axes.plot([0, 1, 0, 0], [0, 0, 1, 0], color="0.6", linewidth=1, zorder=1)
        axes.set_aspect("equal")
    axes.set_xlabel(f"weight of {names[0]}")
    axes.set_ylabel(f"weight of {names[1]}" if len(names) == 2 else "dev score")
    axes.set_title(f"The rest up to 1 is {models[0]}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, markerscale=0.6)
    figure.savefig(target, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _place(candidate: Candidate, names: Sequence[str]) -> tuple[float, float]:
    assert candidate.weights is not None
    first = candidate.weights[names[0]]
    return (first, candidate.weights[names[1]]) if len(names) == 2 else (first, candidate.dev)

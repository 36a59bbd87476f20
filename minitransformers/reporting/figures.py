"""Figures that are the same everywhere, and read well on light and dark pages."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy import ndarray as Array

# At least 3 : 1 in contrast with white and with the dark page's near-black; told apart by the colour-blind in this order.
COLOURS = ("#2f7ebf", "#d0691f", "#2e9171", "#a566b8", "#c94f5d", "#808080", "#8f8020", "#1d93a8")

_STYLE = {
    "svg.fonttype": "none",              # text stays text
    "svg.hashsalt": "minitransformers",  # ids that are the same in every run
    # Black is what the page replaces by its text's colour.
    "text.color": "#000000", "axes.labelcolor": "#000000", "axes.edgecolor": "#000000", "axes.titlecolor": "#000000",
    "xtick.color": "#000000", "ytick.color": "#000000", "grid.color": "#000000", "legend.labelcolor": "#000000",
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "legend.frameon": False,
    "font.size": 10.0, "axes.titlesize": 10.0, "axes.labelsize": 10.0, "legend.fontsize": 9.0,
    "xtick.labelsize": 9.0, "ytick.labelsize": 9.0, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.12, "grid.linewidth": 0.8,
    "lines.linewidth": 1.8, "lines.markersize": 4.5, "image.cmap": "viridis",
}  # fmt: skip


@contextmanager
def drawing(*, size: tuple[float, float] = (6, 3.2), **subplots: Any) -> Iterator[tuple[Any, Any, list[bytes]]]:
    """A figure, its axes, and a list that holds its SVG afterwards; a notebook shows it besides.

    size is in inches; further settings are those of matplotlib's ``Figure.subplots`` (nrows, ncols, sharex, ...).
    """
    try:
        import matplotlib
        from cycler import cycler
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("minitransformers: figures need matplotlib: pip install 'minitransformers[chapters]'") from None
    # No pyplot: no window is opened. Whatever matplotlibrc says, the figure is the same everywhere.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        style: Any = {**_STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
        matplotlib.rcParams.update(style)
        fig = Figure(figsize=size, layout="constrained")
        made: list[bytes] = []
        yield fig, fig.subplots(**subplots), made
        buffer = io.BytesIO()
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        made.append(buffer.getvalue())


def show_in_notebook(svg: bytes) -> None:
    """Display an SVG where there is a notebook to display it in."""
    if "IPython" in sys.modules:
        from IPython.display import SVG, display

        display(SVG(data=svg))


def lines(ax: Any, curves: Mapping[str, Mapping[Any, Array]], *, marker: str = "o", **settings: Any) -> None:
    """A line a curve through the means over seeds, and a band from the least to the largest: {curve: {x: array over seeds}}.

    A single point is a star. Where colours come again, lines are dashed. settings are those of ``Axes.set`` (xlabel, xscale, ylim, ...).
    """
    for i, (name, points) in enumerate(curves.items()):
        xs, ys = list(points), np.array([np.atleast_1d(y) for y in points.values()])
        lone, style = len(xs) == 1, f"{marker}-" if i < len(COLOURS) else "s--"
        (line,) = ax.plot(xs, ys.mean(1), "*" if lone else style, markersize=9 if lone else 4.5, label=name)
        ax.fill_between(xs, ys.min(1), ys.max(1), color=line.get_color(), alpha=0.15, linewidth=0)
    ax.set(**settings)


def by_pairs(ax: Any, curves: Mapping[str, Mapping[Any, Array]], pairs: Sequence[int], **settings: Any) -> None:
    """Shares of right answers against how many pairs a text has; dashed: what naming any value of the text reaches."""
    lines(ax, curves)
    ax.plot(pairs, [1 / number for number in pairs], "--", color="#808080", label="any value of the text")
    ax.set(**{"xlabel": "pairs", "ylabel": "right", "ylim": (0, 1.05), "xticks": pairs, **settings})


def dots(ax: Any, rows: Mapping[str, Array], *, at: float, xlabel: str) -> None:
    """A row for each name, the first on top, with a point a seed: {name: array over seeds}. Dotted: what is reached without learning."""
    for row, (_, values) in enumerate(reversed(rows.items())):
        ax.plot(np.atleast_1d(values), [row] * np.size(values), "o", alpha=0.8)
    ax.axvline(at, linestyle=":", color="#808080")
    ax.set(yticks=range(len(rows)), xlabel=xlabel)
    ax.set_yticklabels(list(rows)[::-1])


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names of which no other is at most as large, by the first number, and less by the second."""
    return [name for name, own in points.items() if not any(other[0] <= own[0] and other[1] < own[1] for other in points.values())]


def named_points(ax: Any, points: Mapping[str, tuple[float, float]], **settings: Any) -> None:
    """A point for each name, and a line along the front of those that nothing beats; names stand where there is room, those of the front first."""
    best = front(points)
    for name, (x, y) in points.items():
        ax.plot(x, y, "o" if name in best else "x", color="C0" if name in best else "C1")
    ax.plot(*zip(*sorted(points[name] for name in best), strict=True), color="C0", linewidth=1)
    ax.set(**settings)
    taken: list[Any] = []
    for name in sorted(points, key=lambda name: name not in best):
        place = ax.transAxes.inverted().transform(ax.transData.transform(points[name]))
        if all(abs(place[0] - x) > 0.22 or abs(place[1] - y) > 0.03 for x, y in taken):
            ax.annotate(name, points[name], textcoords="offset points", xytext=(4, 3), fontsize=6)
            taken.append(place)


def level(ax: Any, height: float, name: str) -> None:
    """A dotted line across, with its name above its right end: what guessing reaches, or nothing can beat. Draw it last."""
    ax.axhline(height, linestyle=":", color="#808080")
    ax.annotate(name, (1, height), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points", ha="right")


def ticks_at(ax: Any, places: list[Any]) -> None:
    """Name just these places on the horizontal axis, as they are on a logarithmic one."""
    ax.set_xticks(places, [f"{place:,}" for place in places])
    ax.minorticks_off()

"""What all pictures share: colours that colour-blind readers can tell apart, and axes of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from jaxmem.kv import AUDIO, SUMMARY, TEXT, VISION
from jaxmem.report.numbers import clock

# Okabe and Ito 2008.
KIND_COLOURS: Mapping[int, str] = {
    VISION: "#0072B2",
    AUDIO: "#D55E00",
    TEXT: "#009E73",
    SUMMARY: "#CC79A7",
}
INK, FAINT, GRID = "#1F2933", "#7B8794", "#E4E7EB"
RIGHT, WRONG, NEUTRAL = "#009E73", INK, "#56606B"

LINE_COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7B8794", "#1F2933",
)  # fmt: skip

_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 36000)  # s


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches; no global state is touched."""
    return Figure(figsize=(width, height), facecolor="white")


def plain(axes: Axes, *, grid: str | None = None) -> None:
    """Take away what does not inform, and draw a faint grid along one axis ("x" or "y")."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8, length=3, color=FAINT)
    axes.set_axisbelow(True)
    if grid == "x":
        axes.xaxis.grid(True, color=GRID, linewidth=0.8)
    elif grid == "y":
        axes.yaxis.grid(True, color=GRID, linewidth=0.8)


def time_axis(axes: Axes, seconds: float, name: str | None = None, *, ticks: int = 10) -> None:
    """Make x a time from 0 to `seconds`, labelled mm:ss at round distances."""
    step = next((s for s in _STEPS if seconds / s <= ticks), 10 * _STEPS[-1])
    axes.set_xlim(0, max(seconds, 1e-3))
    axes.xaxis.set_major_locator(MultipleLocator(step))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(round(x, 2))))
    label(axes, x=name)


def titles(fig: Figure, title: str, subtitle: str) -> None:
    """Write a title and, smaller, a subtitle at the top left, whatever the figure's height."""
    height = fig.get_figheight()
    fig.text(0.015, 1 - 0.30 / height, title, fontsize=13, fontweight="bold", color=INK)
    fig.text(0.015, 1 - 0.54 / height, subtitle, fontsize=9, color=NEUTRAL)


def heading(axes: Axes, text: str) -> None:
    """Write what one part of a figure shows above its left corner."""
    axes.set_title(text, fontsize=9, color=INK, loc="left")


def label(axes: Axes, *, x: str | None = None, y: str | None = None) -> None:
    """Name what the axes measure."""
    if x is not None:
        axes.set_xlabel(x, fontsize=9, color=INK)
    if y is not None:
        axes.set_ylabel(y, fontsize=9, color=INK)


def look_of(k: int) -> dict[Any, Any]:
    """Return colour, marker and style of the k-th line: 8 colours, then other markers."""
    turn, colour = divmod(k, len(LINE_COLOURS))
    marker, style = "os^Dv"[turn % 5], ("-", "--", ":", "-.")[turn % 4]
    look = {"marker": marker, "linestyle": style, "markersize": 4, "linewidth": 1.4}
    return {"color": LINE_COLOURS[colour], **look}


def legend_beside(axes: Axes) -> None:
    """Write the names of lines to the right of the axes, if there are lines."""
    if names := axes.get_legend_handles_labels()[1]:
        size = min(7.5, 210 / len(names))  # all of them within the height of the figure
        axes.legend(loc="center left", bbox_to_anchor=(1.03, 0.5), fontsize=size, frameon=False)

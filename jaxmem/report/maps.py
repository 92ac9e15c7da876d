"""Memory maps: which moments of a stream a memory still holds, layer by layer, kind by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from jaxmem.kv import AUDIO, MODALITY_NAMES, SUMMARY, TEXT, VISION
from jaxmem.report.kept import Kept
from jaxmem.report.results import Answered
from jaxmem.report.style import (
    FAINT,
    INK,
    KIND_COLOURS,
    NEUTRAL,
    RIGHT,
    WRONG,
    figure,
    label,
    plain,
    time_axis,
    titles,
)

MARKS = {True: ("o", RIGHT), False: ("X", WRONG), None: ("o", NEUTRAL)}
"""Of a question, by whether its answer is right: marker and colour."""
BINS = 480
"""Columns of a map at most: about one per two pixels of a screen."""


class Span(NamedTuple):
    """Something that really happened in the stream, where that is known."""

    start: float  # seconds
    end: float
    kind: int  # VISION or AUDIO


def memory_map(
    layers: Sequence[Kept],
    *,
    seconds: float,
    title: str,
    subtitle: str = "",
    happened: Sequence[Span] = (),
    answers: Sequence[Answered] = (),
    bin_seconds: float = 1.0,
) -> Figure:
    """Draw what every layer holds at the end of a stream, and how old it is.

    Each layer is a lane: pictures above its line, sound (and text) below. The height of a column
    is the square root of the number of tokens held from that moment, so that single tokens stay
    visible beside whole frames.

    Args:
      layers: what each layer holds.
      seconds: length of the stream.
      title: for example the memory and its budget.
      subtitle: smaller, below.
      happened: events of the stream, drawn as thin lines above the lanes.
      answers: questions, marked at their time as right, wrong or unknown.
      bin_seconds: width of a column at least; longer streams take wider ones.
    """
    strip = 0.18 * (2 * bool(happened) + bool(answers))
    lane = min(0.62, max(0.18, 7.0 / max(len(layers), 1)))
    heights = [0.85, strip, lane * len(layers), 0.75, 1.5, 0.55]  # inches, from the top
    fig = figure(10.5, sum(heights))
    titles(fig, title, subtitle)
    width = fig.get_figwidth()
    sides = {"left": 0.85 / width, "right": 1 - 0.25 / width, "top": 1.0, "bottom": 0.0}
    grid = fig.add_gridspec(len(heights), 1, height_ratios=heights, hspace=0.0, **sides)
    edges = map_edges(seconds, bin_seconds)

    map_axes = fig.add_subplot(grid[2])
    _lanes(map_axes, layers, edges, [f"layer {i}" for i in range(len(layers))])
    time_axis(map_axes, seconds, "stream time")
    if strip:
        _strip(fig.add_subplot(grid[1]), happened, answers, seconds)
    draw_ages(fig.add_subplot(grid[4]), layers, seconds, bin_seconds)
    legend(fig, layers, answers)
    return fig


def age_histogram(layers: Sequence[Kept], *, seconds: float, title: str) -> Figure:
    """Draw how old the kept tokens are at the end of the stream, by kind, all layers together."""
    fig = figure(8, 3.2)
    titles(fig, title, "")
    axes = fig.add_axes((0.09, 0.18, 0.88, 0.6))
    draw_ages(axes, layers, seconds)
    legend(fig, layers, ())
    return fig


def draw_ages(axes: Axes, layers: Sequence[Kept], seconds: float, bin_seconds: float = 1.0) -> None:
    """Draw the histogram of ages into `axes`: stacked by kind, mean tokens per layer."""
    edges = map_edges(seconds, bin_seconds, 48)
    bottom = np.zeros(len(edges) - 1)
    for kind in kinds_in(layers):
        ages = [seconds - layer.time[layer.modality == kind] for layer in layers]
        counts = np.histogram(np.concatenate(ages).clip(0, seconds), edges)[0] / len(layers)
        width, colour = np.diff(edges) * 0.86, KIND_COLOURS[kind]
        axes.bar(edges[:-1], counts, width, bottom, align="edge", color=colour)
        bottom += counts
    if bottom.sum():
        even = bottom.sum() * (edges[1] - edges[0]) / max(seconds, bin_seconds)
        axes.axhline(even, color=NEUTRAL, linewidth=0.9, linestyle=(0, (4, 3)))
        # At the old end, where the columns of most memories are lowest.
        axes.annotate(
            "evenly spaced",
            (seconds, even),
            xytext=(-2, 2),
            textcoords="offset points",
            fontsize=7.5,
            color=NEUTRAL,
            ha="right",
            va="bottom",
        )
    plain(axes, grid="y")
    time_axis(axes, seconds, "age of what is held, at the end of the stream")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    label(axes, y="tokens per layer")


def kinds_in(layers: Sequence[Kept]) -> list[int]:
    """Return the kinds that are held, in a fixed order."""
    found = {int(kind) for layer in layers for kind in np.unique(layer.modality)}
    return [kind for kind in (VISION, AUDIO, TEXT, SUMMARY) if kind in found]


def draw_lane(
    axes: Axes, layer: Kept, edges: np.ndarray, middle: float, above: float, below: float
) -> None:
    """Draw one lane around y = `middle`, from -0.5 to 0.5 of it.

    `edges` are those of the columns in seconds; `above` tokens of pictures fill the upper part,
    `below` tokens of sound and text the lower one.
    """
    scale = 0.9 / (np.sqrt(above) + np.sqrt(below))
    line = middle - 0.45 + scale * np.sqrt(above)  # y grows downwards
    width = np.diff(edges)
    for group, sign in (((VISION, SUMMARY), -scale), ((AUDIO, TEXT), scale)):
        total = np.zeros(len(width))
        for kind in group:
            counts = np.histogram(layer.time[layer.modality == kind], edges)[0]
            if counts.any():
                inner, total = total, total + counts
                tall = sign * (np.sqrt(total) - np.sqrt(inner))
                look = {"align": "edge", "color": KIND_COLOURS[kind], "linewidth": 0}
                axes.bar(edges[:-1], tall, width, line + sign * np.sqrt(inner), **look)
    axes.axhline(line, color=FAINT, linewidth=0.5)


def heaviest(layers: Sequence[Kept], edges: np.ndarray) -> tuple[float, float]:
    """Return the tallest column of pictures and of sound with text, at least 1."""
    tallest = [1.0, 1.0]
    for layer in layers:
        for i, group in enumerate(((VISION, SUMMARY), (AUDIO, TEXT))):
            counts = np.histogram(layer.time[np.isin(layer.modality, group)], edges)[0]
            tallest[i] = max(tallest[i], float(counts.max(initial=0)))
    return tallest[0], tallest[1]


def _lanes(axes: Axes, layers: Sequence[Kept], edges: np.ndarray, names: Sequence[str]) -> None:
    above, below = heaviest(layers, edges)
    for i, layer in enumerate(layers):
        axes.axhspan(i - 0.5, i + 0.5, color="#F7F8FA" if i % 2 == 0 else "white", zorder=0)
        draw_lane(axes, layer, edges, i, above, below)
    plain(axes)
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.set_yticks(range(len(layers)), names)
    axes.tick_params(axis="y", length=0)


def _strip(
    axes: Axes, happened: Sequence[Span], answers: Sequence[Answered], seconds: float
) -> None:
    """Draw what happened and when questions were asked, above the lanes."""
    rows: list[str] = []
    for kind, name in ((VISION, "shown"), (AUDIO, "heard")) if happened else ():
        spans = [(s.start, max(s.end - s.start, seconds / 400)) for s in happened if s.kind == kind]
        axes.broken_barh(spans, (len(rows) + 0.2, 0.6), color=KIND_COLOURS[kind], linewidth=0)
        rows.append(name)
    if answers:
        look = {"markersize": 5, "markeredgewidth": 0, "clip_on": False}
        for right, (marker, colour) in MARKS.items():
            times = [a.time for a in answers if a.right is right]
            axes.plot(times, [len(rows) + 0.5] * len(times), marker, color=colour, **look)
        rows.append("asked")
    axes.set_xlim(0, max(seconds, 1e-3))
    axes.set_ylim(len(rows), 0)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_xticks([])
    axes.tick_params(axis="y", length=0, labelsize=8, colors=INK)
    for spine in axes.spines.values():
        spine.set_visible(False)


def legend(fig: Figure, layers: Sequence[Kept], answers: Sequence[Answered]) -> None:
    """Name the colours of the kinds that are held, and the marks of the questions, top right."""
    handles: list[Any] = [
        Patch(color=KIND_COLOURS[kind], label=MODALITY_NAMES[kind]) for kind in kinds_in(layers)
    ]
    if any(a.right is not None for a in answers):
        for right, name in ((True, "right"), (False, "wrong")):
            marker, colour = MARKS[right]
            handles.append(
                Line2D([], [], marker=marker, color=colour, ls="", label=name, markersize=5)
            )
    if handles:
        fig.legend(
            handles=handles,
            loc="upper right",
            bbox_to_anchor=(0.99, 1 - 0.12 / fig.get_figheight()),
            ncols=len(handles),
            frameon=False,
            fontsize=8.5,
            handlelength=1.0,
            handleheight=1.0,
            columnspacing=1.2,
            labelcolor=INK,
        )


def map_edges(seconds: float, bin_seconds: float, most: int = BINS) -> np.ndarray:
    """Return the edges of a map's columns: at most `most`, whole multiples of `bin_seconds`."""
    seconds = max(seconds, bin_seconds)
    factor = int(np.ceil(seconds / bin_seconds / most))
    width = bin_seconds * factor
    return np.arange(0, int(np.ceil(seconds / width)) + 1) * width

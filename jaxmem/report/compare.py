"""Several memories on one stream, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmem.report.kept import Kept
from jaxmem.report.maps import draw_lane, heaviest, legend, map_edges
from jaxmem.report.numbers import size
from jaxmem.report.results import Result
from jaxmem.report.style import FAINT, INK, NEUTRAL, figure, heading, plain, time_axis, titles


def comparison(
    results: Sequence[Result],
    held: Sequence[Sequence[Kept]],
    *,
    seconds: float,
    title: str,
    subtitle: str = "",
    bin_seconds: float = 1.0,
) -> Figure:
    """Draw accuracy, times and what is `held` at the end of several memories, one row each.

    `seconds` is the length of the stream, `bin_seconds` the width of a column of the maps at least.
    """
    rows = len(results)
    height = 1.45 + 0.62 * rows
    fig = figure(12.5, height)
    titles(fig, title, subtitle)
    bottom, tall = 0.55 / height, 0.62 * rows / height
    boxes = ((0.1, 0.19), (0.345, 0.075), (0.44, 0.075), (0.54, 0.44))
    right, chunk, token, lanes = (fig.add_axes((x, bottom, w, tall)) for x, w in boxes)
    for axes in (right, chunk, token, lanes):
        axes.set_ylim(rows - 0.5, -0.5)
        axes.set_yticks([])
    right.set_yticks(range(rows), [f"{r.memory}\n{size(r.nbytes)}" for r in results])
    _accuracy(right, results)
    _times(chunk, [r.chunk_ms and r.chunk_ms[1] for r in results], "per chunk")
    _times(token, [r.first_token_ms and r.first_token_ms[0] for r in results], "first token")
    edges = map_edges(seconds, bin_seconds)
    for i, layers in enumerate(held):
        merged = Kept(
            *(np.concatenate([getattr(layer, f) for layer in layers]) for f in Kept._fields)
        )
        lanes.axhspan(i - 0.5, i + 0.5, color="#F7F8FA" if i % 2 == 0 else "white", zorder=0)
        # Every row has a scale of its own: the reference holds far more than the others.
        draw_lane(lanes, merged, edges, i, *heaviest([merged], edges))
    plain(lanes)
    lanes.tick_params(axis="y", length=0)
    heading(lanes, "held at the end, all layers")
    time_axis(lanes, seconds, "stream time", ticks=8)
    legend(fig, [layer for layers in held for layer in layers], ())
    return fig


def _accuracy(axes: Axes, results: Sequence[Result]) -> None:
    """Draw right answers with their 95 % intervals."""
    plain(axes, grid="x")
    for i, result in enumerate(results):
        score = result.accuracy
        if score is None:
            axes.text(0.02, i, "no known answers", va="center", fontsize=8, color=NEUTRAL)
            continue
        axes.barh(i, score.share, height=0.5, color="#9DB4C8" if result.reference else "#33658A")
        axes.plot([score.low, score.high], [i, i], color=INK, linewidth=1.2)
        axes.text(1.02, i, f"{score.share:.0%}", va="center", fontsize=9, color=INK)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
    axes.tick_params(axis="y", length=0)
    heading(axes, "right answers, 95% interval")


def _times(axes: Axes, times: Sequence[float | None], title: str) -> None:
    """Draw times in milliseconds with their values."""
    plain(axes)
    top = max((t for t in times if t is not None), default=1.0)
    for i, value in enumerate(times):
        if value is not None:
            axes.barh(i, value, height=0.5, color="#C9CED6")
            axes.text(0.03 * top, i, f"{value:.3g}", va="center", fontsize=8.5, color=INK)
    axes.set_xlim(0, top * 1.05)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    heading(axes, f"{title}, ms")

"""Memories on text as a picture: loss and facts against slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmem.report.shares import Share, mean
from jaxmem.report.style import figure, heading, label, legend_beside, look_of, plain, titles
from jaxmem.report.text import Outcome, over_full

GUESSED = float(np.log(10))
"""Nats of a digit that is guessed."""


def plot_slots(outcomes: Sequence[Outcome]) -> Figure:
    """Draw the loss minus that of `full`, and the nats of answers' digits, against slots.

    A line is a memory with one part of its slots for the newest; bars are intervals over texts.
    """
    rows = [one for one in outcomes if one.memory != "full"]
    names = list(dict.fromkeys(_name(one) for one in rows))
    fig = figure(12.5, max(4.4, 1.3 + 0.17 * len(names)))
    titles(fig, "Text: what a memory costs, and what it finds", "Bars: 95 % bootstrap over texts.")
    loss, nats = (fig.add_axes((x, 0.14, 0.35, 0.66)) for x in (0.06, 0.47))
    _lines(loss, rows, names, lambda one: over_full(one, outcomes))
    _lines(nats, rows, names, lambda one: mean(one.nats.mean(1)))
    heading(loss, "loss minus that of full, nats a token")
    heading(nats, "answers, nats a digit; dotted: guessed, grey: full")
    nats.axhline(GUESSED, color="#9AA5B1", linewidth=1.0, linestyle=":")
    for one in outcomes:
        if one.memory == "full":
            nats.axhline(one.nats.mean(), color="#9AA5B1", linewidth=1.2)
    legend_beside(nats)
    return fig


def _name(one: Outcome) -> str:
    return one.memory + one.floor


def _lines(
    axes: Axes,
    rows: Sequence[Outcome],
    names: Sequence[str],
    value: Callable[[Outcome], Share | None],
) -> None:
    """Draw a value of every row; those of one name are joined."""
    plain(axes, grid="y")
    for k, name in enumerate(names):
        mine = sorted((one for one in rows if _name(one) == name), key=lambda one: one.slots)
        points = [(one.slots, point) for one in mine if (point := value(one)) is not None]
        if not points:
            continue
        y = np.array([point.share for _, point in points])
        bars = [y - [p.low for _, p in points], [p.high for _, p in points] - y]
        axes.errorbar([slots for slots, _ in points], y, yerr=bars, label=name, **look_of(k))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    label(axes, x="slots a layer")

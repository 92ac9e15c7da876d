"""Comparisons of memories over many streams: shares with intervals over streams, tables, plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from jaxmem.report.numbers import milliseconds, size
from jaxmem.report.shares import DRAWS, Share, mean, percent, plain_share, share
from jaxmem.report.style import (
    figure,
    heading,
    label,
    legend_beside,
    look_of,
    plain,
    titles,
)

AGES = (0.0, 8.0, 32.0, 128.0, np.inf)
"""Edges of the classes of age, in seconds since the evidence ended."""


class Outcome(NamedTuple):
    """What one memory did at one budget on streams of one length; arrays [M, B, n]."""

    memory: str
    budget: str  # as it was given
    seconds: int
    right: np.ndarray  # bool
    type: np.ndarray  # str
    age: np.ndarray  # seconds since the evidence ended, -1: it was never there
    nbytes: int  # on the device, with the states of layers that have one
    bank_nbytes: int
    states_nbytes: int = 0  # those states alone
    chunk_ms: float | None = None
    first_token_ms: float | None = None


def shown_at(one: Outcome, budget: str) -> bool:
    """Return whether an outcome is compared at a budget: its own, any, or states alone."""
    return one.budget in (budget, "all") or one.nbytes == one.states_nbytes


def by_type(outcome: Outcome) -> dict[str, Share | None]:
    """Return the share for every type of question, in alphabetical order."""
    types = sorted(set(outcome.type.ravel().tolist()))
    return {name: share(outcome.right, outcome.type == name) for name in types}


def by_age(outcome: Outcome) -> dict[str, Share | None]:
    """Return the share for every class of age; questions about what never was are apart."""
    out = {"never": share(outcome.right, outcome.age < 0)}
    for low, high in pairwise(AGES):
        inside = (outcome.age >= low) & (outcome.age < high)
        out[age_name(low, high)] = share(outcome.right, inside)
    return out


def age_name(low: float, high: float) -> str:
    """Return the name of a class of age."""
    return f"{low:g} s and more" if np.isinf(high) else f"{low:g} to {high:g} s"


def difference(one: Outcome, other: Outcome, *, draws: int = DRAWS, seed: int = 0) -> Share:
    """Return the share of `one` minus that of `other` on the same questions, paired by stream."""
    gain = one.right.astype(float).mean((0, 2)) - other.right.astype(float).mean((0, 2))
    return mean(gain, draws=draws, seed=seed)._replace(asked=one.right.size)


def as_dict(one: Outcome) -> dict[str, Any]:
    """Return the shares of an outcome as plain data."""
    names = ("memory", "budget", "seconds", "nbytes", "bank_nbytes", "states_nbytes", "chunk_ms")
    names = (*names, "first_token_ms")
    return {
        **{name: getattr(one, name) for name in names},
        "all": plain_share(share(one.right)),
        "by_type": {k: plain_share(v) for k, v in by_type(one).items()},
        "by_age": {k: plain_share(v) for k, v in by_age(one).items()},
    }


def table(outcomes: Sequence[Outcome], seconds: int) -> Table:
    """Return right answers by memory and budget on streams of one length."""
    here = [o for o in outcomes if o.seconds == seconds]
    budgets = list(dict.fromkeys(o.budget for o in here))
    more = ("states", "bank", "chunk", "first token")
    out = Table("memory", *budgets, *more, title=f"{seconds} s streams")
    for name in dict.fromkeys(o.memory for o in here):
        mine = {o.budget: o for o in here if o.memory == name}
        timed = next((o for o in mine.values() if o.chunk_ms is not None), None)
        bank = max(o.bank_nbytes for o in mine.values())
        states = max(o.states_nbytes for o in mine.values())
        out.add_row(
            name,
            *(percent(share(mine[b].right)) if b in mine else "-" for b in budgets),
            size(states) if states else "-",
            size(bank) if bank else "-",
            milliseconds(timed.chunk_ms if timed else None),
            milliseconds(timed.first_token_ms if timed else None),
        )
    return out


def split_table(
    outcomes: Sequence[Outcome], parts: Mapping[str, Mapping[str, Share | None]], title: str
) -> Table:
    """Return right answers (%) by memory and part (types or ages); `parts` by memory."""
    columns = list(dict.fromkeys(name for shares in parts.values() for name in shares))
    out = Table("memory", *columns, title=title)
    for name in dict.fromkeys(o.memory for o in outcomes):
        if name in parts:
            shares = [parts[name].get(column) for column in columns]
            out.add_row(name, *("-" if s is None else f"{100 * s.share:.0f}" for s in shares))
    return out


def plot_budgets(outcomes: Sequence[Outcome]) -> Figure:
    """Draw right answers against bytes, a panel for every length of stream."""
    lengths = sorted({o.seconds for o in outcomes})
    fig = figure(5.2 * len(lengths) + 1.6, 5.4)
    titles(fig, "Right answers at equal bytes", "Bands: 95 % bootstrap over streams. Grey: full.")
    names = [n for n in dict.fromkeys(o.memory for o in outcomes) if n != "full"]
    width = 0.86 / len(lengths)
    for i, seconds in enumerate(lengths):
        axes = _panel(fig, 0.05 + i * width, width - 0.04)
        here = [o for o in outcomes if o.seconds == seconds]
        for o in here:
            if o.memory == "full":
                axes.axhline(o.right.mean(), color="#9AA5B1", linewidth=1.2)
        for k, name in enumerate(names):
            mine = sorted((o for o in here if o.memory == name), key=lambda o: o.nbytes)
            x, shares = [o.nbytes / 1024 for o in mine], [share(o.right) for o in mine]
            axes.plot(x, [s.share for s in shares if s], label=name, **look_of(k))
            low, high = [s.low for s in shares if s], [s.high for s in shares if s]
            axes.fill_between(x, low, high, color=look_of(k)["color"], alpha=0.08, linewidth=0)
        axes.set_xscale("log", base=2)
        label(axes, x="KiB of memory")
        heading(axes, f"{seconds} s streams")
    legend_beside(axes)
    return fig


def plot_ages(outcomes: Sequence[Outcome], seconds: int, budget: str) -> Figure:
    """Draw right answers against the age of the evidence, at one length and budget."""
    here = [o for o in outcomes if o.seconds == seconds and shown_at(o, budget)]
    fig = figure(8.4, 5.2)
    titles(fig, "Recall by age of the evidence", f"{seconds} s streams, {budget}")
    axes = _panel(fig, 0.08, 0.66)
    labels = [age_name(a, b) for a, b in pairwise(AGES) if a < seconds]
    for k, o in enumerate(here):
        ages = by_age(o)
        values = [np.nan if (v := ages[name]) is None else v.share for name in labels]
        axes.plot(range(len(labels)), values, label=o.memory, **look_of(k))
    axes.set_xticks(range(len(labels)), labels)
    legend_beside(axes)
    return fig


def _panel(fig: Figure, left: float, width: float) -> Axes:
    """Return axes for shares."""
    axes = fig.add_axes((left, 0.12, width, 0.70))
    plain(axes, grid="y")
    axes.set_ylim(0, 1)
    return axes

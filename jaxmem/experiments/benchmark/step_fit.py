"""How a chunk's time grows with its length and with the slots: a + b T + c T S + d S, fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from jaxmem.experiments.benchmark.step import StepConfig, check
from jaxmem.experiments.benchmark.step_model import (
    StepModel,
    Stream,
    in_turn,
    model_of,
    program_of,
)
from jaxmem.memory.by_name import parse_names

LENGTHS = (32, 64, 128, 256, 512)
SLOTS = (256, 1024, 4096, 8192)


class Point(NamedTuple):
    """A step that was timed, and what the fit says."""

    chunk: int
    slots: int
    milliseconds: float
    fitted: float = 0.0  # milliseconds


class Fit(NamedTuple):
    """t = a + b T + c T S + d S, milliseconds: keeping moves S slots, whatever T is."""

    memory: str
    a: float
    b: float
    c: float
    d: float
    residual: float  # root of the mean square of (fitted - t) / t
    worst: float  # the largest
    without: float  # the residual of a + b T + c T S
    points: tuple[Point, ...]


def fitted(memory: str, points: Sequence[Point]) -> Fit:
    """Return the fit of smallest relative error; no coefficient is below 0."""
    from scipy.optimize import nnls

    size = np.array([[1.0, p.chunk, p.chunk * p.slots, p.slots] for p in points])
    time = np.array([p.milliseconds for p in points])
    found = nnls(size / time[:, None], np.ones(len(time)))[0]
    fewer = nnls(size[:, :3] / time[:, None], np.ones(len(time)))[0]
    says = size @ found
    error, other = says / time - 1, size[:, :3] @ fewer / time - 1
    points = tuple(p._replace(fitted=float(t)) for p, t in zip(points, says, strict=True))
    rms = lambda x: float(np.sqrt(np.mean(x**2)))
    worst = float(np.max(np.abs(error)))
    a, b, c, d = found.tolist()
    return Fit(memory, a, b, c, d, rms(error), worst, rms(other), points)


def measure_fits(
    config: StepConfig,
    model: StepModel | None = None,
    lengths: Sequence[int] = LENGTHS,
    slots: Sequence[int] = SLOTS,
) -> list[Fit]:
    """Return the fit of every memory; all its sizes are timed in turn.

    Raises:
      ValueError: if a name is unknown or a memory does not fit its slots.
    """
    check(config)
    model = model or model_of(config.model)
    return [_measured(config, model, n, lengths, slots) for n in parse_names(config.memories)]


def _measured(
    config: StepConfig, model: StepModel, name: str, lengths: Sequence[int], slots: Sequence[int]
) -> Fit:
    # Slots are read and written whether they are taken or not, so they are not filled first.
    streams: dict[Any, Any] = {}
    for length in lengths:
        for count in slots:
            program = program_of(model.config, name, count, length)
            streams[length, count] = Stream(program, model.params, config.clock)
    took = in_turn(streams, config.rounds, warm=1)
    jax.clear_caches()
    return fitted(name, [Point(t, s, float(np.median(x)) * 1e3) for (t, s), x in took.items()])


def fits_table(config: StepConfig, fits: Sequence[Fit], weights: str) -> Table:
    """Return a line for every memory and size."""
    table = Table(
        title=f"t = a + b T + c T S + d S: {config.model}, {config.clock} time", caption=weights
    )
    for column in ("memory", "T", "S", "ms", "fitted", "error"):
        table.add_column(column, justify="left" if column == "memory" else "right")
    for fit in fits:
        for p in fit.points:
            error = f"{p.fitted / p.milliseconds - 1:+.0%}"
            sizes = (f"{p.chunk}", f"{p.slots:,}", f"{p.milliseconds:.1f}", f"{p.fitted:.1f}")
            table.add_row(fit.memory, *sizes, error)
        of_slots = f"{fit.c * 1e3:.4f} T S/1000 + {fit.d * 1e3:.2f} S/1000"
        terms = f"{fit.a:.2f} + {fit.b:.4f} T + {of_slots}"
        table.add_row(fit.memory, "", "", terms, "", f"rms {fit.residual:.0%}")
        table.add_row(fit.memory, "", "", "without d S", "", f"rms {fit.without:.0%}")
        table.add_section()
    return table

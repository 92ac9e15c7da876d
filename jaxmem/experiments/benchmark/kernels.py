"""The benchmark of the kernels: every operation at every shape, against its naive formulation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxmem.experiments.benchmark import kernels_measure as measure
from jaxmem.experiments.benchmark.kernels_ops import Operation, operations, with_attention
from jaxmem.experiments.benchmark.kernels_shapes import Inputs, Shape, Which, inputs, shapes
from jaxmem.experiments.benchmark.kernels_step import steps


@dataclass(frozen=True)
class KernelsConfig:
    """Time attention, mass, selection and redundancy, each against its naive formulation.

    Attributes:
      shapes: ci (tiny), embedded, cpu (embedded model and a 0.5B model), 7b, or all (cpu and 7b).
      only: operations to measure, by the start of their names; all if empty.
      pairs: how often both formulations are timed, in turn.
      step_slots: slots per layer at which the chunk step of the embedded model is timed.
      step_seconds: seconds of its chunks.
      implementation: of the kernels (see docs/kernels.md); None for the default.
      plain_gigabytes: a naive formulation that needs larger temporaries is not run.
      json: print JSON lines instead of a table.
    """

    shapes: Which = "cpu"
    only: tuple[str, ...] = ()
    pairs: int = 15
    step_slots: tuple[int, ...] = (64, 256)
    step_seconds: tuple[int, ...] = (1, 4)
    implementation: str | None = None
    plain_gigabytes: float = 4.0
    json: bool = False


def records(
    config: KernelsConfig, *, progress: Callable[[str], None] = lambda what: None
) -> Iterator[dict]:
    """Yield one record per operation and shape, then those of the chunk step.

    Raises:
      ValueError: if no operation has such a name.
    """
    chosen = [op for op in operations() if _asked(config.only, op.name)]
    step = _asked(config.only, "chunk step")
    if not chosen and not step:
        names = ", ".join([op.name for op in operations()] + ["chunk step"])
        raise ValueError(f"--only {' '.join(config.only)} matches none of: {names}.")
    sizes = shapes(config.shapes)
    progress("what the machine can do")
    rates = measure.rates({shape.dtype for shape in sizes})
    for shape in sizes if chosen else ():
        given = with_attention(inputs(shape), shape)
        for op in chosen:
            progress(f"{op.name}, {shape.name}")
            yield _record(op, shape, given, rates, config)
    if step and config.shapes != "7b":
        progress("the chunk step of the embedded model")
        yield from steps(config.step_slots, config.step_seconds, pairs=config.pairs)


def measure_kernels(config: KernelsConfig, machine: dict[str, str]) -> int:
    """Measure and print, JSON lines as they come or one table at the end; return the exit status.

    Raises:
      ValueError: if no operation has such a name.
    """
    console = Console(stderr=True)
    found = []
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        for record in records(config, progress=lambda what: bar.update(task, description=what)):
            found.append({"benchmark": "kernels", **machine, **record})
            if config.json:
                print(json.dumps(found[-1]), flush=True)
    if not config.json:
        Console().print(table(found))
        Console().print(", ".join(f"{k} {v}" for k, v in machine.items()), style="dim")
    return 0


def _asked(only: tuple[str, ...], name: str) -> bool:
    return not only or any(name.startswith(start) for start in only)


def _record(
    op: Operation, shape: Shape, given: Inputs, rates: measure.Rates, config: KernelsConfig
) -> dict:
    """Return the figures of one operation at one shape."""
    how = {} if config.implementation is None else {"implementation": config.implementation}
    ours = lambda x: op.ours(x, shape, **how)
    plain = lambda x: op.plain(x, shape)
    built, plain_built = measure.compiled(ours, given), measure.compiled(plain, given)
    fits = (plain_built[1] or 0) <= config.plain_gigabytes * 2**30
    loops = [measure.repeated(f) for f in ((ours, plain) if fits else (ours,))]
    seconds = measure.interleaved(loops, given, pairs=config.pairs)
    mine = measure.timing(seconds[:, 0], *built)
    flops, nbytes, best = op.flops(shape), op.nbytes(shape), mine.best_ms / 1e3
    record = {
        "operation": op.name,
        "shape": shape.name,
        "dtype": shape.dtype,
        "compile_s": mine.compile_s,
        "temp_bytes": mine.temp_bytes,
        "median_ms": mine.median_ms,
        "best_ms": mine.best_ms,
        "spread": mine.spread,
        "bytes": nbytes,
        "flops": flops,
        "copy_share": nbytes / best / rates.copy,
        "matmul_share": flops / best / rates.matmul[shape.dtype],
        "copy_gb_per_s": rates.copy / 1e9,
        "matmul_gflop_per_s": rates.matmul[shape.dtype] / 1e9,
        "against": "naive",
        "plain_temp_bytes": plain_built[1],
        "plain_compile_s": plain_built[0],
    }
    if fits:
        record |= _ratio(seconds, measure.timing(seconds[:, 1], *plain_built), mine)
    if op.goal is not None and jax.default_backend() == "cpu" and fits:
        record |= {"goal": op.goal, "met": record["ratio"] <= op.goal}
    return record


def _ratio(seconds: np.ndarray, plain: measure.Timing, mine: measure.Timing) -> dict:
    return {
        "plain_median_ms": plain.median_ms,
        "plain_best_ms": plain.best_ms,
        "ratio": float(np.median(seconds[:, 0] / seconds[:, 1])),
        "best_ratio": mine.best_ms / plain.best_ms,
    }


def table(found: list[dict]) -> Table:
    """Return the records as a table."""
    out = Table(title="kernels: times inside a compiled loop, and ratios of one run")
    names = (
        "operation",
        "shape",
        "ms",
        "spread",
        "MiB",
        "naive",
        "ratio",
        "goal",
        "copy",
        "matmul",
    )
    for i, name in enumerate(names):
        out.add_column(name, justify="left" if i < 2 else "right")

    def number(record: dict, key: str, form: str = "{:.3g}", scale: float = 1.0) -> str:
        return "" if record.get(key) is None else form.format(record[key] * scale)

    for r in found:
        out.add_row(
            r["operation"],
            r["shape"],
            number(r, "median_ms"),
            number(r, "spread", "{:.0%}"),
            number(r, "temp_bytes", scale=2.0**-20),
            number(r, "plain_median_ms"),
            number(r, "ratio", "{:.2f}"),
            number(r, "goal", "{:.2f}"),
            number(r, "copy_share", "{:.0%}"),
            number(r, "matmul_share", "{:.0%}"),
        )
    return out

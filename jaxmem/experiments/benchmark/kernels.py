"""The benchmark of the kernels: every operation at every shape, against another formulation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from jaxmem.experiments.benchmark import kernels_measure as measure
from jaxmem.experiments.benchmark.kernels_ops import Operation, operations, with_attention
from jaxmem.experiments.benchmark.kernels_scans import (
    SCANS,
    ScanOperation,
    scan_inputs,
    scan_operations,
    scans,
)
from jaxmem.experiments.benchmark.kernels_shapes import Which, inputs, shapes
from jaxmem.experiments.benchmark.kernels_step import steps
from jaxmem.typing import PyTree


@dataclass(frozen=True)
class KernelsConfig:
    """Time attention, mass, selection and redundancy, each against its naive formulation.

    What one kernel does with attention and mass is timed against two kernels, the scans of layers
    with a state against XLA with all blocks at once.
    """

    # ci (tiny), embedded, cpu (embedded model and a 0.5B model), 7b, or all (cpu and 7b).
    shapes: Which = "cpu"
    only: tuple[str, ...] = ()  # operations, by the start of their names; all if empty
    rows: tuple[int, ...] = ()  # tokens of a chunk: only shapes with so many; all if empty
    pairs: int = 15  # how often both formulations are timed, in turn
    step_slots: tuple[int, ...] = (64, 256)  # per layer, in the chunk step of the embedded model
    step_seconds: tuple[int, ...] = (1, 4)  # of its chunks
    implementation: str | None = None  # of the kernels (docs/kernels.md); None for the default
    plain_gigabytes: float = 4.0  # a naive formulation with larger temporaries is not run
    json: bool = False  # print JSON lines instead of a table


def records(
    config: KernelsConfig, *, progress: Callable[[str], None] = lambda what: None
) -> Iterator[dict[Any, Any]]:
    """Yield one record per operation and shape, then those of the chunk step.

    Raises:
      ValueError: if no operation has such a name.
    """
    chosen = [op for op in operations() if _asked(config.only, op.name)]
    step = _asked(config.only, "chunk step")
    if not chosen and not step and not any(_asked(config.only, name) for name in SCANS):
        names = ", ".join([*(op.name for op in operations()), *SCANS, "chunk step"])
        raise ValueError(f"--only {' '.join(config.only)} matches none of: {names}.")
    wanted = lambda shape: not config.rows or shape.rows in config.rows
    sizes = [shape for shape in shapes(config.shapes) if wanted(shape)]
    recurrences = [scan for scan in scans(config.shapes) if wanted(scan)]
    if config.rows and not (sizes or recurrences):
        raise ValueError(f"no shape of --shapes {config.shapes} has --rows {config.rows}.")
    recurrent = [
        (op, scan)
        for scan in recurrences
        for op in scan_operations(scan)
        if _asked(config.only, op.name)
    ]
    step = step and config.shapes != "7b"
    if not (chosen and sizes) and not recurrent and not step:
        what = f"--shapes {config.shapes}" + (f" --rows {config.rows}" if config.rows else "")
        raise ValueError(f"--only {' '.join(config.only)} has nothing to time with {what}.")
    progress("what the machine can do")
    rates = measure.rates({shape.dtype for shape in (*sizes, *recurrences)})
    how = {} if config.implementation is None else {"implementation": config.implementation}
    for shape in sizes if chosen else ():
        given = with_attention(inputs(shape), shape)
        for op in chosen:
            progress(f"{op.name}, {shape.name}")
            same = {} if op.against == "naive" else how
            timed = partial(op.ours, shape=shape, **how), partial(op.plain, shape=shape, **same)
            yield _record(op, shape, given, timed, rates, config)
    for op, scan in recurrent:
        progress(f"{op.name}, {scan.name}")
        given, plain = scan_inputs(scan), {"implementation": op.against}
        timed = partial(op.call, scan=scan, **how), partial(op.call, scan=scan, **plain)
        yield _record(op, scan, given, timed, rates, config)
    if step:
        progress("the chunk step of the embedded model")
        yield from steps(config.step_slots, config.step_seconds, pairs=config.pairs)


def measure_kernels(config: KernelsConfig, machine: dict[str, str]) -> None:
    """Measure and print, JSON lines as they come or one table at the end.

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


def _asked(only: tuple[str, ...], name: str) -> bool:
    return not only or any(name.startswith(start) for start in only)


def _record(
    op: Operation | ScanOperation,
    shape: Any,  # a `Shape` or a `Scan`, as the operation takes
    given: PyTree,
    timed: tuple[Callable[[PyTree], PyTree], Callable[[PyTree], PyTree]],
    rates: measure.Rates,
    config: KernelsConfig,
) -> dict[Any, Any]:
    """Return the figures of one operation at one shape; `timed` is ours and what it is against."""
    ours, plain = timed
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
        **asdict(mine),
        "bytes": nbytes,
        "flops": flops,
        "copy_share": nbytes / best / rates.copy,
        "matmul_share": flops / best / rates.matmul[shape.dtype],
        "copy_gb_per_s": rates.copy / 1e9,
        "matmul_gflop_per_s": rates.matmul[shape.dtype] / 1e9,
        "against": op.against,
        "plain_temp_bytes": plain_built[1],
        "plain_compile_s": plain_built[0],
    }
    if fits:
        theirs = measure.timing(seconds[:, 1], *plain_built)
        record |= mine.against(theirs, seconds[:, 0] / seconds[:, 1])
    if op.goal is not None and jax.default_backend() == "cpu" and fits:
        record |= {"goal": op.goal, "met": record["ratio"] <= op.goal}
    return record


COLUMNS = {
    "ms": ("median_ms", "{:.3g}", 1.0),
    "spread": ("spread", "{:.0%}", 1.0),
    "MiB": ("temp_bytes", "{:.3g}", 2.0**-20),
    "other": ("plain_median_ms", "{:.3g}", 1.0),
    "ratio": ("ratio", "{:.2f}", 1.0),
    "goal": ("goal", "{:.2f}", 1.0),
    "copy": ("copy_share", "{:.0%}", 1.0),
    "matmul": ("matmul_share", "{:.0%}", 1.0),
}
"""Heading -> key of a record, form, scale."""


def table(found: list[dict[Any, Any]]) -> Table:
    """Return the records as a table."""
    title = "kernels: times inside a compiled loop, and ratios of one run"
    out = Table("operation", "shape", title=title)
    for name in COLUMNS:
        out.add_column(name, justify="right")
    for record in found:
        cells = [
            "" if record.get(key) is None else form.format(record[key] * scale)
            for key, form, scale in COLUMNS.values()
        ]
        what = "" if record["against"] == "naive" else f", against {record['against']}"
        out.add_row(record["operation"] + what, record["shape"], *cells)
    return out

"""The chunk step: its time, what of it the machine could not save, and what was compiled.

`share` is the least the machine can do (dense products and attention at the rate of large matrix
products measured in the same run) over the time of the step. `against` divides by the step with
`recent`, which scores nothing. Copies and temporaries are read off the compiled program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Group
from rich.table import Table

from jaxmem.experiments.benchmark.step_model import (
    Run,
    StepModel,
    Stream,
    in_turn,
    least_flops,
    model_of,
    products,
    program_of,
    ratio,
)
from jaxmem.experiments.benchmark.step_parts import Parts, dense, still
from jaxmem.memory.by_name import parse_names
from jaxmem.typing import Params

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class StepConfig:
    """Time the chunk step of a decoder under several memories, and count what was compiled."""

    # smollm2 (its own weights with the extra real, else drawn), tiny, a .gguf file, or a directory
    # or published family:size (weights are drawn) whose layers all attend
    model: str = "smollm2"
    memories: str = "recent,keydiff,snapkv,omnimem,hermes"  # names
    slots: str = "256,1024"  # per layer
    chunk: int = 128  # tokens
    dtypes: str = "float32"  # or float32,bfloat16: both in turn
    parts: bool = True  # say what the time goes into, by steps that leave it out
    # Time `transformers`, `kvpress` or both (extra parity, and the package kvpress) in turn with
    # ours, on the same weights, inputs and slots.
    against: str | None = None
    fit: bool = False  # fit a + b T + c T S + d S to the step of the first memory instead
    # Time so many questions of one moment instead, together, one alone, and one as long as all.
    questions: int | None = None
    threads: int | None = None  # cores to use, by JAX and by others; None: all
    clock: str = "wall"  # or cpu: seconds of the processor, for one thread of a shared machine
    rounds: int = 10  # how often all are timed, in turn
    json: bool = False  # print JSON instead of a table


class Step(NamedTuple):
    """What one memory's step costs."""

    memory: str
    slots: int
    milliseconds: float
    against: float  # divided by the step of `recent` with as many slots, median of paired ratios
    share: float  # of the machine's rate of products
    copies: int
    temporaries: int  # bytes
    parts: Parts | None = None
    dtype: str = "float32"
    wide: float = 1.0  # divided by the step in the first dtype


class Timed(NamedTuple):
    """One thing that is timed: a step, or one that leaves something out."""

    what: str  # "step", "still", "dense" or "rate"
    dtype: str = ""
    memory: str = ""


def check(config: StepConfig) -> None:
    """Raise ValueError where options make no sense."""
    dtypes = config.dtypes.split(",")
    if not set(dtypes) <= set(DTYPES) or len(set(dtypes)) != len(dtypes):
        raise ValueError(f"dtypes are {' and '.join(DTYPES)}, each once; got {config.dtypes}.")
    if config.clock not in ("wall", "cpu"):
        raise ValueError(f"the clock is wall or cpu, got {config.clock}.")
    if config.rounds < 1 or config.chunk < 1:
        raise ValueError(
            f"rounds and chunk are at least 1, got {config.rounds} and {config.chunk}."
        )


def measure_steps(config: StepConfig, model: StepModel | None = None) -> list[Step]:
    """Return what the step of every memory costs, all timed in turn in this process.

    Raises:
      ValueError: if a name is unknown or a memory does not fit its slots.
    """
    check(config)
    names, model = parse_names(config.memories), model or model_of(config.model)
    return [
        step
        for slots in (int(n) for n in config.slots.split(","))
        for step in _at_slots(config, model, names, slots)
    ]


def cast(params: Params, dtype: str) -> Params:
    """Return weights of another dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def _at_slots(
    config: StepConfig, model: StepModel, names: tuple[str, ...], slots: int
) -> list[Step]:
    """Return the steps with one number of slots."""
    dtypes = config.dtypes.split(",")
    runs: dict[Any, Run] = {Timed("rate"): products(config.clock)}
    for dtype in dtypes:
        params = cast(model.params, dtype)
        for name in dict.fromkeys(("recent", *names)):
            program = program_of(model.config, name, slots, config.chunk, dtype)
            stream = Stream(program, params, config.clock).fill(slots)
            runs[Timed("step", dtype, name)] = stream
            quiet = still(stream, config.clock) if config.parts else None
            if quiet is not None:
                runs[Timed("still", dtype, name)] = quiet
        if config.parts and not model.config.stacks:
            x = runs[Timed("step", dtype, "recent")].inputs.x  # type: ignore[attr-defined]
            runs[Timed("dense", dtype)] = dense(model.config, params, x, config.clock)
    took = in_turn(runs, config.rounds)
    need, rate = least_flops(model.config, config.chunk, slots), took[Timed("rate")]

    def step(name: str, dtype: str) -> Step:
        mine, figures = took[Timed("step", dtype, name)], runs[Timed("step", dtype, name)].compiled  # type: ignore[attr-defined]
        return Step(
            memory=name,
            slots=slots,
            milliseconds=float(np.median(mine)) * 1e3,
            against=ratio(mine, took[Timed("step", dtype, "recent")]),
            share=float(np.median(need / mine / rate)),
            copies=figures.copies,
            temporaries=figures.temporaries,
            parts=_parts(took, name, dtype),
            dtype=dtype,
            wide=ratio(mine, took[Timed("step", dtypes[0], name)]),
        )

    return [step(name, dtype) for dtype in dtypes for name in names]


def _parts(took: dict[Any, np.ndarray], name: str, dtype: str) -> Parts | None:
    """Return what a step's time goes into, medians of paired differences."""
    keys = [Timed("dense", dtype), Timed("still", dtype, "recent"), Timed("still", dtype, name)]
    if any(key not in took for key in keys):
        return None
    stages = [took[key] for key in (*keys, Timed("step", dtype, name))]
    more = [np.median(b - a) for a, b in pairwise(stages)]
    return Parts(*(float(x) * 1e3 for x in (np.median(stages[0]), *more)))


def steps_table(config: StepConfig, steps: Sequence[Step], weights: str = "") -> Group:
    """Return a line for every memory, number of slots and dtype, and what the time goes into."""
    title = f"The chunk step: {config.model}, {config.chunk} tokens, {config.clock} time"
    narrow = f"/ {config.dtypes.split(',')[0]}"
    costs = Table(title=title, caption=weights or None)
    parts = Table(title="of which, ms")
    _columns(costs, "memory", "slots", "dtype", "ms", "/ recent", narrow, "of the machine",
             "copies", "temporaries")  # fmt: skip
    _columns(parts, "memory", "slots", "dtype", *Parts._fields)
    for step in steps:
        of = (step.memory, f"{step.slots:,}", step.dtype)
        costs.add_row(
            *of,
            f"{step.milliseconds:.1f}",
            f"{step.against:.2f}",
            f"{step.wide:.2f}",
            f"{step.share:.0%}",
            str(step.copies),
            f"{step.temporaries / 1e6:.1f} MB",
        )
        if step.parts is not None:
            parts.add_row(*of, *(f"{x:.1f}" for x in step.parts))
    return Group(costs, *((parts,) if parts.rows else ()))


def _columns(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="left" if name == "memory" else "right")

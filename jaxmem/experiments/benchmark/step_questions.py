"""Several questions at one moment: what one more costs, against what its own rows cost.

n questions of Q rows share weights, prefix and recalled keys, so they cost no more than one
question that is as long as all of them; but where a memory recalls for each question by itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from jaxmem.asking import ask_all
from jaxmem.bound import question_rows
from jaxmem.experiments.benchmark.step import StepConfig, check
from jaxmem.experiments.benchmark.step_model import (
    QUESTION,
    StepModel,
    Stream,
    in_turn,
    model_of,
    program_of,
    ratio,
)
from jaxmem.memory.by_name import parse_names


class Questions(NamedTuple):
    """What questions of one memory cost that are asked together."""

    memory: str
    slots: int
    count: int
    alone: float  # milliseconds of one
    together: float  # of all
    as_one: float  # of one that is as long as all
    against_alone: float  # all over `count` times one, median of paired ratios
    against_as_one: float  # all over one as long as all, likewise


def measure_questions(config: StepConfig, model: StepModel | None = None) -> list[Questions]:
    """Return what several questions of one moment cost, all timed in turn in this process.

    Raises:
      ValueError: if there are less than two, or a memory does not fit its slots.
    """
    check(config)
    count = config.questions or 0
    if count < 2:
        raise ValueError(f"--questions is how many are asked together, at least 2; got {count}.")
    model = model or model_of(config.model)
    return [
        _measured(config, model, name, slots, count)
        for slots in (int(n) for n in config.slots.split(","))
        for name in parse_names(config.memories)
    ]


def _measured(config: StepConfig, model: StepModel, name: str, slots: int, count: int) -> Questions:
    program = program_of(model.config, name, slots, config.chunk)
    stream = Stream(program, model.params, config.clock).fill(slots)
    shapes = {
        "alone": (1, QUESTION),
        "together": (count, QUESTION),
        "as one": (1, count * QUESTION),
    }
    asking = {what: _asking(stream, *shape) for what, shape in shapes.items()}
    took = in_turn({w: partial(_timed, stream, *one) for w, one in asking.items()}, config.rounds)
    alone, together, as_one = (took[what] for what in shapes)
    return Questions(
        memory=name,
        slots=slots,
        count=count,
        alone=float(np.median(alone)) * 1e3,
        together=float(np.median(together)) * 1e3,
        as_one=float(np.median(as_one)) * 1e3,
        against_alone=ratio(together, count * alone),
        against_as_one=ratio(together, as_one),
    )


def _rows(stream: Stream, count: int, length: int) -> Any:
    """Return `count` drawn questions of `length` rows, on a leading axis."""
    program, rng = stream.program, np.random.default_rng(0)
    ids = rng.integers(3, program.config.vocab, (count, length))
    each = [question_rows(stream.bound.params, x, program=program, size=length) for x in ids]
    return jax.tree.map(lambda *x: jnp.stack(x), *each)


def asking_of(stream: Stream, count: int, length: int, max_new: int = 1) -> Any:
    """Return the compiled program that answers so many questions of so many rows."""
    return _asking(stream, count, length, max_new)[0]


def _asking(stream: Stream, count: int, length: int, max_new: int = 1) -> tuple[Any, Any]:
    """Return that program, and the questions."""
    rows = _rows(stream, count, length)
    more = {"program": stream.program, "max_new": max_new}
    return ask_all.lower(stream.bound, stream.carry, rows, **more).compile(), rows


def _timed(stream: Stream, asking: Any, rows: Any) -> float:
    begin = stream.clock()
    np.asarray(asking(stream.bound, stream.carry, rows).ids)
    return stream.clock() - begin


def questions_table(config: StepConfig, found: list[Questions], weights: str) -> Table:
    """Return a line for every memory and number of slots."""
    title = (
        f"{config.questions} questions of {QUESTION} tokens at one moment: {config.model}, "
        f"{config.clock} time"
    )
    table = Table(title=title, caption=weights)
    for column in ("memory", "slots", "one ms", "all ms", "as one ms", "/ one by one", "/ as one"):
        table.add_column(column, justify="left" if column == "memory" else "right")
    for row in found:
        table.add_row(
            row.memory,
            f"{row.slots:,}",
            f"{row.alone:.1f}",
            f"{row.together:.1f}",
            f"{row.as_one:.1f}",
            f"{row.against_alone:.2f}",
            f"{row.against_as_one:.2f}",
        )
    return table

"""The chunk step, questions and answers in turn with transformers and kvpress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from jaxmem.asking import ask
from jaxmem.bound import question_rows
from jaxmem.experiments.benchmark.step import StepConfig, check
from jaxmem.experiments.benchmark.step_model import (
    CLOCKS,
    QUESTION,
    Run,
    StepModel,
    Stream,
    in_turn,
    model_of,
    program_of,
    ratio,
)
from jaxmem.experiments.benchmark.step_theirs import PRESSES, Theirs
from jaxmem.memory.by_name import parse_names

OTHERS = ("transformers", "kvpress")
ANSWER = 32  # tokens
GOALS = {"chunk": 0.8, "first token": 0.8, "token": 0.6}


class Against(NamedTuple):
    """One thing that both do."""

    what: str  # chunk, first token, token
    other: str
    memory: str
    slots: int
    ours: float  # milliseconds
    theirs: float
    ratio: float  # ours / theirs, median of paired ratios
    low: float  # quartiles of these ratios
    high: float

    @property
    def goal(self) -> float:
        """Return the largest ratio that is wanted."""
        return GOALS[self.what]


def measure_against(config: StepConfig, model: StepModel | None = None) -> list[Against]:
    """Return how our steps compare with those of others, all timed in turn in this process.

    Raises:
      ValueError: if a package is missing, the decoder is no Llama, or a memory has no counterpart.
    """
    check(config)
    others = tuple((config.against or "").split(","))
    if not set(others) <= set(OTHERS):
        raise ValueError(f"--against takes {' and '.join(OTHERS)}, got {config.against}.")
    names = parse_names(config.memories)
    alone = [n for n in names if n not in PRESSES]
    if others == ("kvpress",) and alone:
        raise ValueError(
            f"kvpress has no {', '.join(alone)}; the memories that both have are "
            f"{', '.join(PRESSES)}."
        )
    model = model or model_of(config.model)
    return [
        row
        for slots in (int(n) for n in config.slots.split(","))
        for row in _at_slots(config, model, names, others, slots)
    ]


def _at_slots(
    config: StepConfig,
    model: StepModel,
    names: tuple[str, ...],
    others: tuple[str, ...],
    slots: int,
) -> list[Against]:
    streams = {}
    for name in dict.fromkeys(("recent", *names)):
        program = program_of(model.config, name, slots, config.chunk)
        streams[name] = Stream(program, model.params, config.clock).fill(slots)
    x = np.asarray(streams["recent"].inputs.x)
    theirs = Theirs(model, x, slots, config.clock, config.threads)
    runs: dict[Any, Run] = {("ours", name): streams[name] for name in names}
    pairs: list[tuple[str, str, str, Any, Any]] = []
    if "transformers" in others:
        runs["prefill"] = theirs.prefill()
        pairs += [("chunk", "transformers", name, ("ours", name), "prefill") for name in names]
    for name in names if "kvpress" in others else ():
        if name in PRESSES:
            runs["press", name] = theirs.press(name)
            pairs.append(("chunk", "kvpress", name, ("ours", name), ("press", name)))
    took = in_turn(runs, config.rounds)
    rows = [
        _row(what, other, name, slots, took[mine], took[them])
        for what, other, name, mine, them in pairs
    ]
    return rows + (_asked(config, streams["recent"], theirs, slots) if OTHERS[0] in others else [])


def _row(
    what: str, other: str, memory: str, slots: int, ours: np.ndarray, theirs: np.ndarray
) -> Against:
    low, high = (float(q) for q in np.quantile(ours / theirs, (0.25, 0.75)))
    mine, other_ms = (float(np.median(t)) * 1e3 for t in (ours, theirs))
    return Against(what, other, memory, slots, mine, other_ms, ratio(ours, theirs), low, high)


def _asked(config: StepConfig, stream: Stream, theirs: Theirs, slots: int) -> list[Against]:
    """Return the rows of a question's first token, and of each token after it."""
    ids = np.random.default_rng(0).integers(3, stream.program.config.vocab, QUESTION)

    def ours(count: int) -> Callable[[], float]:
        rows = question_rows(stream.bound.params, ids, program=stream.program)

        def run() -> float:
            begin = CLOCKS[config.clock]()
            answer = ask(stream.bound, stream.carry, rows, program=stream.program, max_new=count)
            np.asarray(answer.ids)
            return CLOCKS[config.clock]() - begin

        return run

    runs = {
        (who, count): make(count)
        for count in (1, 1 + ANSWER)
        for who, make in (("ours", ours), ("theirs", lambda count: theirs.answer(ids, count)))
    }
    took = in_turn(runs, config.rounds)
    first = {who: took[who, 1] for who in ("ours", "theirs")}
    each = {who: (took[who, 1 + ANSWER] - t) / ANSWER for who, t in first.items()}
    return [
        _row(what, "transformers", "recent", slots, t["ours"], t["theirs"])
        for what, t in (("first token", first), ("token", each))
    ]


def against_table(config: StepConfig, rows: list[Against], weights: str) -> Table:
    """Return a line for everything that was compared."""
    title = f"Against others: {config.model}, {config.chunk} tokens, {config.clock} time"
    table = Table(title=title, caption=weights)
    for column in ("what", "other", "memory", "slots", "ours ms", "theirs ms", "ratio", "quartiles",
                   "goal", "met"):  # fmt: skip
        table.add_column(
            column, justify="left" if column in ("what", "other", "memory") else "right"
        )
    for row in rows:
        table.add_row(
            row.what,
            row.other,
            row.memory,
            f"{row.slots:,}",
            f"{row.ours:.1f}",
            f"{row.theirs:.1f}",
            f"{row.ratio:.2f}",
            f"{row.low:.2f} to {row.high:.2f}",
            f"{row.goal:.1f}",
            "yes" if row.ratio <= row.goal else "no",
        )
    return table

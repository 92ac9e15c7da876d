"""Compare memories on held-out streams at equal bytes.

python -m jaxmem.experiments.evaluate recall --out experiments/memory_comparison
python -m jaxmem.experiments.evaluate diagnose --budget 128KiB
python -m jaxmem.experiments.evaluate benchmark --name ovo-bench --data OVO-Bench --model DIR
python -m jaxmem.experiments.evaluate text --memories full,recent,keydiff
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console

from jaxmem.compiled import make_room
from jaxmem.experiments.evaluate.benchmark import benchmark
from jaxmem.experiments.evaluate.benchmark_config import BenchmarkConfig
from jaxmem.experiments.evaluate.cells import (
    CellBar,
    begun,
    reopened,
    show_left_out,
    show_tables,
)
from jaxmem.experiments.evaluate.diagnose import DiagnoseConfig, run_diagnose
from jaxmem.experiments.evaluate.recall import measure_times, run_cell, sizes_of
from jaxmem.experiments.evaluate.recall_rows import Row, alone, budgets_of, rows_of
from jaxmem.experiments.evaluate.recall_streams import Streams, StreamsConfig, streams_of
from jaxmem.experiments.evaluate.text import run_named
from jaxmem.experiments.evaluate.text_streams import TextConfig
from jaxmem.experiments.memories import read_options, split_options
from jaxmem.experiments.parsing import refusing, shown
from jaxmem.experiments.stream.config import try_folder
from jaxmem.memory.by_name import (
    Contestant,
    Wrapped,
    check_around,
    contestants,
    parse_budget,
    parse_names,
    why_bare,
)
from jaxmem.memory.options import NAMES, options_of, plain_options
from jaxmem.models.base import Model
from jaxmem.models.scorer import without_scorer
from jaxmem.programs import model_spec
from jaxmem.report import recall as report
from jaxmem.report.commit import made_by
from jaxmem.report.files import write_json, write_picture

FORMAT, VERSION = "jaxmem-recall", 1


@dataclass(frozen=True)
class RecallConfig(StreamsConfig):
    """Right answers of the embedded model with every memory, at equal device bytes."""

    # Names, comma-separated; `full` is the reference and has no budget.
    memories: str = ",".join(NAMES)
    # Further models, whose layers have states: MODEL, or MODEL+MEMORY where some of them attend.
    # Names or files as for --weights, comma-separated. A state is its own budget.
    states: str = ""
    # Bytes of the state over all layers, from starving to ample.
    budgets: tuple[str, ...] = ("32KiB", "128KiB", "512KiB", "2MiB")
    seconds: tuple[int, ...] = (64, 128, 256)  # Lengths of the streams.
    timed: str = "512KiB"  # Budget at which times are measured (longest streams); empty: none.
    measured_only: bool = False  # Measure nothing: tables and plots of the cells that are there.
    # Folder of cells (one file each: a stopped run goes on where it was), tables and plots.
    out: Path = Path("out/recall")
    bits: Literal[4, 8] | None = None  # Store keys and values in so many bits.


@dataclass(frozen=True)
class Plan:
    """One cell that is to be measured."""

    name: str  # of its row
    budget: str
    seconds: int

    @property
    def stem(self) -> str:
        """Name of its file."""
        return f"{self.name}_{self.budget}_{self.seconds}s"


def plans(config: RecallConfig, rows: Sequence[Row]) -> list[tuple[Plan, Row]]:
    """Return all cells, those that share compiled programs one after the other."""
    return [
        (Plan(row.name, budget, seconds), row)
        for row in rows
        for budget in budgets_of(row, config.budgets)
        for seconds in config.seconds
    ]


def path_of(config: RecallConfig, plan: Plan) -> Path:
    """Return the file of a cell."""
    return config.out / "cells" / f"{plan.stem}.json"


def fingerprint(config: RecallConfig, model: Model, name: str) -> str:
    """Return what tells results of other settings or weights from these; `name` of a memory."""
    keys = ("streams", "questions", "moments", "chunk_seconds", "difficulty")
    settings: dict[str, Any] = {key: getattr(config, key) for key in keys}
    if config.split != "test":  # what was measured before there was a choice stays measured
        settings["split"] = config.split
    own = {**model.presets.get(name, {}), **config.options.get(name, {})}
    settings["options"] = plain_options(name, own) if name else {}
    settings |= {"bank": dict(config.options.get("bank", {})), "bits": config.bits}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    weights = model.params if name == "retention" else without_scorer(model)
    for leaf in jax.tree.leaves(weights):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def chosen_for(config: RecallConfig, row: Row, budget: str, tokens: int) -> Contestant:
    """Return the memory of a row within a budget.

    Raises:
      ValueError: if the budget holds no such memory.
    """
    name, model = row.memory, row.model
    if not name:
        return alone(row)
    # A bank and `full` hold the longest stream, so that all lengths share one program.
    allowed = parse_budget("1" if budget == "all" else budget)
    taken = {around for around in ("bits", "bank") if not why_bare(name, around)}
    options = {k: v for k, v in config.options.items() if k == name or k in taken}
    more = {"presets": model.presets, "bits": config.bits if "bits" in taken else None}
    spec = model_spec(model, config.chunk_seconds)
    (chosen,) = contestants((name,), options, allowed, spec, tokens, **more)
    return chosen


def measure(
    config: RecallConfig, rows: Sequence[Row], made: Callable[[int], Streams]
) -> Iterator[tuple[Plan, Row, dict[str, Any]]]:
    """Measure what no file holds yet, and yield all cells in order.

    Where `measured_only` leaves a cell out, it has neither answers nor a refusal.
    `made` returns the streams of a length, and is called when they are first needed.

    Raises:
      ValueError: if a file is no cell.
    """
    named = {row.name: row for row in rows}
    marks = {name: fingerprint(config, row.model, row.memory) for name, row in named.items()}

    @functools.lru_cache(maxsize=1)  # the last one, for all lengths: compiled once
    def choose(name: str, budget: str) -> Contestant:
        make_room()
        tokens = max(config.seconds) * named[name].model.tokens_per_piece
        return chosen_for(config, named[name], budget, tokens)

    for plan, row in plans(config, rows):
        path, new = path_of(config, plan), begun(marks[plan.name], **asdict(plan))
        cell = held = reopened(path, new)
        if not settled(config, row, plan, held):
            try:
                chosen = choose(plan.name, plan.budget)
            except ValueError as error:  # not to fit its budget is a result, too
                cell = new | {"refused": str(error)}
            else:
                sizes = sizes_of(chosen, model_spec(row.model, config.chunk_seconds))
                same = "right" in held and sizes.items() <= held.items()
                cell = completed(config, row, plan, chosen, made, held if same else new)
        if says_more(cell, held) and not config.measured_only:
            write_json(path, cell)
        yield plan, row, cell


def settled(config: RecallConfig, row: Row, plan: Plan, held: dict[str, Any]) -> bool:
    """Return whether a cell stays as its file has it, whatever memory this run would choose.

    Memories that hold the whole stream are made for the longest one of a run, so neither a refusal
    nor answers of such a memory in a file need be those of this run.
    """
    if "right" not in held:
        return config.measured_only and "refused" not in held
    sized = bool(row.memory) and "capacity" in options_of(row.memory)
    return not sized and not lacks_times(config, row, plan, held)


def lacks_times(config: RecallConfig, row: Row, plan: Plan, cell: dict[str, Any]) -> bool:
    """Return whether times are wanted that a cell does not have."""
    here = not row.memory or plan.budget in (config.timed, "all")
    wanted = bool(config.timed) and here and plan.seconds == max(config.seconds)
    return wanted and "times" not in cell and not config.measured_only


def completed(
    config: RecallConfig,
    row: Row,
    plan: Plan,
    chosen: Contestant,
    made: Callable[[int], Streams],
    cell: dict[str, Any],
) -> dict[str, Any]:
    """Return a cell with the answers and times that it lacks."""
    if config.measured_only:
        return cell
    spec = model_spec(row.model, config.chunk_seconds)
    if "right" not in cell:
        between = [s // (config.moments * config.chunk_seconds) for s in config.seconds]
        segment = math.gcd(*between)
        cell = cell | run_cell(row.model, chosen, spec, made(plan.seconds), segment=segment)
    if lacks_times(config, row, plan, cell):
        times = measure_times(row.model, chosen, spec, made(plan.seconds))
        cell = cell | {"times": {**times, **made_by()}}  # perhaps not what made the answers
    return cell


def says_more(cell: dict[str, Any], held: dict[str, Any]) -> bool:
    """Return whether a cell is to replace that of its file; a refusal never replaces answers."""
    if "refused" in cell:
        return "right" not in held and cell["refused"] != held.get("refused")
    return cell is not held


def outcome(plan: Plan, row: Row, cell: dict[str, Any], made: Streams) -> report.Outcome:
    """Return a cell with what was asked."""
    times = cell.get("times") or {}
    return report.Outcome(
        memory=plan.name,
        budget=plan.budget,
        seconds=plan.seconds,
        right=np.array([[[c == "1" for c in row] for row in part] for part in cell["right"]]),
        type=made.asked.type,
        age=made.asked.age,
        nbytes=cell["nbytes"],
        bank_nbytes=cell["bank_nbytes"],
        states_nbytes=row.states,
        chunk_ms=times.get("chunk"),
        first_token_ms=times.get("first_token"),
    )


def write(config: RecallConfig, outcomes: Sequence[report.Outcome], console: Console) -> None:
    """Print the tables and write JSON, tables and plots."""
    longest = max(config.seconds)
    budget = config.timed if config.timed in config.budgets else config.budgets[-1]
    tables = [report.table(outcomes, seconds) for seconds in config.seconds]
    here = [o for o in outcomes if o.seconds == longest and report.shown_at(o, budget)]
    for title, split in (("type of question", report.by_type), ("age of evidence", report.by_age)):
        parts = {o.memory: split(o) for o in here}
        tables.append(report.split_table(here, parts, f"{longest} s streams, {budget}: {title}"))
    show_tables(tables, config.out / "tables.txt", console, width=240)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "config": {k: str(v) for k, v in asdict(replace(config, options={})).items()},
        "jax": jax.__version__,
        "device": str(jax.devices()[0].device_kind),
        "cells": [report.as_dict(one) for one in outcomes],
    }
    write_json(config.out / "results.json", document)
    write_picture(config.out / "budgets.png", report.plot_budgets(outcomes))
    write_picture(config.out / "ages.png", report.plot_ages(outcomes, longest, budget))
    console.print(f"written to {config.out}", markup=False)


def recall(config: RecallConfig, console: Console) -> list[report.Outcome]:
    """Measure, print and write the comparison.

    Raises:
      ValueError: for unknown names, budgets in slots, lengths that cannot be cut, an --out that
        cannot be written to or holds a file that is no cell, or if no memory fits its budget.
    """
    for budget in config.budgets:
        if parse_budget(budget).nbytes is None:
            raise ValueError(f"--budgets are bytes over all layers (64KiB), got {budget!r}.")
    around = Wrapped(config.bits, config.options.get("bank", {}))
    model = config.model
    rows = rows_of(model, config.memories, config.states)
    for note in check_around([row.memory for row in rows if row.memory], around):
        console.print(note, markup=False)
    try_folder("out", config.out)
    made = functools.cache(lambda seconds: streams_of(config, model, seconds))
    cells = []
    with CellBar(len(plans(config, rows)), console) as bar:
        for plan, row, cell in measure(config, rows, made):
            cells.append((plan, row, cell))
            bar.advance(plan.stem)
    outcomes = []
    for plan, row, cell in cells:
        if "refused" in cell:
            console.print(f"{plan.stem}: {cell['refused']}", markup=False)
        elif "right" in cell:
            outcomes.append(outcome(plan, row, cell, made(plan.seconds)))
    absent = [plan for plan, _, cell in cells if not {"right", "refused"} & set(cell)]
    show_left_out([path_of(config, plan) for plan in absent], console)
    if not outcomes:
        raise ValueError("nothing was measured, so there is nothing to compare.")
    write(config, outcomes, console)
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one evaluation; return the exit status (0, or 2 for bad arguments)."""
    return refusing(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    rest, words = split_options(argv)
    commands = {
        "recall": RecallConfig,
        "diagnose": DiagnoseConfig,
        "benchmark": BenchmarkConfig,
        "text": TextConfig,
    }
    told = shown("evaluate", __doc__)
    config = tyro.extras.subcommand_cli_from_dict(commands, args=rest, **told)
    options = read_options(words, {})
    beside = [text.partition("+")[2] for text in getattr(config, "states", "").split(",")]
    which = "memory" if isinstance(config, BenchmarkConfig) else "memories"
    named = parse_names(getattr(config, which)) if getattr(config, which) else ()
    if idle := set(options) - {*named, *(name.strip() for name in beside), "bank"}:
        raise ValueError(f"--{min(idle)}.* has no effect: it is not among --{which}.")
    config = replace(config, options=options)
    if isinstance(config, BenchmarkConfig):
        benchmark(config, Console())
    elif isinstance(config, DiagnoseConfig):
        run_diagnose(config, Console())
    elif isinstance(config, TextConfig):
        run_named(config, Console())
    else:
        recall(config, Console())


if __name__ == "__main__":
    raise SystemExit(main())

"""The comparison of memories on held-out streams, to its tables and pictures."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from jaxmem.experiments.evaluate.cells import CellBar, settings_of, show_left_out, show_tables
from jaxmem.experiments.evaluate.recall_cells import Plan, measure, path_of, plans
from jaxmem.experiments.evaluate.recall_config import RecallConfig
from jaxmem.experiments.evaluate.recall_rows import Row, rows_of
from jaxmem.experiments.evaluate.recall_streams import Streams, streams_of
from jaxmem.experiments.stream.config import try_folder
from jaxmem.memory.by_name import Wrapped, check_around, parse_budget
from jaxmem.report import recall as report
from jaxmem.report.files import write_json, write_picture

FORMAT, VERSION = "jaxmem-recall", 1


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
        **settings_of(config),
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

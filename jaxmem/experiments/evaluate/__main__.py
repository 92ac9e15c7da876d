"""Compare memories on held-out streams at equal bytes.

python -m jaxmem.experiments.evaluate recall --out experiments/memory_comparison
python -m jaxmem.experiments.evaluate diagnose --budget 128KiB
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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxmem.experiments.evaluate.diagnose import DiagnoseConfig, run_diagnose
from jaxmem.experiments.evaluate.recall import measure_times, run_cell
from jaxmem.experiments.evaluate.recall_streams import Streams, StreamsConfig, streams_of
from jaxmem.experiments.memories import read_options, split_options
from jaxmem.experiments.parsing import refusing
from jaxmem.memory.by_name import (
    Contestant,
    Wrapped,
    check_around,
    contestants,
    parse_budget,
    parse_names,
    why_bare,
)
from jaxmem.memory.options import NAMES, plain_options
from jaxmem.models.base import Model
from jaxmem.models.scorer import without_scorer
from jaxmem.programs import model_spec
from jaxmem.report import recall as report
from jaxmem.report.files import write_json, write_picture

FORMAT, VERSION = "jaxmem-recall", 1


@dataclass(frozen=True)
class RecallConfig(StreamsConfig):
    """Right answers of the embedded model with every memory, at equal device bytes."""

    # Names, comma-separated; `full` is the reference and has no budget.
    memories: str = ",".join(NAMES)
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

    name: str
    budget: str
    seconds: int

    @property
    def stem(self) -> str:
        """Name of its file."""
        return f"{self.name}_{self.budget}_{self.seconds}s"


def plans(config: RecallConfig) -> list[Plan]:
    """Return all cells, those that share compiled programs one after the other."""
    out = []
    for name in parse_names(config.memories):
        budgets = ("all",) if name == "full" else config.budgets
        out += [Plan(name, b, s) for b in budgets for s in config.seconds]
    return out


def fingerprint(config: RecallConfig, model: Model, name: str) -> str:
    """Return what tells results of other settings or weights from these."""
    keys = ("streams", "questions", "moments", "chunk_seconds", "difficulty")
    settings: dict[str, Any] = {key: getattr(config, key) for key in keys}
    own = {**model.presets.get(name, {}), **config.options.get(name, {})}
    settings["options"] = plain_options(name, own)
    settings |= {"bank": dict(config.options.get("bank", {})), "bits": config.bits}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    weights = model.params if name == "retention" else without_scorer(model)
    for leaf in jax.tree.leaves(weights):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def chosen_for(config: RecallConfig, model: Model, plan: Plan, tokens: int) -> Contestant:
    """Return the memory of a cell within its budget.

    Raises:
      ValueError: if the budget holds no such memory.
    """
    # A bank and `full` hold the longest stream, so that all lengths share one program.
    budget = parse_budget("1" if plan.budget == "all" else plan.budget)
    taken = {around for around in ("bits", "bank") if not why_bare(plan.name, around)}
    options = {k: v for k, v in config.options.items() if k == plan.name or k in taken}
    more = {"presets": model.presets, "bits": config.bits if "bits" in taken else None}
    spec = model_spec(model, config.chunk_seconds)
    (chosen,) = contestants((plan.name,), options, budget, spec, tokens, **more)
    return chosen


def measure(
    config: RecallConfig, model: Model, made: Callable[[int], Streams]
) -> Iterator[tuple[Plan, dict[str, Any]]]:
    """Measure every cell that has no file yet, and yield all of them in order.

    `made` returns the streams of a length, and is called when they are first needed.
    """
    marks = {name: fingerprint(config, model, name) for name in parse_names(config.memories)}
    chosen: dict[tuple[str, str], Contestant] = {}  # one for all lengths: compiled once
    tokens = max(config.seconds) * model.tokens_per_piece
    for plan in plans(config):
        path = config.out / "cells" / f"{plan.stem}.json"
        mark = marks[plan.name]
        cell = json.loads(path.read_text()) if path.is_file() else {}
        if cell.get("fingerprint") != mark:
            if config.measured_only:
                continue
            cell = {"fingerprint": mark, **asdict(plan)}
            try:
                key = plan.name, plan.budget
                chosen[key] = chosen.get(key) or chosen_for(config, model, plan, tokens)
            except ValueError as error:  # not to fit its budget is a result, too
                cell |= {"refused": str(error)}
            else:
                cell |= measure_one(config, model, plan, chosen[key], made(plan.seconds))
            write_json(path, cell)
        yield plan, cell


def measure_one(
    config: RecallConfig, model: Model, plan: Plan, chosen: Contestant, made: Streams
) -> dict[str, Any]:
    """Measure one cell."""
    between = [s // (config.moments * config.chunk_seconds) for s in config.seconds]
    spec = model_spec(model, config.chunk_seconds)
    cell = run_cell(model, chosen, spec, made, segment=math.gcd(*between))
    if plan.seconds == max(config.seconds) and plan.budget in (config.timed, "all"):
        cell["times"] = measure_times(model, chosen, spec, made)
    return cell


def outcome(plan: Plan, cell: dict[str, Any], made: Streams) -> report.Outcome:
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
        chunk_ms=times.get("chunk"),
        first_token_ms=times.get("first_token"),
    )


def write(config: RecallConfig, outcomes: Sequence[report.Outcome], console: Console) -> None:
    """Print the tables and write JSON, tables and plots."""
    longest = max(config.seconds)
    budget = config.timed if config.timed in config.budgets else config.budgets[-1]
    tables = [report.table(outcomes, seconds) for seconds in config.seconds]
    here = [o for o in outcomes if o.seconds == longest and o.budget in (budget, "all")]
    for title, split in (("type of question", report.by_type), ("age of evidence", report.by_age)):
        parts = {o.memory: split(o) for o in here}
        tables.append(report.split_table(here, parts, f"{longest} s streams, {budget}: {title}"))
    for one in tables:
        console.print(one)
    with (config.out / "tables.txt").open("w") as file:
        text = Console(width=240, file=file)
        for one in tables:
            text.print(one)
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
      ValueError: for unknown names, budgets that hold no memory, or lengths that cannot be cut.
    """
    for budget in config.budgets:
        if parse_budget(budget).nbytes is None:
            raise ValueError(f"--budgets are bytes over all layers (64KiB), got {budget!r}.")
    around = Wrapped(config.bits, config.options.get("bank", {}))
    for note in check_around(parse_names(config.memories), around):
        console.print(note, markup=False)
    model = config.model
    made = functools.cache(lambda seconds: streams_of(config, model, seconds))
    cells = []
    columns = [TextColumn("{task.fields[at]:<28}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("cells", total=len(plans(config)), at="")
        for plan, cell in measure(config, model, made):
            cells.append((plan, cell))
            progress.update(task, advance=1, at=plan.stem)
    outcomes = []
    for plan, cell in cells:
        if "refused" in cell:
            console.print(f"{plan.stem}: {cell['refused']}", markup=False)
        else:
            outcomes.append(outcome(plan, cell, made(plan.seconds)))
    write(config, outcomes, console)
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Run one evaluation; return the exit status (0, or 2 for bad arguments)."""
    return refusing(lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    rest, words = split_options(argv)
    commands = {"recall": RecallConfig, "diagnose": DiagnoseConfig}
    config = tyro.extras.subcommand_cli_from_dict(commands, args=rest, description=__doc__)
    options = read_options(words, {})
    idle = set(options) - {*parse_names(config.memories), "bank"}
    if idle:
        raise ValueError(f"--{min(idle)}.* has no effect: it is not among --memories.")
    config = replace(config, options=options)
    if isinstance(config, DiagnoseConfig):
        run_diagnose(config, Console())
    else:
        recall(config, Console())


if __name__ == "__main__":
    raise SystemExit(main())

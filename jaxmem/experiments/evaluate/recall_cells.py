"""The cells of a comparison: which there are, which a run measures, and what their files keep."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmem.compiled import make_room
from jaxmem.experiments.evaluate.cells import begun, reopened, stored
from jaxmem.experiments.evaluate.recall import measure_times, run_cell, sizes_of
from jaxmem.experiments.evaluate.recall_config import RecallConfig
from jaxmem.experiments.evaluate.recall_rows import Row, alone, budgets_of
from jaxmem.experiments.evaluate.recall_streams import Streams
from jaxmem.memory.by_name import Contestant, contestants, parse_budget, why_bare
from jaxmem.memory.options import options_of, plain_options
from jaxmem.models.base import Model
from jaxmem.models.scorer import without_scorer
from jaxmem.programs import model_spec
from jaxmem.report.commit import made_by


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
            stored(path, cell)
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

"""The table at the end: right answers on held-out streams before and after, at equal questions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.table import Table

from jaxmem.experiments.evaluate.recall import run_cell
from jaxmem.experiments.evaluate.recall_streams import Streams, streams_of
from jaxmem.experiments.finetune.config import FinetuneConfig
from jaxmem.experiments.finetune.loops import full_of, share_of
from jaxmem.memory.base import AnyMemory
from jaxmem.memory.by_name import Contestant
from jaxmem.models.base import Model
from jaxmem.programs import model_spec
from jaxmem.report.recall import Outcome, by_type, difference
from jaxmem.report.shares import Share, plain_share, share


def measured(config: FinetuneConfig, before: Model, after: Model) -> Iterator[dict[str, Any]]:
    """Yield right answers before and after, and the paired difference, for every row of the table.

    A row is a share of the budget, or full attention, on streams of one length.
    """
    longest = max(config.test_seconds)
    rows: list[tuple[str, AnyMemory]] = [
        (f"{config.memory} {_part(part)}{config.budget}", share_of(config, before, part, longest))
        for part in sorted(set(config.shares), reverse=True)
    ]
    rows.append(("full attention", full_of(config, before, longest)))
    for seconds in config.test_seconds:
        made = streams_of(config.tests, before, seconds)
        for name, memory in rows:
            pair = [_outcome(config, model, name, memory, made) for model in (before, after)]
            yield _row(name, seconds, *pair)


def _part(share: float) -> str:
    return "" if share == 1 else f"{share:g} x "


def _outcome(
    config: FinetuneConfig, model: Model, name: str, memory: AnyMemory, made: Streams
) -> Outcome:
    """Return which questions a model answers right with a memory."""
    spec, moments = model_spec(model, config.chunk_seconds), config.tests.moments
    between = [s // (moments * config.chunk_seconds) for s in config.test_seconds]
    chosen = Contestant(name, memory, {}, 0, reference=False)
    cell = run_cell(model, chosen, spec, made, segment=math.gcd(*between))
    right = np.array([[[c == "1" for c in row] for row in part] for part in cell["right"]])
    sizes = cell["nbytes"], cell["bank_nbytes"]
    return Outcome(name, "", made.seconds, right, made.asked.type, made.asked.age, *sizes)


def _row(name: str, seconds: int, before: Outcome, after: Outcome) -> dict[str, Any]:
    """Return a row as plain data."""
    pair = {"before": before, "after": after}
    return {
        "memory": name,
        "seconds": seconds,
        "nbytes": before.nbytes,
        **{k: plain_share(share(one.right)) for k, one in pair.items()},
        "gain": plain_share(difference(after, before)),
        "by_type": {
            kind: [plain_share(by_type(one)[kind]) for one in pair.values()]
            for kind in by_type(before)
        },
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    title = "right answers on held-out streams, % (95 % intervals over streams; the gain is paired)"
    table = Table("memory", "streams", "before", "after", "gain", title=title)
    for row in rows:
        cells = [Share(**row[name]) for name in ("before", "after", "gain")]
        texts = [f"{100 * s.share:.1f} ({100 * s.low:.1f} to {100 * s.high:.1f})" for s in cells]
        table.add_row(row["memory"], f"{row['seconds']} s", *texts)
    return table


def types_of(row: dict[str, Any]) -> Table:
    """Return a row by type of question."""
    table = Table("question", "before", "after", title=f"{row['memory']}, {row['seconds']} s")
    for name, pair in row["by_type"].items():
        table.add_row(name, *("-" if s is None else f"{100 * s['share']:.1f}" for s in pair))
    return table

"""Write `tables.md`: every cell of this folder, by length, type of question and age of evidence.

    python experiments/states_against_slots/tables.py

Right answers in % with 95 % bootstrap intervals over streams, of all models that were compared at
about 274 KiB (291 on an hour); nothing is measured.
"""

import json
from pathlib import Path

import jax
import numpy as np

from jaxmem.data.world import synthetic
from jaxmem.experiments.evaluate.recall_streams import Asked, StreamsConfig, asked_of
from jaxmem.memory import MEMORIES
from jaxmem.models.base import Model
from jaxmem.models.tiny.embedded import embedded
from jaxmem.report import recall as report
from jaxmem.report.shares import Share, share

HERE = Path(__file__).parent
BUDGETS = ("205KiB", "268KiB", "274KiB", "291KiB", "all")
STREAMS = {64: 24, 128: 24, 256: 24, 3600: 12}
"""Seconds of a stream -> how many were asked about."""


def asked(model: Model, seconds: int) -> Asked:
    """Return the questions of all test streams of a length [M, B, n], as `evaluate recall` asks."""
    usual, level = StreamsConfig(), synthetic.level("standard")
    seeds = (synthetic.split_seed("test", i) for i in range(STREAMS[seconds]))
    worlds = (synthetic.world(seed, seconds, level) for seed in seeds)
    each = [asked_of(model, world, usual.moments, usual.questions) for world in worlds]
    return jax.tree.map(lambda *x: np.stack(x, 1), *each)


def outcomes(asked: Asked, seconds: int) -> list[report.Outcome]:
    """Return the cells of a length, those that answer most first."""
    found: dict[str, report.Outcome] = {}
    for path in sorted(HERE.glob(f"*/cells/*_{seconds}s.json")):
        name, budget, _ = path.stem.rsplit("_", 2)
        cell = json.loads(path.read_text())
        if budget not in BUDGETS or "right" not in cell:
            continue
        right = np.array([[[c == "1" for c in row] for row in part] for part in cell["right"]])
        if right.shape != asked.age.shape:
            raise ValueError(f"{path} has {right.shape} answers, expected {asked.age.shape}.")
        row = f"{title_of(name)}, {'everything kept' if budget == 'all' else budget}"
        sizes = cell["nbytes"], cell["bank_nbytes"]
        one = report.Outcome(row, budget, seconds, right, asked.type, asked.age, *sizes)
        found.setdefault(row, one)
    return sorted(found.values(), key=lambda one: -one.right.mean())


def title_of(name: str) -> str:
    """Return a model and its memory in words; a memory alone is one of `tiny`."""
    model, _, memory = name.partition("+")
    if model in MEMORIES:
        model, memory = "tiny", model
    return f"`{model}`" + (f" with `{memory}`" if memory else "")


def words(found: Share | None) -> str:
    """Return a share with its interval, in %."""
    if found is None:
        return "-"
    low, high = (f"{100 * x:.0f}" for x in (found.low, found.high))
    return f"{100 * found.share:.1f} ({low} to {high})"


def table(rows: dict[str, dict[str, Share | None]]) -> str:
    """Return rows of shares as a table of Markdown."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(words(row.get(column)) for column in columns)] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Write the tables."""
    model = embedded()
    parts = ["# States against slots: all cells", __doc__.rpartition("\n\n")[2].strip()]
    parts.append("`tiny-*` come with the package; the others are named in the [README](README.md).")
    for seconds in STREAMS:
        here = outcomes(asked(model, seconds), seconds)
        title = "an hour" if seconds == 3600 else f"{seconds} s"
        parts.append(f"## Streams of {title}")
        whole = {one.memory: {"all": share(one.right)} for one in here}
        by_type = {one.memory: whole[one.memory] | report.by_type(one) for one in here}
        by_age = {one.memory: whole[one.memory] | report.by_age(one) for one in here}
        parts += ["By type of question:", table(by_type), "By age of the evidence:", table(by_age)]
    (HERE / "tables.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()

"""Write the table of all memories into docs/memories/README.md, from the classes themselves.

    python docs/memory_table.py

Nothing in it is written by hand: papers are those that the docstrings name, options and defaults
are the fields, and what a memory needs is what it tells the decoder (`requires`, `bank`).
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import is_dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from jaxmem.experiments.memories import options_class
from jaxmem.kv import Modality
from jaxmem.memory import MEMORIES
from jaxmem.memory.base import AnyMemory, FeatureMemory, Spec
from jaxmem.memory.omnimem.budgets import resized
from jaxmem.memory.options import MORE
from jaxmem.rope import rope_1d

PAGE = Path(__file__).resolve().parent / "memories" / "README.md"
BEGIN = "<!-- table: written by docs/memory_table.py -->"
END = "<!-- end of the table -->"
SPEC = Spec(
    layers=28, kv_heads=4, head_dim=128, width=3584, rope=rope_1d(128), frame=(16, 16),
    audio_tokens=25,
)  # fmt: skip
COLUMNS = (
    *("memory", "class", "paper", "sees", "needs while watching", "a question reads"),
    "options and their defaults",
)


def made(name: str) -> AnyMemory:
    """Return a memory with its defaults."""
    kind: Any = MEMORIES[name]
    if hasattr(kind, "of"):
        return kind.of(4096)
    if "budget" in kind.__dataclass_fields__:
        return kind(4096)
    return kind() if issubclass(kind, FeatureMemory) else resized(kind(), 4096, SPEC)


def link(name: str) -> str:
    """Return a link to the page of a memory; some pages are about two."""
    for page in sorted(PAGE.parent.glob("*.md")):
        title = page.read_text().partition("\n")[0].removeprefix("# ")
        if name in title.split(", "):
            return f"[{name}]({page.name})"
    raise ValueError(f"{name} has no page in {PAGE.parent}: write docs/memories/{name}.md.")


def paper(name: str) -> str:
    """Return the first arXiv number of the docstring of a class, or else of its module."""
    kind = MEMORIES[name]
    for text in (kind.__doc__, sys.modules[kind.__module__].__doc__):
        found = re.search(r"\d{4}\.\d{5}", text or "")
        if found:
            return f"[{found[0]}](https://arxiv.org/abs/{found[0]})"
    return "-"


def sees(memory: AnyMemory) -> str:
    """Return what the memory is given."""
    if isinstance(memory, FeatureMemory):
        return "features"
    return "a layer" if memory.per == "layer" else "all layers"


def needs(memory: AnyMemory) -> str:
    """Return what the decoder must report while a stream is watched."""
    if isinstance(memory, FeatureMemory):
        return "no decoder"
    wants, found = memory.requires, []
    if wants.attention is not None:
        attention, more = wants.attention, []
        if attention.last:
            more.append("last row" if attention.last == 1 else f"last {attention.last} rows")
        if attention.modality is not None:
            more.append(f"rows of {Modality(attention.modality).name.lower()}")
        found.append("attention received" + (f" ({', '.join(more)})" if more else ""))
    names = {
        "given": "attention given",
        "hidden": "layer inputs",
        "queries": "queries",
        "output": "output projection",
        "retention": "a score of values",
        "rows": "embedded rows",
    }
    found += [words for field, words in names.items() if getattr(wants, field)]
    if wants.probes is not None:
        found.append("a probe" if wants.probes.count == 1 else f"{wants.probes.count} probes")
    return ", ".join(found) or "nothing"


def reads(memory: AnyMemory) -> str:
    """Return what a question reads."""
    if isinstance(memory, FeatureMemory):
        return "features, prefilled"
    where = "its bank" if memory.bank(SPEC) is not None else "its slots"
    by = {None: "", "layer": ", by each layer's queries", "pass": ", by a first pass"}
    anew = " and rows encoded anew" if memory.requires.rows else ""
    return where + anew + by[memory.requires.question]


def options(name: str) -> str:
    """Return the options that a command line takes, with their defaults."""
    command_only = {option for option, *_ in MORE.get(name, ())}
    found = []
    for option, parameter in inspect.signature(options_class(name)).parameters.items():
        if option not in command_only:
            default = getattr(parameter.default, "value", parameter.default)
            found.append(f"`{option}={_short(default)}`")
    return ", ".join(found)


def _short(value: Any) -> str:
    if isinstance(value, float) and value:
        part = Fraction(value).limit_denominator(16)
        if part.denominator in (3, 6) and abs(part - value) < 1e-9:
            return str(part)
    if is_dataclass(value) and value == type(value)():
        return f"{type(value).__name__}()"
    return f"{value:g}" if isinstance(value, float) else repr(value).replace("'", '"')


def table() -> str:
    """Return the table in Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for name in MEMORIES:
        memory = made(name)
        kind = f"`{type(memory).__name__}`"
        about = (sees(memory), needs(memory), reads(memory), options(name))
        rows.append((link(name), kind, paper(name), *about))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page(text: str) -> str:
    """Return the page with the table as the classes have it."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{PAGE} has no place for the table: put {BEGIN} and {END} on it.")
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))

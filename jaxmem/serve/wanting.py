"""Which memory a client wants, read from what it sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxmem.memory.by_name import parse_budget, parse_names
from jaxmem.serve.limits import RefusedError, shown

LONGEST = 4096
"""Entries of a list among options."""
DEEPEST = 4


class Wanted(NamedTuple):
    """A memory as clients name it."""

    memory: str
    budget: str
    options: tuple[tuple[str, Any], ...] = ()  # by name, in the order of names


def read_wanted(given: Mapping[str, Any], usual: Wanted) -> Wanted:
    """Return the memory that a message or a body names; what it leaves out is the usual.

    Raises:
      ValueError: if it is none.
    """
    name = given.get("memory") or usual.memory
    options = given.get("options")
    if not isinstance(name, str) or "," in name or not isinstance(options, Mapping | None):
        raise RefusedError(
            'memory must be one name and options an object, as {"memory": "omnimem", "options": '
            f'{{"sketch": 128}}}}; got {shown(name)} and {shown(options)}.'
        )
    (name,) = parse_names(name)
    if options is None:
        options = dict(usual.options) if name == usual.memory else {}
    budget = given.get("budget")
    budget = usual.budget if budget is None else budget
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise RefusedError(f'budget must be slots (96) or bytes ("64KiB"), got {shown(budget)}.')
    parse_budget(str(budget)[:LONGEST])
    plain = {str(name): _plain(str(name), value) for name, value in options.items()}
    return Wanted(name, str(budget), tuple(sorted(plain.items())))


def _plain(name: str, value: Any, deep: int = 0) -> Any:
    """Return the value of an option, with tuples for lists: it is compared and hashed."""
    if isinstance(value, list | tuple) and deep < DEEPEST and len(value) <= LONGEST:
        return tuple(_plain(name, one, deep + 1) for one in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RefusedError(f"option {name} must be a number, a word or a list, got {shown(value)}.")

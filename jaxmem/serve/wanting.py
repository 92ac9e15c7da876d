"""Which memory a client wants, read from what it sends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

from jaxmem.memory.base import AnyMemory
from jaxmem.memory.by_name import parse_budget, parse_names
from jaxmem.memory.options import worded
from jaxmem.models.base import Model
from jaxmem.programs import memory_for, stream_tokens
from jaxmem.serve.limits import RefusedError, shown

LONGEST = 4096
"""Entries of a list among options."""
DEEPEST = 4
BANK_SECONDS = 3600.0
"""Of stream that a bank has room for, in memories that have one."""
BITS = "bits"


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


def make_memory(model: Model, wanted: Wanted) -> AnyMemory:
    """Return the memory that a client wants of a model.

    Raises:
      ValueError: if there is none of that name, or it does not take its budget and options.
    """
    options = dict(wanted.options)
    bits = options.pop(BITS, None)
    for name in set(options) & set(worded(wanted.memory)):
        kind = worded(wanted.memory)[name].type
        if Path in (kind, *get_args(kind)):
            raise RefusedError(f"option {name} is a file of the server; leave it out.")
    more = {"tokens": stream_tokens(model, BANK_SECONDS), BITS: bits}
    if wanted.memory == "full":
        more["tokens"] = None  # what it holds is said with `capacity`
    try:
        return memory_for(model, wanted.memory, wanted.budget, **more, **options)
    except TypeError as error:
        raise RefusedError(
            f"the options {shown(options)} of memory {wanted.memory} do not fit: {error}."
        ) from error


def _plain(name: str, value: Any, deep: int = 0) -> Any:
    """Return the value of an option, with tuples for lists: it is compared and hashed."""
    if isinstance(value, list | tuple) and deep < DEEPEST and len(value) <= LONGEST:
        return tuple(_plain(name, one, deep + 1) for one in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise RefusedError(f"option {name} must be a number, a word or a list, got {shown(value)}.")

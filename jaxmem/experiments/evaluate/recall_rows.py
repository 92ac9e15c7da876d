"""The rows of the comparison: memories of one model, and further models that have states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxmem.memory.baselines import Recent
from jaxmem.memory.by_name import Contestant, parse_names
from jaxmem.models.base import Model
from jaxmem.models.tiny.embedded import embedded
from jaxmem.programs import model_spec


class Row(NamedTuple):
    """A model with one of its memories."""

    name: str
    model: Model
    memory: str  # its name; empty where no layer attends: the states are all there is

    @property
    def states(self) -> int:
        """Bytes of the states of its layers."""
        return model_spec(self.model).state_bytes


def rows_of(model: Model, memories: str, states: str) -> list[Row]:
    """Return what `--memories` and `--states` name, in order.

    A model in which no layer attends is a row by itself: memories would hold nothing there.

    Args:
      model: that of the memories.
      memories: names, comma-separated.
      states: MODEL or MODEL+MEMORY, comma-separated; a name or file of an embedded model.

    Raises:
      ValueError: if a name is unknown or comes twice, a model has no layer with a state, or it has
        layers that attend and no memory is named for them, or the other way round.
    """
    rows = [Row(name, model, name) for name in parse_names(memories)] if memories else []
    if not model.decoder.attends:
        rows = [Row(model.name, model, "")]
    for text in filter(None, map(str.strip, states.split(","))):
        where, _, memory = text.partition("+")
        if not where:
            raise ValueError(f"--states {text}: no model is named; give MODEL or MODEL+MEMORY.")
        found = embedded(where)
        _check(text, found, memory, model)
        rows.append(Row("+".join(filter(None, (found.name, memory))), found, memory))
    twice = [row.name for row in rows if [one.name for one in rows].count(row.name) > 1]
    if twice or not rows:
        reason = f"{twice[0]} is there twice" if twice else "nothing is named"
        raise ValueError(f"{reason}: --memories and --states are what is compared, each once.")
    return rows


def _check(text: str, model: Model, memory: str, like: Model) -> None:
    """Refuse a model of `--states` that does not go with its memory or with the other models."""
    if not model.decoder.stacks:
        raise ValueError(f"--states {text}: all its layers attend; give it as --weights.")
    if memory:
        parse_names(memory)
    if bool(memory) != bool(model.decoder.attends):
        raise ValueError(
            f"--states {text}: {model.decoder.attends} of its layers attend; "
            + ("leave the memory out." if memory else "say with what memory: MODEL+omnimem.")
        )
    if model.decoder.vocab != like.decoder.vocab:
        raise ValueError(f"--states {text} has other words than {like.name}.")


def alone(row: Row) -> Contestant:
    """Return what stands for the memory of a model in which no layer attends: it holds nothing."""
    return Contestant(row.name, Recent(1, sinks=0), {}, 0, reference=False)


def budgets_of(row: Row, budgets: Sequence[str]) -> Sequence[str]:
    """Return the budgets that a row is measured at: "all" for `full`, its own bytes for states."""
    if not row.memory:
        return (f"{row.states / 1024:g}KiB",)
    return ("all",) if row.memory == "full" else budgets

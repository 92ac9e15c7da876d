"""Checks of options. Each error names the memory, the option, what came and what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def at_least(memory: str, least: float, **options: float | None) -> None:
    """Raise ValueError for an option below `least`; None is one that was not given."""
    for name, value in options.items():
        if value is not None and not value >= least:
            raise ValueError(f"{memory} needs {name} of at least {least}, got {name}={value}.")


def between(memory: str, low: float, high: float, **options: float | None) -> None:
    """Raise ValueError for an option outside [low, high]; None is one that was not given."""
    for name, value in options.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"{memory} needs {name} between {low} and {high}, got {name}={value}.")


def one_of(memory: str, known: Sequence[Any], **options: Any) -> None:
    """Raise ValueError for an option that is none of the `known` ones."""
    for name, value in options.items():
        if value not in known:
            listed = ", ".join(map(repr, known))
            raise ValueError(f"{memory} needs {name} to be one of {listed}, got {value!r}.")


def odd(memory: str, **options: int) -> None:
    """Raise ValueError for a width that is not odd and positive."""
    for name, value in options.items():
        if value < 1 or value % 2 == 0:
            raise ValueError(f"{memory} needs an odd {name} of at least 1, got {name}={value}.")

"""Whether the document of a saved stream has the structure that one has, before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp


def misplaced(document: Mapping[str, Any]) -> str | None:
    """Return what in a document has another structure than a save gives it; None: nothing."""
    for name in ("parts", "more", "arrays"):
        if not isinstance(document.get(name), dict):
            return name
    parts, arrays = document["parts"], document["arrays"]
    wrong = [f"parts.{name}" for name, part in parts.items() if not _is_head(part)]
    wrong += [f"arrays.{name}" for name, entry in arrays.items() if not _is_entry(entry)]
    return wrong[0] if wrong else None


def _is_head(part: Any) -> bool:
    """Return whether that says of a stream what made it, in words, and what the host knows."""
    if not isinstance(part, dict) or not isinstance(part.get("numbers"), dict):
        return False
    made = part.get("made")
    return isinstance(made, dict) and all(isinstance(words, str) for words in made.values())


def _is_entry(entry: Any) -> bool:
    """Return whether that is an array's dtype, shape, place in the file and checksum."""
    kinds = [str, list, int, str]
    if not isinstance(entry, list) or [type(x) for x in entry] != kinds:
        return False
    dtype, shape, at, _ = entry
    return _is_dtype(dtype) and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, at))


def _is_dtype(name: str) -> bool:
    """Return whether that is the name of a dtype of numbers."""
    try:
        kind = jnp.dtype(name)
    except (TypeError, ValueError):
        return False
    return str(kind) == name and kind.itemsize > 0 and not kind.hasobject

"""Budgets: how many slots each layer gives to audio and to vision, and what they cost in bytes.

A *budget table* is an int array: `[L, 2]` holds (audio, visual) caps per layer, `[L]` one cap that
both share. Tables are static; they come from one number (`uniform`), from a calibration
(`jaxmem.memory.omnimem.avba`) or from a file (`load_table`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import Memory, Spec

FORMAT = "jaxmem-budget-table"
VERSION = 1

Table = np.ndarray | Sequence[Sequence[int]] | Sequence[int]


def share_of_ratio(ratio: float) -> float:
    """Return audio's share of a budget whose visual part is `ratio` times its audio part."""
    return 1.0 / (1.0 + ratio)


def uniform(slots: int, layers: int, audio_share: float) -> np.ndarray:
    """Return the table [L, 2] that gives every layer `slots`, `audio_share` of them to audio.

    Raises:
      ValueError: if `slots` is negative or `audio_share` is outside [0, 1].
    """
    if slots < 0:
        raise ValueError(f"a budget is a number of slots per layer, got {slots}.")
    if not 0.0 <= audio_share <= 1.0:
        raise ValueError(
            f"audio_share is a share of the budget, between 0 and 1, got {audio_share}."
        )
    audio = round(slots * audio_share)
    return np.tile(np.asarray([[audio, slots - audio]], np.int64), (layers, 1))


def joined(table: Table) -> np.ndarray:
    """Return the table [L] in which audio and vision share one cap per layer."""
    array = np.asarray(table)
    return array if array.ndim == 1 else array.sum(axis=1)


def resolve(budget: int | Table, layers: int, *, audio_share: float, joint: bool) -> np.ndarray:
    """Return the int table that a budget argument means: [L, 2], or [L] for a joint cap.

    Args:
      budget: slots per layer (audio and vision together), or a table.
      layers: L of the model.
      audio_share: audio's part of an int budget; tables carry their own split.
      joint: audio and vision share one cap.

    Raises:
      ValueError: if the table is not [L, 2] or [L] of whole numbers >= 0 for this model.
    """
    if isinstance(budget, (int, np.integer)):
        table = uniform(int(budget), layers, audio_share)
    else:
        table = check_table(budget)
    if table.shape[0] != layers:
        raise ValueError(
            f"the budget table has {table.shape[0]} layers but the model has {layers}; calibrate "
            "this model, or rescale a profile with jaxmem.memory.omnimem.avba before making the "
            "table."
        )
    return joined(table) if joint else table


def check_table(table: Table) -> np.ndarray:
    """Return a table as an int64 array.

    Raises:
      ValueError: if it is not [L, 2] or [L] of whole numbers >= 0.
    """
    try:
        array = np.asarray(table, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"a budget table must be [L, 2] or [L] numbers, got rows of unequal length: {error}"
        ) from None
    if array.ndim not in (1, 2) or array.size == 0 or (array.ndim == 2 and array.shape[1] != 2):
        raise ValueError(
            f"a budget table is [L, 2] (audio, visual) or [L] (joint), got shape {array.shape}."
        )
    if not np.all(np.isfinite(array)) or np.any(array < 0) or np.any(array != np.trunc(array)):
        raise ValueError("a budget table holds whole numbers of slots >= 0; round it first.")
    return array.astype(np.int64)


def save_table(path: str | Path, table: Table, made: Mapping[str, Any] | None = None) -> None:
    """Write a table as JSON; `made` records how it was made (settings, model, videos)."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "caps": check_table(table).tolist(),
        "made": dict(made or {}),
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def load_table(path: str | Path) -> np.ndarray:
    """Return a table written by `save_table`.

    Raises:
      ValueError: if the file is not such a table, or of a newer version.
    """
    return check_table(read_document(Path(path).read_text(), FORMAT, VERSION, ("caps",))["caps"])


def read_document(text: str, kind: str, version: int, fields: Sequence[str]) -> dict[str, Any]:
    """Return a JSON document after checking its `format`, `version` and required fields.

    Raises:
      ValueError: naming what is wrong with the document.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}; expected a document of format {kind!r}.") from None
    if not isinstance(document, dict) or document.get("format") != kind:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"expected a document of format {kind!r}, got {found!r}.")
    if document.get("version") != version:
        raise ValueError(
            f"{kind!r} has version {document.get('version')!r}, this release reads {version}; make "
            "the file again with this release."
        )
    missing = [name for name in fields if name not in document]
    if missing:
        raise ValueError(f"the {kind!r} document lacks {', '.join(missing)}.")
    return document


def slots_for_bytes(factory: Callable[[int], Memory], spec: Spec, budget_bytes: int) -> int:
    """Return the most slots per layer that `factory(slots)` affords within `budget_bytes`.

    One byte budget compares memories fairly: whatever a memory holds on the device beside keys and
    values (redundancy vectors, text slots, grids of codes, summaries of a bank, notes, a bank that
    is not in host memory) is counted. Nothing is allocated.

    Args:
      factory: slots per layer -> memory, for example `omnimem`; more slots never cost less.
      spec: of the model.
      budget_bytes: over all layers, at rest.

    Raises:
      ValueError: if not even one slot per layer fits.
    """

    def price(slots: int) -> int:
        return footprint(factory(slots), spec).device

    least = price(1)
    if least > budget_bytes:
        raise ValueError(
            f"{budget_bytes} bytes hold no memory: one slot per layer costs {least} bytes."
        )
    low, high = 1, 2
    while price(high) <= budget_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if price(middle) <= budget_bytes else (low, middle)
    return low

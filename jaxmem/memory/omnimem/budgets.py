"""Budgets: how many slots each layer gives to audio and to vision, and what they cost in bytes.

A *budget table* holds (audio, visual) caps per layer, `[L][2]`, or one cap that both share, `[L]`.
In a memory it is a nested tuple; functions take any array. Tables are static; they come from one
number (`uniform`), from a calibration (`jaxmem.memory.omnimem.avba`) or from a file (`load_table`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.base import AnyMemory, Spec
from jaxmem.memory.parts.options import at_least, between

FORMAT = "jaxmem-budget-table"
VERSION = 1

Table = tuple[tuple[int, int], ...] | tuple[int, ...]
TableLike = np.ndarray | Sequence[Sequence[int]] | Sequence[int]
M = TypeVar("M", bound=AnyMemory)
MOST_SLOTS = 1 << 30
"""Per layer: indices are int32."""
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def share_of_ratio(ratio: float) -> float:
    """Return audio's share of a budget whose visual part is `ratio` times its audio part."""
    return 1.0 / (1.0 + ratio)


def uniform(slots: int, layers: int, audio_share: float) -> np.ndarray:
    """Return the table [L, 2] that gives every layer `slots`, `audio_share` of them to audio.

    Raises:
      ValueError: if `slots` is negative or `audio_share` is outside [0, 1].
    """
    at_least("a budget", 0, slots=slots)
    between("a budget", 0, 1, audio_share=audio_share)
    audio = round(slots * audio_share)
    return np.tile(np.asarray([[audio, slots - audio]], np.int64), (layers, 1))


def joined(table: TableLike) -> np.ndarray:
    """Return the table [L] in which audio and vision share one cap per layer."""
    array = np.asarray(table)
    return array if array.ndim == 1 else array.sum(axis=1)


def hashable(budget: int | TableLike) -> int | Table:
    """Return a budget as a memory holds it: a whole number, or a table of nested tuples.

    Raises:
      ValueError: if it is neither.
    """
    if isinstance(budget, int | np.integer):
        at_least("a budget", 0, slots=int(budget))
        return int(budget)
    if isinstance(budget, str | Path):
        raise ValueError(
            f"a budget is a number or a table, got {budget!r}; read a file with load_table."
        )
    array = check_table(budget)
    if array.ndim == 1:
        return tuple(int(cap) for cap in array)
    return tuple((int(audio), int(visual)) for audio, visual in array)


def scaled(table: Table, total: int) -> Table:
    """Return a table whose caps add up to `total` at most, in the same proportions.

    No layer is left without a slot that had one, so a very small total may be passed.
    """
    array = check_table(table).reshape(len(table), -1)
    small = array * total // max(int(array.sum()), 1)
    lost = (small.sum(axis=1) == 0) & (array.sum(axis=1) > 0)
    small[lost, np.argmax(array[lost], axis=1)] = 1
    found = hashable(small[:, 0] if small.shape[1] == 1 else small)
    assert not isinstance(found, int)
    return found


def resolve(budget: int | Table, layers: int, *, audio_share: float | None) -> np.ndarray:
    """Return the int table that a budget means: [L, 2], or [L] for a joint cap.

    `audio_share` is audio's part of a number as budget (tables carry their own split); None: audio
    and vision share one cap.

    Raises:
      ValueError: if the table is not [L, 2] or [L] of whole numbers >= 0 for this model.
    """
    if isinstance(budget, int):
        table = uniform(budget, layers, 0.0 if audio_share is None else audio_share)
    else:
        table = check_table(budget)
    if table.shape[0] != layers:
        raise ValueError(
            f"the budget table has {table.shape[0]} layers but the model has {layers}; calibrate "
            "this model, or rescale a profile with avba.stretch before making the table."
        )
    return joined(table) if audio_share is None else table


def check_table(table: TableLike) -> np.ndarray:
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


def save_table(path: str | Path, table: TableLike, made: Mapping[str, Any] | None = None) -> None:
    """Write a table as JSON; `made` records how it was made (settings, model, videos)."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "caps": check_table(table).tolist(),
        "made": dict(made or {}),
    }
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def load_table(path: str | Path) -> Table:
    """Return a table written by `save_table`.

    Raises:
      ValueError: if the file is not such a table, or of a newer version.
    """
    document = read_document(Path(path).read_text(), FORMAT, VERSION, ("caps",))
    found = hashable(document["caps"])
    assert not isinstance(found, int)
    return found


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


def slots_for_bytes(
    factory: Callable[[int], AnyMemory], spec: Spec, budget_bytes: int, *, smallest: int = 1
) -> int:
    """Return the most slots per layer that `factory(slots)` affords within `budget_bytes`.

    One byte budget compares memories fairly: whatever a memory holds on the device beside keys and
    values (redundancy vectors, text slots, grids of codes, summaries of a bank, counters, a bank
    that is not in host memory) is counted. Nothing is allocated. `factory` makes a memory of so
    many slots per layer, for example `OmniMem`, of which more never cost less; bytes are over all
    layers, at rest, and `smallest` is the fewest slots that the memory takes; its options may ask
    for more (`newest`). Of a memory that holds no more from some number of slots on
    (`SimpleStream`), that number is the most.

    Raises:
      ValueError: if not even the fewest slots per layer fit, or no number of them does.
    """

    def price(slots: int) -> int:
        return footprint(factory(slots), spec).device

    smallest = _fewest(factory, smallest)
    least = price(smallest)
    if not spec.layers and least <= budget_bytes:  # slots cost nothing
        return smallest
    if least > budget_bytes:
        many = "one slot" if smallest == 1 else f"{smallest} slots"
        costs = f"{many} per layer costs {least} bytes" if spec.layers else "no layer has slots"
        states = f", and {spec.state_bytes} bytes are states of layers" if spec.state_bytes else ""
        raise ValueError(f"{budget_bytes} bytes hold no memory: {costs}{states}.")
    low, high = smallest, 2 * smallest
    fits = lambda slots: price(slots) <= budget_bytes
    while (room := fits(high)) and high <= budget_bytes:
        low, high = high, 2 * high
    if not room:
        return _last(fits, low, high)
    full = price(high)  # though a slot that is held costs a byte at least
    return _last(lambda slots: price(slots) < full, smallest - 1, high) + 1


def _fewest(factory: Callable[[int], AnyMemory], smallest: int) -> int:
    """Return the fewest slots, `smallest` or more, that options do not refuse."""

    def refuses(slots: int) -> bool:
        try:
            factory(slots)
        except ValueError:
            if slots > MOST_SLOTS:  # it is not for want of slots
                raise
            return True
        return False

    high = smallest
    while refuses(high):
        high *= 2
    return smallest if high == smallest else _last(refuses, high // 2, high) + 1


def _last(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Return the last number from `low` on that `holds`; below it all do, and `high` does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def parse_bytes(text: str) -> int:
    """Return a size such as "64KiB", "1.5MB" or "300B" in bytes.

    Raises:
      ValueError: if it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ValueError(f"{text!r} is no size: write 64KiB, 1.5MB or 300B.")
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


def resized(memory: M, slots: int, spec: Spec) -> M:
    """Return the same memory with `slots` slots per layer.

    Raises:
      ValueError: if its slots do not follow from one number.
    """
    own = getattr(memory, "resized", None)
    if own is not None:
        return own(slots, spec)
    names = {one.name for one in fields(memory)} if is_dataclass(memory) else set()
    if "budget" in names:
        return replace(memory, budget=slots)  # type: ignore[type-var]
    if "memory" in names:
        inner = resized(memory.memory, slots, spec)  # type: ignore[attr-defined]
        return replace(memory, memory=inner)  # type: ignore[type-var]
    raise ValueError(
        f"{memory.name} cannot be resized: it has neither a `budget` nor a method `resized`."
    )


def smallest(memory: AnyMemory | type[AnyMemory], spec: Spec) -> int:
    """Return the fewest slots per layer that a memory takes: its `smallest`, or 1."""
    found = getattr(memory, "smallest", 1)
    return found(spec) if callable(found) else found  # type: ignore[return-value]


def within(memory: M, spec: Spec, size: int | str) -> M:
    """Return the same memory with the most slots that fit in so many bytes on the device.

    Its own number of slots does not matter; `size` is in bytes, or "64KiB".

    Raises:
      ValueError: if the size is none, or holds no memory.
    """
    most = parse_bytes(size) if isinstance(size, str) else size
    least = smallest(memory, spec)
    slots = slots_for_bytes(lambda n: resized(memory, n, spec), spec, most, smallest=least)
    return resized(memory, slots, spec)

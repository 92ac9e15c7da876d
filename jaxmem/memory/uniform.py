"""`uniform`: tokens or frames evenly spaced over everything seen so far."""

from __future__ import annotations

import numpy as np

from jaxmem.memory.base import Memory
from jaxmem.memory.parts import units as frames
from jaxmem.memory.parts.positions import Rule
from jaxmem.memory.parts.prioritized import keep
from jaxmem.typing import Array, PyTree, UInt

GOLDEN = np.uint32(2654435769)  # 2^32 / golden ratio, rounded to the nearest odd number


def weyl(number: UInt[Array, "T"], seed: PyTree = None) -> UInt[Array, "T"]:
    """Return frac(number / golden ratio) in units of 2^-32: a Weyl sequence in exact integers.

    The multiplier is odd, so different numbers below 2^32 have different values.
    """
    del seed
    return number * GOLDEN


def uniform(
    budget: int,
    unit: frames.UnitName = "token",
    *,
    tokens_per_frame: int | None = None,
    positions: Rule = "keep",
) -> Memory:
    """Return the memory that holds tokens evenly spaced in time, however long the stream is.

    It holds the numbers whose Weyl value lies below a bar that sinks as the stream grows. By the
    three-distance theorem (Sos 1958, Swierczkowski 1959) such numbers have at most three different
    gaps; for the golden ratio they are consecutive Fibonacci numbers, so the longest is at most
    three times the shortest. The bar only sinks, so a token that was dropped is never missed.

    Args:
      budget: S, slots of every layer.
      unit: "token" spaces single tokens and fills every slot; "frame" spaces whole frames with
        their text and sound, as uniform frame sampling does, and may leave slots empty.
      tokens_per_frame: vision tokens of a frame, see `jaxmem.memory.parts.units`.
      positions: "keep" the position of arrival, or renumber ("contiguous").

    Raises:
      ValueError: if the budget is not positive or the unit is unknown.
    """
    chosen = frames.unit(unit, tokens_per_frame)
    return keep(budget, weyl, unit=chosen, name="uniform", rule=positions)

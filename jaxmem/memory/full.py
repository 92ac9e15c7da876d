"""`full`: the whole stream up to a capacity, the exact reference for every other memory."""

from __future__ import annotations

from jaxmem.memory.base import Memory
from jaxmem.memory.parts.prioritized import keep, newest


def full(capacity: int) -> Memory:
    """Return the memory that holds everything, up to `capacity` tokens of every layer.

    Up to the capacity a stream is the same as attention over everything seen. Beyond it the newest
    tokens win, and `state.aux.overflow` counts those that were lost: 0 means exact.

    Args:
      capacity: S, slots of every layer.

    Raises:
      ValueError: if the capacity is not positive.
    """
    return keep(capacity, newest, name="full")

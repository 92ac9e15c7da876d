"""StreamingLLM (arXiv 2309.17453): attention sinks, a window, and positions inside the cache."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Memory
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts.prioritized import keep, newest
from jaxmem.typing import Array, PyTree, UInt


def streaming_llm(budget: int, *, sinks: int = 4, positions: places.Rule = "contiguous") -> Memory:
    """Return StreamingLLM: the first `sinks` tokens and the newest, numbered without gaps.

    A token is read at its index in the cache (behind the prefix), not at the position it arrived
    with (section 3.2): no distance exceeds the budget, and the time that has passed is forgotten.
    The released code also caches keys before rotation for that. It evicts *before* a chunk so that
    memory and chunk fit into the cache together; here the chunk comes on top of the budget.

    Args:
      budget: S, slots of every layer, sinks included.
      sinks: tokens held from the start of the stream; 4 as published.
      positions: "contiguous" as published; "keep" is the memory `recent`.

    Raises:
      ValueError: if `sinks` is negative or leaves no slot for the window.
    """
    if not 0 <= sinks < budget:
        raise ValueError(
            f"streaming_llm needs 0 <= sinks < budget, got sinks={sinks} and budget={budget}; "
            "raise the budget or take fewer sinks."
        )

    def priority(number: UInt[Array, "T"], seed: PyTree) -> UInt[Array, "T"]:
        return jnp.where(number < np.uint32(sinks), number, newest(number, seed))

    return places.ruled(keep(budget, priority, name="streaming_llm"), positions)

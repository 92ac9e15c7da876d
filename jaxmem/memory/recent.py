"""`recent`: a sliding window behind attention sinks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Memory
from jaxmem.memory.parts.positions import Rule
from jaxmem.memory.parts.prioritized import keep, newest
from jaxmem.typing import Array, PyTree, UInt


def recent(budget: int, sinks: int = 4, *, positions: Rule = "keep") -> Memory:
    """Return the memory that holds the first `sinks` tokens and the newest of the rest.

    The first tokens of a sequence draw attention whatever they mean, and dropping them breaks the
    distribution that the model was trained with (StreamingLLM, Xiao et al. 2023, section 3).
    StreamingLLM also renumbers positions inside the cache.

    Args:
      budget: S, slots of every layer, sinks included.
      sinks: tokens held from the start of the stream; 0 for a plain window.
      positions: "keep" the position of arrival, or renumber ("contiguous").

    Raises:
      ValueError: if `sinks` is negative or leaves no slot for the window.
    """
    if not 0 <= sinks < budget:
        raise ValueError(
            f"recent needs 0 <= sinks < budget, got sinks={sinks} and budget={budget}; "
            "raise the budget or take fewer sinks."
        )

    def priority(number: UInt[Array, "T"], seed: PyTree) -> UInt[Array, "T"]:
        return jnp.where(number < np.uint32(sinks), number, newest(number, seed))

    return keep(budget, priority, name="recent", rule=positions)

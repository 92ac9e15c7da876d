"""Which block a full bank gives up: block numbers become priorities, of which the smallest stay."""

from __future__ import annotations

from typing import Literal, get_args

import jax.numpy as jnp

from jaxmem.memory.baselines import weyl
from jaxmem.memory.parts.prioritized import EDGE, LAST, STEP
from jaxmem.memory.parts.units import Number
from jaxmem.typing import Array, UInt

Full = Literal["oldest", "newest", "uniform"]
"""The block that goes when the bank is full."""
RULES: tuple[Full, ...] = get_args(Full)


def priority(full: Full, number: Number) -> UInt[Array, ""]:
    """Return the priority of a block by its number, at most LAST."""
    if full == "oldest":
        return LAST - number.low  # `rebased` keeps the number in one word
    if full == "newest":  # a bank is full long before the number has two words
        return jnp.where(number.high > 0, LAST, jnp.minimum(number.low, LAST))
    return jnp.minimum(weyl(number), LAST)


def rebased(
    full: Full, written: Number, priorities: UInt[Array, "M"]
) -> tuple[Number, UInt[Array, "M"]]:
    """Return the count of blocks and their priorities before an order by age gets too large.

    All numbers move down by STEP once the count has passed EDGE; free places (NONE) stay free.
    """
    if full != "oldest":
        return written, priorities
    far = written.low >= EDGE
    older = jnp.where(far & (priorities <= LAST - STEP), priorities + STEP, priorities)
    return written._replace(low=jnp.where(far, written.low - STEP, written.low)), older

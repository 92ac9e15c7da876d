"""How far arrival numbers have moved since a block of a bank was written; see `memory.clock`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmem.typing import Array, Int

EDGE = 2**30
"""A clock past this is moved back."""
STEP = 2**29
"""By so much."""
FLOOR = -(2**31)
"""Numbers of tokens that are held stop above it, at FLOOR + slot: their order stays."""
BANK_FLOOR = FLOOR + 2**28
"""Numbers of entries stop above this one. Of tokens that are both older than 3 * 2^30 others, those
that a memory still holds (attention sinks) are taken for the older ones."""


def today(index: Int[Array, "n Gm"], moves: Int[Array, "n"]) -> Int[Array, "n Gm"]:
    """Return the arrival numbers of entries that were written so many moves of the clock ago.

    Entries of any age keep their order among each other.
    """
    high = index // np.int32(STEP) - moves[:, None]  # the number in two words
    low = index % np.int32(STEP)
    order = jnp.lexsort((low, high), axis=0)
    rank = jnp.argsort(order, axis=0).astype(jnp.int32)
    least = FLOOR // STEP
    number = jnp.maximum(high, least) * np.int32(STEP) + jnp.where(high < least, 0, low)
    return jnp.maximum(number, np.int32(BANK_FLOOR) + rank)

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
"""Numbers never fall below it."""
MOST = 4
"""Moves after which any number reaches FLOOR: 2^31 tokens. Older blocks keep their order only
among those of one epoch."""


def today(index: Int[Array, "n Gm"], moves: Int[Array, "n"]) -> Int[Array, "n Gm"]:
    """Return arrival numbers of entries that were written so many moves of the clock ago."""
    back = jnp.minimum(moves, MOST)[:, None]
    # One move at a time: four at once do not fit 32 bits.
    for i in range(MOST):
        index = jnp.where(back > i, jnp.maximum(index, np.int32(FLOOR + STEP)) - STEP, index)
    return index

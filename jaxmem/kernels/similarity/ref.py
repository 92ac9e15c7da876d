"""Redundancy in plain XLA: passes over the keys, bound by memory; no kernel is worth it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.typing import Array, Bool, Float, Int


def unit(x: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """See `jaxmem.kernels.similarity`."""
    x = x.astype(jnp.float32)
    # Divide by the largest entry first: squares of large or tiny entries leave float32's range,
    # and so would the reciprocal of an entry at its end.
    top = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.clip(top, 1e-30, 1e30)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1.0))


def neighbour_cosine(
    unit: Float[Array, "N U"], n: Int[Array, ""], *, lengths: bool = False
) -> Float[Array, "N"]:
    """See `jaxmem.kernels.similarity`."""
    u = unit.astype(jnp.float32)
    index = jnp.arange(u.shape[0], dtype=jnp.int32)
    # Rolled, not cut: XLA on a CPU takes twice as long for sums over slices. The last row meets the
    # first one, which nothing below requires.
    after = jnp.sum(u * jnp.roll(u, -1, axis=0), axis=-1)  # cosine of row i with row i + 1
    if lengths:
        square = jnp.sum(u * u, axis=-1)
        inverse = jnp.where(square > 0, 1.0 / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        after = after * inverse * jnp.roll(inverse, -1)
    right = jnp.where(index < n - 1, after, 1.0)
    left = jnp.where((index > 0) & (index < n), jnp.roll(after, 1), 1.0)
    return 0.5 * (left + right)


def similarity_to_recent(
    keys: Float[Array, "N G D"],
    recent: Bool[Array, "G N"],
    place: Int[Array, "N G"],
    *,
    places: int,
) -> Float[Array, "G N"]:
    """See `jaxmem.kernels.similarity`."""
    keys = keys.astype(jnp.float32)
    unit = keys / (jnp.linalg.norm(keys, axis=-1, keepdims=True) + 1e-9)

    def one(unit: Array, place: Array, recent: Array) -> Array:
        # The mean of cosines with unit keys is the product with their mean.
        at = jnp.where(recent, place, places)
        total = jnp.zeros((places, unit.shape[1])).at[at].add(unit, mode="drop")
        count = jnp.zeros((places, 1)).at[at].add(1.0, mode="drop")
        return jnp.sum(unit * (total / jnp.maximum(count, 1.0))[place], axis=-1)

    return jax.vmap(one)(unit.transpose(1, 0, 2), place.T, recent)

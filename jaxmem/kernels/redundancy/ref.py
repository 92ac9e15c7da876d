"""Redundancy of neighbours in plain XLA: two fusions, bound by memory; no kernel is worth it."""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax

from jaxmem.typing import Array, Float, Int


def unit(x: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """See `jaxmem.kernels.redundancy`."""
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
    """See `jaxmem.kernels.redundancy`."""
    u = unit.astype(jnp.float32)
    index = jnp.arange(u.shape[0], dtype=jnp.int32)
    after = jnp.sum(u[:-1] * u[1:], axis=-1)  # cosine of row i with row i + 1
    if lengths:
        square = jnp.sum(u * u, axis=-1)
        inverse = jnp.where(square > 0, 1.0 / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        after = after * inverse[:-1] * inverse[1:]
    one = jnp.ones((1,), jnp.float32)
    right = jnp.where(index < n - 1, jnp.concatenate([after, one]), 1.0)
    left = jnp.where(index < n, jnp.concatenate([one, after]), 1.0)
    return 0.5 * (left + right)

"""A fixed random sign projection: fewer numbers, the same angles."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmem.typing import Array, Float

SEED = 20260526
"""Fixes the projection for good: stored vectors of one run are comparable with those of another."""


def signs(width: int, sketch: int) -> Float[Array, "E U"]:
    """Return the projection matrix of +1 and -1, the same on every call and every machine.

    The signs are the bits of E * U / 32 random words, cheap enough to make anew in each step; a
    stored matrix would cost E * U numbers per layer.

    Raises:
      ValueError: if `sketch` is not a multiple of 32.
    """
    if sketch % 32:
        raise ValueError(f"a sketch holds a multiple of 32 numbers, got {sketch}.")
    words = jax.random.bits(jax.random.key(SEED), (width, sketch // 32, 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None, None, :]) & jnp.uint32(1)
    return (2.0 * bits.astype(jnp.float32) - 1.0).reshape(width, sketch)


def project(x: Float[Array, "T E"], sketch: int) -> Float[Array, "T U"]:
    """Return `x` in `sketch` numbers; angles between rows survive, lengths up to a factor.

    Squared distances between unit vectors keep a relative standard error of at most
    sqrt(2 / U) (Achlioptas 2003, Theorem 1.1).
    """
    matrix = signs(x.shape[1], sketch)
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)

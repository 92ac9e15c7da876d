"""Dense products of rows with weights, as every layer takes them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmem.typing import Array, Float, Params

FEW = 64
"""Rows up to which the weights of a layer are multiplied in blocks of their stack."""
SMALL, BLOCK = 8 << 20, 4 << 20
"""Bytes of a matrix that is taken whole, and of a block of a larger one, at most.

Blocks of matrices of 1 to 4 MiB made a first token faster on one machine and slower on another.
"""
LEAST = 16
"""Rows of a matrix in a block, at least."""


def linear(x: Float[Array, "*T E"], weight: Params) -> Float[Array, "*T F"]:
    """Return x @ kernel (+ bias) (+ (x @ a) @ b, where the weight has a low-rank addition)."""
    count = _blocks(x, weight["kernel"]) if "stack" in weight else 1
    y = product(x, weight["kernel"]) if count == 1 else _in_blocks(x, count, *weight["stack"])
    if "a" in weight:
        y = y + product(product(x, weight["a"]).astype(x.dtype), weight["b"]).astype(y.dtype)
    if "bias" in weight:
        y = y + weight["bias"].reshape((1,) * (y.ndim - 1) + (-1,))
    return y.astype(jnp.result_type(x, weight["kernel"]))


def product(x: Float[Array, "*T E"], kernel: Float[Array, "E F"]) -> Float[Array, "*T F"]:
    """Return x @ kernel; of bfloat16 on a CPU in float32.

    XLA's CPU multiplies bfloat16 as it is where a float32 result is asked for; otherwise it
    converts the weights first. Other devices sum in float32 all the same.
    """
    wide = jnp.result_type(x, kernel) == jnp.bfloat16 and jax.default_backend() == "cpu"
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32 if wide else None)


def _blocks(x: Float[Array, "*T E"], kernel: Float[Array, "E F"]) -> int:
    """Return in how many blocks a matrix of a stack is multiplied: of few rows on a CPU, several.

    XLA's CPU copies a layer out of its stack before it multiplies. Of few rows that is the most of
    the time; a block of it is copied into the processor's cache and multiplied from there.
    """
    size, whole = kernel.shape[0], kernel.size * kernel.dtype.itemsize
    few = 1 < x.size // size <= FEW and whole > SMALL
    if not few or jax.default_backend() != "cpu":
        return 1
    count = max(2, -(-whole // BLOCK))
    while count < size and size % count:
        count += 1
    return count if size // count >= LEAST else 1


def _in_blocks(
    x: Float[Array, "*T E"], count: int, stack: Float[Array, "L E F"], index: Any
) -> Float[Array, "*T F"]:
    """Return x @ stack[index], a block of the matrix after the other."""
    size, columns = stack.shape[1:]
    rows = size // count

    def block(j: Array, y: Array) -> Array:
        part = jax.lax.dynamic_slice(stack, (index, j * rows, 0), (1, rows, columns))[0]
        return y + product(jax.lax.dynamic_slice_in_dim(x, j * rows, rows, x.ndim - 1), part)

    like = jax.eval_shape(product, x, jax.ShapeDtypeStruct((size, columns), stack.dtype))
    return jax.lax.fori_loop(0, count, block, jnp.zeros(like.shape, like.dtype))

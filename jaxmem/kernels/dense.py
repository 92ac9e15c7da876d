"""Dense products of rows with weights, as every layer takes them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmem.typing import Array, Float, Params, PyTree

FEW = 64
"""Rows up to which the weights of a layer are multiplied in blocks of their stack."""
SMALL, BLOCK = 1 << 20, 4 << 20
"""Bytes of a matrix that is taken whole, and of a block of a larger one, at most."""


def layer_of(layers: PyTree, index: Any) -> PyTree:
    """Return one layer of stacked weights [L, ...]; its matrices know their stack.

    Inside a loop over layers `index` is traced. What is not used of a layer is not read.
    """
    if isinstance(layers, dict):
        inner = {name: layer_of(value, index) for name, value in layers.items()}
        return inner | {"stack": (layers["kernel"], index)} if "kernel" in layers else inner
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, 0, False), layers)


def linear(x: Float[Array, "*T E"], weight: Params) -> Float[Array, "*T F"]:
    """Return x @ kernel (+ bias) (+ (x @ a) @ b, where the weight has a low-rank addition)."""
    y = _stacked(x, *weight["stack"]) if "stack" in weight else product(x, weight["kernel"])
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


def _stacked(x: Float[Array, "*T E"], stack: Float[Array, "L E F"], index: Any) -> Array:
    """Return x @ stack[index]; of few rows on a CPU a block of the matrix after the other.

    XLA's CPU copies a layer out of its stack before it multiplies. Of few rows that is the most of
    the time; a block of it is copied into the processor's cache and multiplied from there.
    """
    size, columns = stack.shape[1:]
    whole = size * columns * stack.dtype.itemsize
    count = max(2, -(-whole // BLOCK))
    count += next((more for more in range(size) if size % (count + more) == 0), size)
    few = 1 < x.size // size <= FEW and whole > SMALL and size // count >= 16
    if not few or jax.default_backend() != "cpu":
        return product(x, jax.lax.dynamic_index_in_dim(stack, index, 0, keepdims=False))
    rows = size // count

    def block(j: Array, y: Array) -> Array:
        part = jax.lax.dynamic_slice(stack, (index, j * rows, 0), (1, rows, columns))[0]
        return y + product(jax.lax.dynamic_slice_in_dim(x, j * rows, rows, x.ndim - 1), part)

    like = jax.eval_shape(product, x, jax.ShapeDtypeStruct((size, columns), stack.dtype))
    return jax.lax.fori_loop(0, count, block, jnp.zeros(like.shape, like.dtype))

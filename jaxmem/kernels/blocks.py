"""What recurrences over a chunk share: blocks of rows, one after the other or all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.tiles import pad_rows
from jaxmem.typing import Array, Float, PyTree


def wide(*arrays: Array) -> Any:
    """Return the dtype of the arithmetic: float32, or float64 where an input is."""
    return jnp.result_type(jnp.float32, *arrays)


_EXACT = lax.Precision.HIGHEST


def times(a: Array, b: Array) -> Array:
    """Return a b to the last bit that float32 has: a state adds up what products round.

    By default a GPU multiplies float32 in TF32, with three digits.
    """
    return jnp.matmul(a, b, precision=_EXACT)


def sums(how: str, *arrays: Array) -> Array:
    """Return `jnp.einsum`, as exact as `times`."""
    return jnp.einsum(how, *arrays, precision=_EXACT)


def grouped(x: Array, axis: int, groups: int) -> Array:
    """Return heads at an axis as [groups, heads of each]."""
    return x.reshape(*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])


def decays(cum: Float[Array, "*H Q"]) -> Float[Array, "*H Q Q"]:
    """Return exp(cum_i - cum_j) for j <= i, else 0.

    Masked before exp: above the diagonal it overflows.
    """
    rows = cum.shape[-1]
    seen = jnp.tri(rows, dtype=bool)
    return jnp.exp(jnp.where(seen, cum[..., :, None] - cum[..., None, :], -jnp.inf))


def one_by_one(
    body: Callable[[Array, PyTree], tuple[Array, Array]],
    state: Array,
    rows: PyTree,
    size: int,
) -> tuple[Float[Array, "T *rest"], Array]:
    """Pass a state through blocks of rows.

    Reverse mode keeps the state before every block and computes the rest again.

    Args:
      body: from the state and a block's rows to the state after it and its outputs [size, ...].
      state: before the first row.
      rows: of every leaf the leading axis T; padded with zeros to whole blocks.
      size: rows of a block.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if count <= size:
        state, y = body(state, rows)
        return y, state
    state, y = lax.scan(jax.checkpoint(body), state, in_blocks(rows, size))
    return y.reshape(-1, *y.shape[2:])[:count], state


def in_blocks(rows: PyTree, size: int) -> PyTree:
    """Return rows [T, ...] as [blocks, size, ...], the last block padded with zeros."""
    return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), pad_rows(rows, size))

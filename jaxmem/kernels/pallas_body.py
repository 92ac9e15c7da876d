"""What the bodies of the Pallas kernels share: masked loads and logits of a tile."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jaxmem.kernels.pallas_tiles import LOG2E, Form, Part, power_of_two
from jaxmem.typing import Array, Float


def dot(a: Array, b: Array, axis: int) -> Array:
    """Return a @ b in float32 over axis 1 of a and `axis` of b.

    Products of float32 are exact to float32. Where one side holds 16-bit numbers the other is
    rounded to TF32 at most, which holds those exactly.
    """
    dtype = jnp.promote_types(a.dtype, b.dtype)
    full = a.dtype == b.dtype == jnp.float32
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((1,), (axis,)), ((), ())),
        precision=lax.Precision.HIGHEST if full else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def load_columns(ref: Any, index: Array, offset: int, count: int) -> Array:
    """Return rows `index` and columns `offset` to `offset + count`, 0 where there are none.

    The result is as wide as the next power of two.
    """
    wide = power_of_two(count)
    column = lax.iota(jnp.int32, wide)
    inside = (index < ref.shape[0])[:, None] & (column < count)[None, :]
    at = ref.at[index[:, None], (offset + column)[None, :]]
    return pltriton.load(at, mask=inside, other=jnp.zeros((), ref.dtype))


def load_keys(part: Part, index: Array, form: Form, j: int) -> tuple[Array, Array]:
    """Return both halves [BK, D/2 wide] of keys of part j, rotated and in their own dtype."""
    a = load_columns(part.k, index, j * form.dim, form.half)
    b = load_columns(part.k, index, j * form.dim + form.half, form.half)
    if part.cos is None:
        return a, b
    offset = j * form.half if part.cos.shape[1] > form.half else 0
    cos = load_columns(part.cos, index, offset, form.half)
    sin = load_columns(part.sin, index, offset, form.half)
    x, y = a.astype(jnp.float32), b.astype(jnp.float32)
    return (x * cos - y * sin).astype(a.dtype), (y * cos + x * sin).astype(a.dtype)


def load_queries(ref: Any, start: Array, form: Form, j: int) -> tuple[Array, Array]:
    """Return both halves [BQ, D/2 wide] of part j of the tile of rows at `start`."""
    rows, at = pl.ds(start, form.tile.rows), 2 * j * form.wide
    return ref[rows, pl.ds(at, form.wide)], ref[rows, pl.ds(at + form.wide, form.wide)]


def product(q: tuple[Array, Array], k: tuple[Array, Array]) -> Float[Array, "BQ BK"]:
    """Return q . k of both halves."""
    return dot(q[0], k[0], 1) + dot(q[1], k[1], 1)


def load_seen(part: Part, index: Array, start: Array, form: Form) -> Array:
    """Return which rows of the tile at `start` see which keys, [BQ, BK]."""
    flag = load_numbers(part.valid, index)
    seen = jnp.broadcast_to((flag != 0)[None, :], (form.tile.rows, form.tile.keys))
    rows = pl.ds(start, form.tile.rows)
    if part.last is not None:
        seen &= index[None, :] <= part.last[rows][:, None]
    if part.first is not None:
        seen &= index[None, :] >= part.first[rows][:, None]
    if part.until is not None and part.row is not None:
        seen &= part.row[rows][:, None] < load_numbers(part.until, index)[None, :]
    return seen


def load_numbers(ref: Any, index: Array) -> Array:
    """Return a number of each key, 0 where there are none."""
    zero = jnp.zeros((), ref.dtype)
    return pltriton.load(ref.at[index], mask=index < ref.shape[0], other=zero)


def logits(
    products: Iterable[tuple[Any, Any]], part: Part, index: Array, start: Array, form: Form
) -> tuple[Float[Array, "BQ BK"], Array]:
    """Return logits of the tile of rows at `start` in units of log 2, and which of them are seen.

    Args:
      products: both halves of queries and of keys, of every part of a head; loaded as they come.
      part: what is read of the segment.
      index: of the keys.
      start: of the tile.
      form: of the kernel.
    """
    s = jnp.zeros(form.tile, jnp.float32)
    for q, k in products:
        s += product(q, k)
    seen = load_seen(part, index, start, form)
    s = s * form.to_log2
    if form.softcap is not None:
        most = form.softcap * LOG2E
        s = most * jnp.tanh(s / most)
    if part.bias is not None:
        s += load_numbers(part.bias, index)[None, :]
    return s, seen

"""The move as one Pallas (Triton) kernel over all arrays of a pool.

A program owns a block of the rows that are written and walks the columns of every array. Blocks
never overhang: the last one reaches back and writes what its neighbour writes. So no store is
masked, and two programs that write one place write the same there.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kv import take
from jaxmem.typing import Array, Bool, Int

ROWS = 16  # rows of a program
COLUMNS = 512  # columns of a tile
KNOWN = ("bool", "int8", "uint8", "int16", "int32", "uint32", "float16", "bfloat16", "float32")

T = TypeVar("T")


def _block(size: int, most: int) -> int:
    """Return the largest power of two that is at most `size` and `most`."""
    return 1 << (min(size, most).bit_length() - 1)


def _kernel(tree, *out_refs, rows: int):
    """Copy a block of rows of every array; a row beyond the last of the pool stands for zeros."""
    at_ref, leaf_refs = tree
    first = jnp.minimum(pl.program_id(0) * rows, at_ref.shape[0] - rows)
    at = at_ref[pl.ds(first, rows)]
    place = (first + lax.iota(jnp.int32, rows))[:, None]
    for ref, out_ref in zip(leaf_refs, out_refs, strict=True):
        n, width = ref.shape
        columns = _block(width, COLUMNS)
        live = jnp.broadcast_to((at < n)[:, None], (rows, columns))
        source = jnp.minimum(at, n - 1)[:, None]

        def copy(i: Array, _, ref=ref, out_ref=out_ref, live=live, source=source) -> None:
            columns = live.shape[1]
            start = jnp.minimum(i * columns, ref.shape[1] - columns)
            column = (start + lax.iota(jnp.int32, columns))[None, :]
            none = jnp.zeros((), ref.dtype)
            tile = pltriton.load(ref.at[source, column], mask=live, other=none)
            pltriton.store(out_ref.at[place, column], tile)

        lax.fori_loop(0, pl.cdiv(width, columns), copy, None)


def _launch(leaves: list[Array], at: Int[Array, "K"], interpret: bool) -> list[Array]:
    """Return rows `at` of every leaf; N stands for a row of zeros."""
    flat = [x.reshape(x.shape[0], -1) for x in leaves]
    count = at.shape[0]
    rows = _block(count, ROWS)
    tree = (at, flat)
    moved = pt.call(
        partial(_kernel, rows=rows),
        tree,
        jax.tree.map(pt.whole, tree),
        name="move",
        grid=(pl.cdiv(count, rows),),
        out_shape=[jax.ShapeDtypeStruct((count, x.shape[1]), x.dtype) for x in flat],
        out_specs=[pl.BlockSpec((count, x.shape[1]), lambda i: (0, 0)) for x in flat],
        warps=4,
        interpret=interpret,
    )
    return [x.reshape(count, *leaf.shape[1:]) for x, leaf in zip(moved, leaves, strict=True)]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _move(n: int, interpret: bool, leaves: list[Array], index: Array, keep: Array) -> list[Array]:
    at = jnp.where(keep, jnp.clip(index.astype(jnp.int32), 0, n), n)
    return _launch(leaves, at, interpret)


def _forward(n: int, interpret: bool, leaves: list[Array], index: Array, keep: Array):
    none = [x[:0] for x in leaves]  # the gradient needs no more than types and shapes
    return _move(n, interpret, leaves, index, keep), (none, index, keep)


def _backward(n: int, interpret: bool, held, cotangents):
    del interpret
    none, index, keep = held
    zeros = [jnp.zeros((n, *x.shape[1:]), x.dtype) for x in none]
    return *jax.vjp(lambda leaves: take(leaves, index, keep), zeros)[1](cotangents), None, None


_move.defvjp(_forward, _backward)


def move(slots: T, index: Int[Array, "K"], keep: Bool[Array, "K"], *, interpret: bool = False) -> T:
    """See `jaxmem.kernels.move`.

    Raises:
      NotImplementedError: for types that the kernel does not take.
    """
    leaves, structure = jax.tree.flatten(slots)
    for x in leaves:
        if x.dtype not in KNOWN:
            raise NotImplementedError(f"the kernel moves arrays of {KNOWN}, got {x.dtype}.")
    if not index.size or any(not x.size for x in leaves):
        return take(slots, index, keep)
    n = leaves[0].shape[0] if leaves else 0
    return jax.tree.unflatten(structure, _move(n, interpret, leaves, index, keep))

"""Functions of rows in tiles: what they keep does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmem.training.remat import PyTree


def tiled(f: Callable[[PyTree], PyTree], x: PyTree, tile: int) -> PyTree:
    """Return f(x) of a function of rows, computed in tiles, each again in the backward pass.

    For what is wide: the logits of a loss [T, V], the inside of an MLP (ALST, arXiv 2506.13996). In
    value and gradient there is one tile of it at a time; x and f(x) are there whole.

    Args:
      f: a function of rows: row t of its result depends on row t of x alone. Weights that it closes
        over have a gradient.
      x: rows [T, ...], a tree.
      tile: rows of a tile.

    Raises:
      ValueError: if a tile has no row.
    """
    if tile < 1:
        raise ValueError(f"a tile needs at least one row, got {tile}.")
    rows = jax.tree.leaves(x)[0].shape[0]
    if rows <= tile:
        return jax.checkpoint(f)(x)
    count = -(-rows // tile)

    def cut(a: jax.Array) -> jax.Array:
        ends = [(0, count * tile - rows)] + [(0, 0)] * (a.ndim - 1)
        return jnp.pad(a, ends, mode="edge").reshape(count, tile, *a.shape[1:])

    out = jax.lax.map(jax.checkpoint(f, prevent_cse=False), jax.tree.map(cut, x))
    return jax.tree.map(lambda a: a.reshape(count * tile, *a.shape[2:])[:rows], out)

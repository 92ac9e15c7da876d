"""Column sums in the kernel of attention: a second walk of a tile of rows over all keys.

The weights of a row are known when its last key has been seen, so no single walk gives their sums
over rows: sum_r exp(s[r, n] - lse[r]) does not come apart into what is known of a block of keys
before the last one and a number per tile. The program that owns the rows has their log-sum-exp in
registers, and the keys lie in the second-level cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxmem.kernels import pallas_body as pb
from jaxmem.kernels import pallas_tiles as pt
from jaxmem.typing import Array, Bool, Float


class Counted(NamedTuple):
    """Which rows count, as arrays, block specs or refs."""

    row: Any  # [padded rows] int32, 1 where a row counts
    slot: Any  # [row_blocks] int32, where a tile writes its sums; -1: none of its rows counts


def counted_of(rows: Bool[Array, "Q"], form: pt.Form) -> Counted:
    """Return which folded rows count; tiles with such rows are numbered."""
    flag = jnp.repeat(rows.astype(jnp.int32), form.rows // rows.shape[0])
    flag = pt.pad(flag, 0, form.padded)
    some = jnp.max(flag.reshape(-1, form.tile.rows), axis=1)
    return Counted(flag, jnp.where(some > 0, jnp.cumsum(some) - 1, -1))


def most_tiles(most: int | None, shared: int, form: pt.Form) -> int:
    """Return how many tiles can hold the folded rows of `most` rows, `shared` of each."""
    if most is None:
        return form.row_blocks
    return min(form.row_blocks, most * (pl.cdiv(shared - 1, form.tile.rows) + 1))


def sums_shape(n: int, slots: int, form: pt.Form) -> tuple[int, int, int]:
    """Return the shape of the partial sums of a segment: tiles, owners, keys in whole blocks."""
    return slots, form.owners, pl.cdiv(n, form.tile.keys) * form.tile.keys


def sweep(
    out: Any,
    query: Any,
    part: pt.Part,
    limits: tuple[Any, Any],
    shift: Float[Array, "BQ"],
    place: tuple[Any, Any],
    form: pt.Form,
) -> None:
    """Write a tile's column sums over one segment; keys that it does not see get 0.

    Args:
      out: where to, [slots, N in whole blocks].
      query: rotated queries of the owner.
      part: what is read of the segment.
      limits: of the blocks of keys that the tile sees, [begin, end).
      shift: log-sum-exp of the rows in units of log 2; infinite where a row does not count.
      place: slot of the tile (-1: nothing is written), and its first row.
      form: of the kernel.
    """
    (slot, start), (first, stop), keys = place, limits, form.tile.keys
    seen_blocks = jnp.maximum(stop - first, 0)
    held = pb.load_queries(query, start, form, 0)

    def add(i: Any, _: None) -> None:
        index = i * keys + lax.iota(jnp.int32, keys)
        s, seen = pb.logits([(held, pb.load_keys(part, index, form, 0))], part, index, start, form)
        p = jnp.where(seen, jnp.exp2(s - shift[:, None]), 0.0)
        out[slot, pl.ds(i * keys, keys)] = jnp.sum(p, axis=0)

    def clear(i: Any, _: None) -> None:
        i = jnp.where(i < first, i, i + seen_blocks)
        out[slot, pl.ds(i * keys, keys)] = jnp.zeros((keys,), jnp.float32)

    @pl.when(slot >= 0)
    def _() -> None:
        lax.fori_loop(first, stop, add, None)
        lax.fori_loop(0, out.shape[1] // keys - seen_blocks, clear, None)


def added(
    partial: Sequence[Float[Array, "slots C _"]], sizes: Sequence[int], counted: Counted
) -> tuple[Float[Array, "C N"], ...]:
    """Return the sums over all tiles, always in the same order; slots without a tile are empty."""
    used = jnp.arange(partial[0].shape[0], dtype=jnp.int32) <= jnp.max(counted.slot)
    return tuple(
        jnp.sum(jnp.where(used[:, None, None], x, 0.0), axis=0)[:, :n]
        for x, n in zip(partial, sizes, strict=True)
    )

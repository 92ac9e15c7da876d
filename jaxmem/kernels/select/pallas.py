"""Selection as two small Pallas (Triton) kernels: a threshold per group, and a stable partition.

Both walk a row in blocks, so a row of any length fits. Keys are made, and groups united, in XLA.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kernels.select.ref import NEVER, ordered
from jaxmem.typing import Array, Bool, Float, Int

BLOCK = 2048  # entries of a row that a program holds at a time


def _threshold_kernel(tree: Any, t_ref: Any, edge_ref: Any, *, block: int, blocks: int):
    """Find t and edge: entries above t are chosen, and those equal to t from index edge on."""
    key_ref, cap_ref = tree
    cap = cap_ref[0]

    def load(i: Array) -> Array:
        return key_ref[pl.ds(i * block, block)]

    def count(test: Any) -> Array:
        zero = jnp.zeros((block,), jnp.int32)
        body = lambda i, total: total + test(load(i)).astype(jnp.int32)
        return jnp.sum(lax.fori_loop(0, blocks, body, zero), dtype=jnp.int32)

    def halve(i: Array, t: Array) -> Array:
        higher = t | (jnp.int32(1) << (30 - i))
        return jnp.where(count(lambda x: x >= higher) >= cap, higher, t)

    sign = jnp.where(count(lambda x: x >= 0) >= cap, np.int32(0), NEVER)
    t = jnp.maximum(lax.fori_loop(0, 31, halve, sign), np.int32(NEVER + 1))
    room = cap - count(lambda x: x > t)
    level = count(lambda x: x == t)

    def find(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        before, edge = carry
        equal = (load(i) == t).astype(jnp.int32)
        newer = level - before - jnp.cumsum(equal) + equal  # equal ones from this index on
        index = i * block + lax.iota(jnp.int32, block)
        ours = jnp.where((equal > 0) & (newer <= room), index, np.int32(block * blocks))
        return before + jnp.sum(equal, dtype=jnp.int32), jnp.minimum(edge, jnp.min(ours))

    start = (jnp.int32(0), jnp.int32(block * blocks))
    t_ref[0], edge_ref[0] = t, lax.fori_loop(0, blocks, find, start)[1]


def _partition_kernel(tree: Any, out_ref: Any, *, block: int, blocks: int, slots: int):
    """Write the last `slots` chosen indices, then all others, each in ascending order."""
    chosen_ref, many_ref = tree
    many = many_ref[0]
    drop = jnp.maximum(many - slots, 0)

    def body(i: Array, before: Array) -> Array:
        chosen = chosen_ref[pl.ds(i * block, block)]
        rank = before + jnp.cumsum(chosen) - chosen  # chosen ones at smaller indices
        kept = jnp.maximum(rank - drop, 0)
        index = i * block + lax.iota(jnp.int32, block)
        live = (chosen > 0) & (rank >= drop)
        # All places differ, so the store needs no mask and programs of other rows no order.
        place = jnp.where(live, kept, many - drop + index - kept)
        pltriton.store(out_ref.at[place], index)
        return before + jnp.sum(chosen, dtype=jnp.int32)

    lax.fori_loop(0, blocks, body, jnp.int32(0))


def _blocks(n: int, block: int | None) -> tuple[int, int]:
    block = block or min(BLOCK, pt.power_of_two(n, 128))
    return block, pl.cdiv(n, block)


def top_mask(
    scores: Float[Array, "C N"],
    caps: Int[Array, "C"],
    *,
    most: int | None = None,  # the caps keep to it already
    block: int | None = None,
    interpret: bool = False,
) -> Bool[Array, "C N"]:
    """See `jaxmem.kernels.select`. `block` overrides the size of a block, a power of two."""
    groups, n = scores.shape
    block, blocks = _blocks(n, block)
    key = ordered(scores)
    padded = pt.pad(key, 1, block * blocks, int(NEVER))
    caps = caps.astype(jnp.int32)
    one = pl.BlockSpec((1,), lambda c: (c,))
    t, edge = pt.call(
        partial(_threshold_kernel, block=block, blocks=blocks),
        (padded, caps),
        (pt.of_owner(padded), one),
        name="threshold",
        grid=(groups,),
        out_shape=[jax.ShapeDtypeStruct((groups,), jnp.int32)] * 2,
        out_specs=[one, one],
        warps=8,
        interpret=interpret,
    )
    index = jnp.arange(n, dtype=jnp.int32)[None]
    return (key > t[:, None]) | ((key == t[:, None]) & (index >= edge[:, None]))


def select(
    scores: Float[Array, "C N"],
    caps: Int[Array, "C"],
    *,
    slots: int,
    most: int | None = None,  # the caps keep to it already
    block: int | None = None,
    interpret: bool = False,
) -> tuple[Int[Array, "K"], Bool[Array, "K"]]:
    """See `jaxmem.kernels.select`. `block` overrides the size of a block, a power of two."""
    n = scores.shape[1]
    chosen = jnp.any(top_mask(scores, caps, block=block, interpret=interpret), axis=0)
    block, blocks = _blocks(n, block)
    size = block * blocks
    flags = pt.pad(chosen.astype(jnp.int32), 0, size)
    many = jnp.sum(flags, dtype=jnp.int32)[None]
    order = pt.call(
        partial(_partition_kernel, block=block, blocks=blocks, slots=slots),
        (flags, many),
        (pt.whole(flags), pt.whole(many)),
        name="partition",
        grid=(1,),
        out_shape=jax.ShapeDtypeStruct((size,), jnp.int32),
        out_specs=pl.BlockSpec((size,), lambda _: (0,)),
        warps=8,
        interpret=interpret,
    )
    index = jnp.minimum(pt.pad(order, 0, max(size, slots))[:slots], n - 1)
    return index, jnp.arange(slots, dtype=jnp.int32) < many

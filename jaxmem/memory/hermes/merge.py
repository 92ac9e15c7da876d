"""Merging: what becomes of tokens that are not kept one by one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmem.kv import KV, SUMMARY, take, valid
from jaxmem.memory.parts import positions
from jaxmem.typing import Array, Bool, Int, Num


def summary(kv: KV, members: Bool[Array, "N"], pos: Num[Array, "A"], number: Int[Array, ""]) -> KV:
    """Return one token [1] in place of `members`: their mean key and value.

    Rotations compose, so the mean of keys that were each turned to `pos` is the mean of the
    unrotated keys, turned there once. Means are taken in float32 (HERMES, arXiv 2601.14724,
    algorithm 1). A member that is itself a summary counts as one token. Keys are those before
    rotation, and without any member key and value are zero; `number` is the summary's arrival
    number.
    """
    weight = members.astype(jnp.float32) / jnp.maximum(jnp.sum(members), 1)

    def mean(x: Array) -> Array:
        wide = jnp.where(members[:, None, None], x.astype(jnp.float32), 0.0)
        return jnp.sum(wide * weight[:, None, None], axis=0, keepdims=True).astype(x.dtype)

    groups = kv.modality.shape[1]
    return KV(
        k=mean(kv.k),
        v=mean(kv.v),
        pos=jnp.broadcast_to(pos[None, None].astype(kv.pos.dtype), (1, groups, pos.shape[0])),
        index=jnp.full((1, groups), number, kv.index.dtype),
        modality=jnp.full((1, groups), SUMMARY, kv.modality.dtype),
    )


def shrink(
    pool: KV,
    index: Int[Array, "S"],
    keep: Bool[Array, "S"],
    *,
    fold: Bool[Array, ""] | bool,
    close: Bool[Array, ""] | bool,
    start: Num[Array, "A"],
    last: bool = True,
) -> KV:
    """Return a layer's kept tokens with their positions, and the summary of the others after them.

    The pool [N] has valid entries first, of which `index` (ascending, those that `keep` counts) are
    kept. `fold`: add a summary if anything is dropped, for which there must be a slot; it comes
    after all kept tokens (`last`), or where the newest one is. `close`: close the gaps between
    positions (`positions.compact`), which begin at `start`.
    """
    kept, used = take(pool, index, keep), jnp.sum(keep, dtype=jnp.int32)
    old = kept.pos[:, 0]
    new = jnp.where(close, positions.compact(old, keep, start), old)
    kept = kept._replace(pos=kept.pos + (new - old)[:, None])
    kept = take(kept, jnp.arange(keep.shape[0]), keep)  # what holds nothing stays zero

    size = pool.modality.shape[0]
    chosen = jnp.zeros((size,), bool).at[jnp.where(keep, index, size)].set(True, mode="drop")
    gone = valid(pool)[:, 0] & ~chosen
    at = new[jnp.maximum(used - 1, 0)]
    if last:  # not rounded: only chunks begin at whole positions
        at = jnp.broadcast_to(positions.largest(new, keep, start) + 1, at.shape)
    number = jnp.max(pool.index) + 1  # the one that the clock spares for it
    one = summary(pool, gone, at, number)
    here = (jnp.arange(keep.shape[0]) == used) & fold & jnp.any(gone)

    def put(slot: Array, new: Array) -> Array:
        return jnp.where(here.reshape(-1, *(1,) * (slot.ndim - 1)), new, slot)

    return jax.tree.map(put, kept, one)

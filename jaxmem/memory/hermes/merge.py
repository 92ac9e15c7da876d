"""Merging: what becomes of tokens that are not kept one by one."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kv import EMPTY, KV, SUMMARY, take
from jaxmem.memory.parts import positions
from jaxmem.rope import Rope, rope
from jaxmem.typing import Array, Bool, Int, Num


class Slots(NamedTuple):
    """Tokens of a layer, and the positions recorded for them where these are not the rotation."""

    tokens: KV
    record: Num[Array, "S A"] | None = None  # None: `tokens.pos` is the record

    @property
    def placed(self) -> Num[Array, "S A"]:
        """The recorded positions (of the first group)."""
        return self.tokens.pos[:, 0] if self.record is None else self.record

    @property
    def held(self) -> Bool[Array, "S"]:
        """Which slots hold a token."""
        return self.tokens.modality[:, 0] != EMPTY


def summary(
    tokens: KV, members: Bool[Array, "N"], pos: Num[Array, "A"], order: Int[Array, ""]
) -> KV:
    """Return one token [1] that stands for `members`: their mean key and value.

    Rotations compose, so the mean of keys that were each turned to `pos` is the mean of the
    unrotated keys, turned there once. Means are taken in float32 (HERMES, arXiv 2601.14724,
    algorithm 1). A member that is itself a summary counts as one token.

    Args:
      tokens: [N], keys before rotation.
      members: who is merged; without any, key and value are zero.
      pos: where the summary stands.
      order: its arrival number.
    """
    weight = members.astype(jnp.float32) / jnp.maximum(jnp.sum(members), 1)

    def mean(x: Array) -> Array:
        wide = jnp.where(members[:, None, None], x.astype(jnp.float32), 0.0)
        return jnp.sum(wide * weight[:, None, None], axis=0, keepdims=True).astype(x.dtype)

    groups = tokens.modality.shape[1]
    return KV(
        k=mean(tokens.k),
        v=mean(tokens.v),
        pos=jnp.broadcast_to(pos[None, None].astype(tokens.pos.dtype), (1, groups, pos.shape[0])),
        index=jnp.full((1, groups), order, tokens.index.dtype),
        modality=jnp.full((1, groups), SUMMARY, tokens.modality.dtype),
    )


def shrink(
    pool: Slots,
    index: Int[Array, "S"],
    keep: Bool[Array, "S"],
    *,
    fold: Bool[Array, ""] | bool,
    close: Bool[Array, ""] | bool,
    start: Num[Array, "A"],
    turn: Rope | None = None,
    behind: bool = True,
) -> Slots:
    """Return a layer's kept slots with their positions, and the summary of the others behind them.

    Args:
      pool: [N], valid entries first.
      index: chosen pool entries, ascending.
      keep: which of `index` count.
      fold: add a summary if anything is dropped; there must be a slot for it.
      close: close the gaps between positions (`positions.compact`).
      start: P, where positions begin.
      turn: rotary embedding, where keys are rotated elsewhere than recorded: the summary is then
        the mean of keys shifted as recorded.
      behind: the summary stands behind all kept tokens; otherwise where the newest one stands.
    """
    kept = take(pool, index, keep)
    old, used = kept.placed, jnp.sum(keep, dtype=jnp.int32)
    new = jnp.where(close, positions.compact(old, keep, start), old)
    pos = kept.tokens.pos + (new - old)[:, None]
    kept = Slots(kept.tokens._replace(pos=pos), None if kept.record is None else new)
    kept = take(kept, jnp.arange(keep.shape[0]), keep)  # what holds nothing stays zero

    size = pool.tokens.modality.shape[0]
    chosen = jnp.zeros((size,), bool).at[jnp.where(keep, index, size)].set(True, mode="drop")
    gone = pool.held & ~chosen
    at = new[jnp.maximum(used - 1, 0)]
    if behind:  # not rounded: only chunks begin at whole positions
        at = jnp.broadcast_to(positions.largest(new, keep, start) + 1, at.shape)
    source = pool.tokens
    if turn is not None:
        source = source._replace(k=rope(source.k, source.pos - pool.placed[:, None], turn))
    order = jnp.max(pool.tokens.index) + 1  # the number that the clock spares for it
    token = summary(source, gone, at, order)
    one = Slots(token, None if pool.record is None else at[None].astype(pool.record.dtype))
    here = (jnp.arange(keep.shape[0]) == used) & fold & jnp.any(gone)

    def put(slot: Array, new: Array) -> Array:
        return jnp.where(here.reshape(-1, *(1,) * (slot.ndim - 1)), new, slot)

    return jax.tree.map(put, kept, one)

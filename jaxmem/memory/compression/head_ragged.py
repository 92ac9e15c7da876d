"""Heads of a layer that hold different numbers of tokens, in one flat array of fixed length.

The flat array [M, 1, ...] holds what head 0 has, then head 1, ..., then what is empty; `counts`
says where a head begins. Spread out, [W, G, ...], every head has W slots, of which some are empty.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kernels.select import select, top_mask
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk
from jaxmem.memory.parts import scored as evict
from jaxmem.typing import Array, Bool, Float, Int

T = TypeVar("T")


def unpack(flat: T, counts: Int[Array, "G"], width: int) -> T:
    """Return leaves [M, 1, ...] as [W, G, ...], every head's tokens first, zeros behind them.

    `width` is W, at least the largest count.
    """
    first = jnp.cumsum(counts, dtype=jnp.int32) - counts
    slot = jnp.arange(width, dtype=jnp.int32)[:, None]
    index, keep = first[None] + slot, slot < counts[None]
    rows = tk.take(flat, index.reshape(-1), keep.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(*index.shape, *x.shape[2:]), rows)


def behind(spread: T, fresh: T, counts: Int[Array, "G"]) -> T:
    """Return memory [W, G, ...] and chunk [T, G, ...] as one pool [W + T, G, ...].

    Every head's tokens move to the end of their slots, so that the chunk has the same entries in
    all heads; what is empty comes first.
    """

    def one(held: Array, new: Array) -> Array:
        roll = jax.vmap(partial(jnp.roll, axis=0), in_axes=(1, 0), out_axes=1)
        last = roll(held, held.shape[0] - counts)
        return jnp.concatenate([last, new.astype(held.dtype)])

    return jax.tree.map(one, spread, fresh)


def pool_of(tokens: KV, seen: Chunk, counts: Int[Array, "G"]) -> evict.Pool:
    """Return what a score sees of memory and chunk, which `behind` has joined."""
    rows = jnp.sum(seen.tokens.modality[:, 0] != tk.EMPTY, dtype=jnp.int32)
    mass = seen.mass
    if mass is not None:
        mass = jax.lax.stop_gradient(behind(mass.memory.T, mass.chunk.T, counts).T)
    n = tokens.modality.shape[0] - seen.tokens.modality.shape[0] + rows
    return evict.Pool(tokens, mass, n, rows, seen.next_pos, seen.queries)


def best(ranked: Float[Array, "G C N"], caps: Int[Array, "C"]) -> Bool[Array, "G C N"]:
    """Return the G * caps[c] best entries of each part over all heads together."""
    groups, parts, n = ranked.shape
    # Entry by entry, all heads of each: equal scores go to the newer token, whatever its head.
    flat = top_mask(ranked.transpose(1, 2, 0).reshape(parts, n * groups), groups * caps)
    return flat.reshape(parts, n, groups).transpose(2, 0, 1)


def best_of_each(ranked: Float[Array, "G C N"], caps: tuple[int, ...]) -> Bool[Array, "G C N"]:
    """Return the caps[c] best entries of each part in every head."""
    return jax.vmap(top_mask, in_axes=(0, None))(ranked, jnp.asarray(caps, jnp.int32))


def pack(
    spread: T, mask: Bool[Array, "G N"], room: Int[Array, ""], slots: int
) -> tuple[T, Int[Array, "G"]]:
    """Return the marked entries of leaves [N, G, ...] as [slots, 1, ...], and how many heads have.

    Args:
      spread: side by side.
      mask: which entries of every head are taken.
      room: how many may be taken.
      slots: M.
    """
    groups, n = mask.shape
    chosen = jnp.where(mask.reshape(1, -1), 0.0, -jnp.inf)
    index, keep = select(chosen, room[None], slots=slots)
    head, entry = index // n, index % n
    rows = jax.tree.map(lambda x: x.reshape(n * groups, 1, *x.shape[2:]), spread)
    of_head = (head[None] == jnp.arange(groups, dtype=jnp.int32)[:, None]) & keep[None]
    flat = tk.take(rows, entry * groups + head, keep)
    return flat, jnp.sum(of_head, axis=1, dtype=jnp.int32)

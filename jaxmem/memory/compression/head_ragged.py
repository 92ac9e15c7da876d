"""Heads of a layer that hold different numbers of tokens, in one flat array of fixed length.

The flat array [M, 1, ...] holds what head 0 has, then head 1, ..., then what is empty; `counts`
says where a head begins. Spread out, [W, G, ...], every head has W slots, of which some are empty.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.select import select, top_mask
from jaxmem.kv import KV
from jaxmem.memory.base import Spec
from jaxmem.memory.exchange import Chunk
from jaxmem.memory.parts.scored import Candidates
from jaxmem.typing import Array, Bool, Float, Int, Num

T = TypeVar("T")


def unpack(flat: T, counts: Int[Array, "G"], width: int) -> T:
    """Return leaves [M, 1, ...] as [W, G, ...], every head's tokens first, zeros after them.

    `width` is W, at least the largest count.
    """
    first = jnp.cumsum(counts, dtype=jnp.int32) - counts
    slot = jnp.arange(width, dtype=jnp.int32)[:, None]
    index, keep = first[None] + slot, slot < counts[None]
    rows = kvs.take(flat, index.reshape(-1), keep.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(*index.shape, *x.shape[2:]), rows)


def after(spread: T, fresh: T, counts: Int[Array, "G"]) -> T:
    """Return memory [W, G, ...] and chunk [T, G, ...] as one pool [W + T, G, ...].

    Every head's tokens move to the end of their slots, so that the chunk has the same entries in
    all heads; what is empty comes first.
    """

    def one(held: Array, new: Array) -> Array:
        roll = jax.vmap(partial(jnp.roll, axis=0), in_axes=(1, 0), out_axes=1)
        last = roll(held, held.shape[0] - counts)
        return jnp.concatenate([last, new.astype(held.dtype)])

    return jax.tree.map(one, spread, fresh)


def candidates_of(
    spec: Spec, kv: KV, chunk: Chunk, counts: Int[Array, "G"], next_pos: Num[Array, "A"]
) -> Candidates:
    """Return what a score sees of memory and chunk, which `after` has joined."""
    rows = jnp.sum(chunk.kv.modality[:, 0] != kvs.EMPTY, dtype=jnp.int32)
    received = chunk.received
    total = None
    if received is not None:
        total = jax.lax.stop_gradient(after(received.memory.T, received.chunk.T, counts).T)
    n = kv.modality.shape[0] - chunk.kv.modality.shape[0] + rows
    return Candidates(kv, total, n, rows, next_pos, chunk.queries, spec)


def best(ranked: Float[Array, "G C N"], quotas: Int[Array, "C"]) -> Bool[Array, "G C N"]:
    """Return the G * quotas[c] best entries of each part over all heads together."""
    groups, parts, n = ranked.shape
    # Entry by entry, all heads of each: equal scores go to the newer token, whatever its head.
    flat = top_mask(ranked.transpose(1, 2, 0).reshape(parts, n * groups), groups * quotas)
    return flat.reshape(parts, n, groups).transpose(2, 0, 1)


def pack(
    spread: T, mask: Bool[Array, "G N"], capacity: Int[Array, ""], slots: int
) -> tuple[T, Int[Array, "G"]]:
    """Return the marked entries of leaves [N, G, ...] as [slots, 1, ...], and how many heads have.

    `mask` says which entries of every head are taken, `capacity` how many may be; `slots` is M.
    """
    groups, n = mask.shape
    chosen = jnp.where(mask.reshape(1, -1), 0.0, -jnp.inf)
    index, keep = select(chosen, capacity[None], slots=slots)
    head, entry = index // n, index % n
    rows = jax.tree.map(lambda x: x.reshape(n * groups, 1, *x.shape[2:]), spread)
    of_head = (head[None] == jnp.arange(groups, dtype=jnp.int32)[:, None]) & keep[None]
    flat = kvs.take(rows, entry * groups + head, keep)
    return flat, jnp.sum(of_head, axis=1, dtype=jnp.int32)

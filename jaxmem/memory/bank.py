"""The bank: a larger store that what a memory evicts (spills) goes to, and recall draws from.

It belongs to the streaming loop, `[L, capacity, ...]` beside the state, never to a state that the
layer loop slices: appending writes one row block in place, whatever the capacity. Entries lie in
the order of their arrival; a full bank keeps the oldest and counts what it had no room for.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.base import Memory, Spec, tokens_of
from jaxmem.tokens import EMPTY
from jaxmem.typing import Array, Int, PyTree


class Bank(NamedTuple):
    """Spilled slots. The loop holds all layers (leading axis L); a layer's memory sees its own."""

    slots: PyTree  # as the memory spills: [capacity + room for one spill, ...]
    count: Int[Array, ""]  # entries in use
    lost: Int[Array, ""]  # entries that came when the bank was full


def init_bank(memory: Memory, spec: Spec) -> Bank | None:
    """Return the empty bank of all layers, or None if the memory spills nothing or capacity is 0.

    One spill's worth of rows lies behind the capacity, so that a spill can always be written
    whole, its padding included.
    """
    if memory.spill is None or not spec.bank:
        return None
    one = memory.spill(spec)

    def room(leaf: Array) -> Array:
        return jnp.zeros((spec.layers, spec.bank + leaf.shape[0], *leaf.shape[1:]), leaf.dtype)

    zero = jnp.zeros((spec.layers,), jnp.int32)
    return Bank(jax.tree.map(room, one), zero, zero)


def nbytes(memory: Memory, spec: Spec) -> int:
    """Return the bytes of a memory's bank over all layers, without allocating it."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda: init_bank(memory, spec)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def append_spill(bank: Bank | None, layer: Int[Array, ""], spill: PyTree) -> Bank | None:
    """Write a layer's spill [R, ...] (valid rows first) behind its entries."""
    if bank is None or spill is None:
        return bank
    rows = tokens_of(spill).kind
    capacity = tokens_of(bank.slots).kind.shape[1] - rows.shape[0]
    fresh = jnp.sum(rows[:, 0] != EMPTY, dtype=jnp.int32)
    at = bank.count[layer]
    full = jnp.minimum(at + fresh, capacity)

    def put(store: Array, new: Array) -> Array:
        start = (layer, at) + (0,) * (store.ndim - 2)
        return jax.lax.dynamic_update_slice(store, new[None].astype(store.dtype), start)

    return Bank(
        slots=jax.tree.map(put, bank.slots, spill),
        count=bank.count.at[layer].set(full),
        lost=bank.lost.at[layer].add(at + fresh - full),
    )

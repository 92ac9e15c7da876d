"""The bank: a larger store that what a memory evicts (spills) goes to, and recall draws from.

It belongs to the streaming loop, `[L, capacity, ...]` beside the state, never to a state that the
layer loop slices: writing changes a few rows in place, whatever the capacity. A memory that spills
rows has them appended: entries lie in the order of their arrival, a full bank keeps the oldest and
counts what it had no room for. A memory that spills `Blocks` says itself where they go.

With `Spec.bank_space` "host" the entries lie in host memory, and only the rows that are written
or read ever cross over (`jaxmem.memory.bank.host_memory`); the counts stay on the device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kv import EMPTY
from jaxmem.memory import base
from jaxmem.memory.bank import host_memory as store
from jaxmem.memory.base import Memory, Spec, at_layer, kv_of
from jaxmem.typing import Array, Int, PyTree


class Bank(NamedTuple):
    """Spilled slots. The loop holds all layers (leading axis L); a layer's memory sees its own."""

    slots: PyTree  # as the memory spills: [entries, ...]
    count: Int[Array, ""]  # entries in use
    lost: Int[Array, ""]  # entries that were turned away or displaced
    layer: Int[Array, ""] | None = None  # set: `slots` are those of all layers, and this one's mine


class Blocks(NamedTuple):
    """A spill of whole blocks, and the entries of the bank that they go to."""

    tokens: PyTree  # [R, block, ...]
    source: Int[Array, "n"]  # which block
    at: Int[Array, "n"]  # the entry that it begins at
    many: Int[Array, ""]  # how many of the n are written
    count: Int[Array, ""]  # entries in use afterwards
    lost: Int[Array, ""]  # entries displaced or turned away


class Footprint(NamedTuple):
    """Bytes at rest over all layers, in two memories."""

    device: int  # state with all its notes, counts, and the bank where it lies on the device
    host: int  # entries of a bank in host memory


def init_bank(memory: Memory, spec: Spec) -> Bank | None:
    """Return the empty bank of all layers, or None if the memory spills nothing or capacity is 0.

    One spill's worth of rows lies behind the capacity of a bank that is appended to, so that a
    spill can always be written whole, its padding included. A memory whose empty spill has several
    blocks has as many banks in one, each of the capacity.

    Raises:
      ValueError: if the bank is wanted in host memory and the device has none.
    """
    capacity = spec.bank if memory.bank is None else memory.bank
    if memory.spill is None or not capacity:
        return None
    one = memory.spill(spec)
    if isinstance(one, Blocks):
        capacity *= kv_of(one.tokens).modality.shape[0]
        one, behind = jax.tree.map(lambda x: x[0], one.tokens), 0
    else:
        behind = kv_of(one).modality.shape[0]

    def room(leaf: Array) -> Array:
        shape = (spec.layers, capacity + behind, *leaf.shape[1:])
        return store.zeros(shape, leaf.dtype, spec.bank_space)

    # Carries are donated, so no two leaves may be the same buffer.
    count, lost = jnp.zeros((spec.layers,), jnp.int32), jnp.zeros((spec.layers,), jnp.int32)
    return Bank(jax.tree.map(room, one), count, lost)


def of_layer(bank: Bank | None, layer: Int[Array, ""]) -> Bank | None:
    """Return what one layer's memory sees of the bank; nothing is copied."""
    if bank is None or not store.on_host(jax.tree.leaves(bank.slots)[0]):
        return at_layer(bank, layer)
    # A slice of a layer would be a copy in host memory: the rows are sliced out when they are read.
    return Bank(bank.slots, bank.count[layer], bank.lost[layer], layer)


def read(bank: Bank, at: Int[Array, "n"], size: int) -> PyTree:
    """Return stretches of `size` entries from `at` on [n * size, ...], on the device."""
    layer = bank.layer
    if layer is not None:
        return jax.tree.map(lambda x: store.get(x, layer, at, size), bank.slots)
    index = (at[:, None] + jnp.arange(size, dtype=at.dtype)[None]).reshape(-1)
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="clip"), bank.slots)


def nbytes(memory: Memory, spec: Spec) -> int:
    """Return the bytes of a memory's bank over all layers, without allocating it."""
    return sum(_sizes(memory, spec))


def footprint(memory: Memory, spec: Spec) -> Footprint:
    """Return what a memory and its bank hold on the device and in host memory.

    Nothing is allocated. `base.nbytes` is the state's part of it.
    """
    entries, counts = _sizes(memory, spec)
    device = base.nbytes(memory, spec) + counts
    if spec.bank_space == "host":
        return Footprint(device, entries)
    return Footprint(device + entries, 0)


def _sizes(memory: Memory, spec: Spec) -> tuple[int, int]:
    """Return the bytes of the bank's entries and of its counts."""
    bank = jax.eval_shape(lambda: init_bank(memory, replace(spec, bank_space="device")))
    if bank is None:
        return 0, 0
    weigh = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    return weigh(bank.slots), weigh((bank.count, bank.lost))


def append_spill(bank: Bank | None, layer: Int[Array, ""], spill: PyTree) -> Bank | None:
    """Write a layer's spill: blocks where they belong, or rows (valid ones first) at the end."""
    if bank is None or spill is None:
        return bank
    if isinstance(spill, Blocks):
        return _write(bank, layer, spill)
    rows = kv_of(spill).modality
    capacity = kv_of(bank.slots).modality.shape[1] - rows.shape[0]
    fresh = jnp.sum(rows[:, 0] != EMPTY, dtype=jnp.int32)
    at = bank.count[layer]
    full = jnp.minimum(at + fresh, capacity)
    whole, first = jax.tree.map(lambda x: x[None], spill), jnp.zeros((1,), jnp.int32)
    return _write(bank, layer, Blocks(whole, first, at[None], fresh > 0, full, at + fresh - full))


def _write(bank: Bank, layer: Int[Array, ""], spill: Blocks) -> Bank:
    many = spill.many.astype(jnp.int32)

    def put(entries: Array, rows: Array) -> Array:
        return store.put(entries, layer, rows, spill.source, spill.at, many)

    return Bank(
        slots=jax.tree.map(put, bank.slots, spill.tokens),
        count=bank.count.at[layer].set(spill.count),
        lost=bank.lost.at[layer].add(spill.lost),
    )

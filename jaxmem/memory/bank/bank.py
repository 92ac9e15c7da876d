"""The bank: a larger store that what a memory evicts goes to, and recall draws from.

It belongs to the streaming loop, `[L, capacity, ...]` beside the state, never to a state that the
layer loop slices: writing changes a few rows in place, whatever the capacity. A memory that evicts
rows has them appended: entries lie in the order of their arrival, a full bank keeps the oldest and
counts what it had no room for. A memory that evicts `Blocks` says itself where they go.

With `BankSpec.space` "host" the entries lie in host memory, and only the rows that are written or
read ever cross over (`jaxmem.memory.bank.host_memory`); the counts stay on the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kv import EMPTY
from jaxmem.memory.bank import host_memory
from jaxmem.memory.base import AnyMemory, FeatureMemory, Spec, at_layer, kv_of
from jaxmem.memory.sizes import stream_nbytes
from jaxmem.typing import Array, Int, PyTree


class Bank(NamedTuple):
    """Evicted slots. The loop holds all layers (leading axis L); a layer's memory sees its own."""

    slots: PyTree  # as the memory evicts them: [entries, ...]
    count: Int[Array, ""]  # entries in use
    dropped: Int[Array, ""]  # entries that were turned away or displaced, at most 2^31 - 1
    layer: Int[Array, ""] | None = None  # set: `slots` are those of all layers, and this one's mine


class Blocks(NamedTuple):
    """Whole blocks that were evicted, and the entries of the bank that they go to."""

    kv: PyTree  # [R, block, ...]
    source: Int[Array, "n"]  # which block
    at: Int[Array, "n"]  # the entry that it begins at
    many: Int[Array, ""]  # how many of the n are written
    count: Int[Array, ""]  # entries in use afterwards
    dropped: Int[Array, ""]  # entries displaced or turned away


class Footprint(NamedTuple):
    """Bytes at rest over all layers, in two memories."""

    device: int  # state with its counts, and the bank where it lies on the device
    host: int  # entries of a bank in host memory


def init_bank(memory: AnyMemory, spec: Spec, space: host_memory.Space | None = None) -> Bank | None:
    """Return the empty bank of all layers, or None if the memory asks for none.

    One write's worth of rows lies after the capacity of a bank that is appended to, so that what is
    evicted can always be written whole, its padding included. A memory whose empty eviction has
    several blocks has as many banks in one, each of the capacity. `space` is the memory that the
    entries lie in; None: as the memory asks.

    Raises:
      ValueError: if the bank is wanted in host memory and the device has none.
    """
    asked = _asked(memory, spec)
    if asked is None:
        return None
    capacity, one = asked.capacity, asked.evicted
    if isinstance(one, Blocks):
        capacity *= kv_of(one.kv).modality.shape[0]
        one, after = jax.tree.map(lambda x: x[0], one.kv), 0
    else:
        after = kv_of(one).modality.shape[0]

    def room(leaf: Array) -> Array:
        shape = (spec.layers, capacity + after, *leaf.shape[1:])
        return host_memory.zeros(shape, leaf.dtype, space or asked.space)

    # Carries are donated, so no two leaves may be the same buffer.
    count, dropped = jnp.zeros((spec.layers,), jnp.int32), jnp.zeros((spec.layers,), jnp.int32)
    return Bank(jax.tree.map(room, one), count, dropped)


def of_layer(bank: Bank | None, layer: Int[Array, ""]) -> Bank | None:
    """Return what one layer's memory sees of the bank; nothing is copied."""
    if bank is None or not host_memory.on_host(jax.tree.leaves(bank.slots)[0]):
        return at_layer(bank, layer)
    # A slice of a layer would be a copy in host memory: the rows are sliced out when they are read.
    return Bank(bank.slots, bank.count[layer], bank.dropped[layer], layer)


def read(bank: Bank, at: Int[Array, "n"], size: int) -> PyTree:
    """Return stretches of `size` entries from `at` on [n * size, ...], on the device."""
    layer = bank.layer
    if layer is not None:
        return jax.tree.map(lambda x: host_memory.get(x, layer, at, size), bank.slots)
    index = (at[:, None] + jnp.arange(size, dtype=at.dtype)[None]).reshape(-1)
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="clip"), bank.slots)


def _asked(memory: AnyMemory, spec: Spec) -> Any:
    """Return the bank that a memory asks for; None: none, or no layer attends."""
    return None if isinstance(memory, FeatureMemory) or not spec.layers else memory.bank(spec)


def footprint(memory: AnyMemory, spec: Spec) -> Footprint:
    """Return what a stream holds on the device and in host memory, in bytes.

    That is a memory with its bank, and the states of layers that have one (`Spec.state_bytes`).
    Nothing is allocated. `nbytes` is the memory's own part of it.
    """
    state = stream_nbytes(memory, spec)
    asked = _asked(memory, spec)
    if asked is None:
        return Footprint(state, 0)
    bank = jax.eval_shape(lambda: init_bank(memory, spec, "device"))
    assert bank is not None
    weigh = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    device, entries = state + weigh((bank.count, bank.dropped)), weigh(bank.slots)
    return Footprint(device, entries) if asked.space == "host" else Footprint(device + entries, 0)


def append(bank: Bank | None, layer: Int[Array, ""], evicted: PyTree) -> Bank | None:
    """Write what a layer evicted: blocks where they belong, rows (valid ones first) at the end."""
    if bank is None or evicted is None:
        return bank
    if isinstance(evicted, Blocks):
        return _write(bank, layer, evicted)
    rows = kv_of(evicted).modality
    capacity = kv_of(bank.slots).modality.shape[1] - rows.shape[0]
    fresh = jnp.sum(rows[:, 0] != EMPTY, dtype=jnp.int32)
    at = bank.count[layer]
    full = jnp.minimum(at + fresh, capacity)
    whole, first = jax.tree.map(lambda x: x[None], evicted), jnp.zeros((1,), jnp.int32)
    return _write(bank, layer, Blocks(whole, first, at[None], fresh > 0, full, at + fresh - full))


def _write(bank: Bank, layer: Int[Array, ""], evicted: Blocks) -> Bank:
    many = evicted.many.astype(jnp.int32)
    room = jnp.iinfo(jnp.int32).max - bank.dropped[layer]  # the count stops there

    def put(entries: Array, rows: Array) -> Array:
        return host_memory.put(entries, layer, rows, evicted.source, evicted.at, many)

    return Bank(
        slots=jax.tree.map(put, bank.slots, evicted.kv),
        count=bank.count.at[layer].set(evicted.count),
        dropped=bank.dropped.at[layer].add(jnp.minimum(evicted.dropped, room)),
    )

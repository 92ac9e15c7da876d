"""Arrays in device or host memory: stretches of rows are written in place and read one by one.

A store is `[L, C, ...]`. In host memory ("pinned_host") nothing is computed: a stretch of rows is
copied there or back by a dynamic update slice or a dynamic slice, inside `jit` and its loops, and
the rest of the store stays where it is. `jax.vmap` over either becomes a loop over the streams,
since a gather or scatter of host memory would be computed there.

Derivatives, forward and reverse, pass through a store on the device. JAX makes the zeros that a
gradient starts from on the device, whatever memory its array lies in, so one in host memory
refuses them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxmem.typing import Array, Int

Space = Literal["device", "host"]
"""Which memory holds an array. On CPU both are the same chips, but JAX keeps them apart."""

KIND = "pinned_host"
"""JAX's name of the memory behind "host"."""
NO_DERIVATIVE = (
    "a derivative passes through a bank in host memory, whose gradient would have to lie on the "
    'device: use space="device".'
)


def on_host(x: Array) -> bool:
    """Return whether an array, traced or not, lies in host memory."""
    return jax.typeof(x).memory_space == jax.memory.Space.Host


def zeros(shape: tuple[int, ...], dtype: Any, space: Space) -> Array:
    """Return zeros in a memory; those in host memory never pass through the device.

    Raises:
      ValueError: if the space is unknown, or the default device has no host memory.
    """
    if space not in get_args(Space):
        raise ValueError(f'a bank lies in "device" or "host" memory, got {space!r}.')
    if space == "device":
        return jnp.zeros(shape, dtype)
    if isinstance(jnp.zeros(()), Tracer):  # a shape is asked for
        return jax.device_put(jnp.zeros(shape, dtype), jax.memory.Space.Host)
    check_host("the bank was", 'use space="device"')
    return jax.device_put(np.zeros(shape, dtype), jax.memory.Space.Host)


def check_host(what: str, repair: str) -> None:
    """Refuse a default device without host memory.

    Args:
      what: was asked there, with its verb.
      repair: what to do instead.

    Raises:
      ValueError: naming the memories that the device has.
    """
    kinds = [memory.kind for memory in jax.local_devices()[0].addressable_memories()]
    if KIND not in kinds:
        raise ValueError(
            f"{what} asked into host memory, but this device has {kinds} and no {KIND!r}: {repair}."
        )


def put(
    store: Array,
    layer: Int[Array, ""],
    rows: Array,
    source: Int[Array, "n"],
    at: Int[Array, "n"],
    many: Int[Array, ""],
) -> Array:
    """Copy stretches of rows into one layer of a store, one after the other.

    Stretches `source` of `rows` [R, size, ...], on the device, are copied to entries `at` of the
    store [L, C, ...], beyond which none goes; the first `many` of the n copies are made, the others
    cost nothing. Donated, or carried by a loop, the store is changed in place.

    Raises:
      ValueError: if a derivative of a store in host memory is asked for.
    """
    write = _put if jnp.issubdtype(store.dtype, jnp.floating) else _write
    return write(store, jnp.asarray(layer, jnp.int32), rows, source, at, many)


def get(store: Array, layer: Int[Array, ""], at: Int[Array, "n"], size: int) -> Array:
    """Return stretches of `size` rows of one layer [n * size, ...], on the device.

    Of a store in host memory only these rows are copied.

    Raises:
      ValueError: if a derivative of a store in host memory is asked for.
    """
    if not on_host(store):
        index = (at[:, None] + jnp.arange(size, dtype=at.dtype)[None]).reshape(-1)
        own = jax.lax.dynamic_index_in_dim(store, layer, 0, keepdims=False)
        return jnp.take(own, index, axis=0, mode="clip")
    return _reader(size)(store, jnp.asarray(layer, jnp.int32), at)


@jax.custom_jvp
def _put(store: Array, layer: Array, rows: Array, source: Array, at: Array, many: Array) -> Array:
    return _write(store, layer, rows, source, at, many)


@_put.defjvp
def _put_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """The same copies as one scatter: the loop has no derivative, its length being data."""
    store, layer, rows, source, at, many = primals
    if on_host(store):
        raise ValueError(NO_DERIVATIVE)
    moved, _, pieces, *_ = tangents
    entries = _last_writes(at, many, rows.shape[1], store.shape[1])
    pieces = pieces[source].astype(moved.dtype).reshape(-1, *moved.shape[2:])
    moved = moved.at[layer, entries].set(pieces, mode="drop", unique_indices=True)
    return _put(*primals), moved


def _last_writes(at: Array, many: Array, size: int, capacity: int) -> Int[Array, "N"]:
    """Return the entry that each row of n stretches [n * size] is found at afterwards.

    Rows of stretches that are not copied, or that a later one covers, get numbers from `capacity`
    on, so that none comes twice.
    """
    number = jnp.arange(at.shape[0], dtype=jnp.int32)
    entry = at[:, None] + jnp.arange(size, dtype=at.dtype)[None]
    later = (number[None] > number[:, None]) & (number < many)[None]
    above = (entry[..., None] >= at[None, None]) & (entry[..., None] < at[None, None] + size)
    gone = jnp.any(later[:, None] & above, axis=-1) | (number >= many)[:, None]
    nowhere = capacity + jnp.arange(entry.size, dtype=at.dtype).reshape(entry.shape)
    return jnp.where(gone, nowhere, entry).reshape(-1)


def _place(layer: Array, row: Array, axes: int) -> tuple[Array, ...]:
    """Return an index of one dtype, also where Python's numbers have 64 bits."""
    return tuple(jnp.asarray(x, jnp.int32) for x in (layer, row, *(0,) * (axes - 2)))


@jax.custom_batching.custom_vmap
def _write(store: Array, layer: Array, rows: Array, source: Array, at: Array, many: Array) -> Array:
    def one(i: Array, store: Array) -> Array:
        piece = jax.lax.dynamic_index_in_dim(rows, source[i], 0).astype(store.dtype)
        # Only where it is needed: a placed output is tied to its device, and compiles anew.
        piece = jax.device_put(piece, jax.memory.Space.Host) if on_host(store) else piece
        start = _place(layer, at[i], store.ndim)
        return jax.lax.dynamic_update_slice(store, piece, start)

    return jax.lax.fori_loop(0, many, one, store)


@_write.def_vmap
def _write_streams(count: int, batched: list[bool], *values: Array) -> tuple[Array, bool]:
    store, layer, *rest = _spread(count, batched, values)
    flat = store.reshape(-1, *store.shape[2:])
    layer = layer + store.shape[1] * jnp.arange(count, dtype=jnp.int32)

    def one(i: Array, flat: Array) -> Array:
        return _write(flat, *(x[i] for x in (layer, *rest)))

    return jax.lax.fori_loop(0, count, one, flat).reshape(store.shape), True


@cache
def _reader(size: int):
    @jax.custom_batching.custom_vmap
    def read(store: Any, layer: Any, at: Any):
        def one(first: Array) -> Array:
            start = _place(layer, first, store.ndim)
            piece = jax.lax.dynamic_slice(store, start, (1, size, *store.shape[2:]))
            return jax.device_put(piece, jax.memory.Space.Device)[0]

        return jax.lax.map(one, at).reshape(-1, *store.shape[2:])

    @read.def_vmap
    def streams(count: Any, batched: Any, store: Any, layer: Any, at: Any):
        layer, at = _spread(count, batched[1:], (layer, at))
        if batched[0]:
            layer = layer + store.shape[1] * jnp.arange(count, dtype=jnp.int32)
            store = store.reshape(-1, *store.shape[2:])
        return jax.lax.map(lambda item: read(store, *item), (layer, at)), True

    def refuse(primals: Any, tangents: Any) -> tuple[Any, Any]:
        raise ValueError(NO_DERIVATIVE)

    whole = jax.custom_jvp(lambda store, layer, at: read(store, layer, at))
    whole.defjvp(refuse)
    return whole


def _spread(count: int, batched: Any, values: Any) -> list[Array]:
    """Return every value with a leading axis of streams."""
    pairs = zip(values, batched, strict=True)
    return [x if b else jnp.broadcast_to(x[None], (count, *jnp.shape(x))) for x, b in pairs]

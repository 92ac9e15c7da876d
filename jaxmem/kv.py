"""`KV`: the key-value pairs of one layer of one stream, and what moves them.

Keys are stored *before* rotary embedding, beside the position they are rotated to when they are
read: positions are data, and renumbering them never touches a key. Validity is data too: a slot
whose modality is `EMPTY` holds nothing. Valid slots come first, in order of arrival.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxmem.typing import Array, Bool, Float, Int, Num


class Modality(IntEnum):
    """What a token is of; in arrays it is an int8."""

    EMPTY = 0  # a slot that holds nothing, or a row of padding
    TEXT = 1
    VISION = 2
    AUDIO = 3
    SUMMARY = 4  # made by a memory: it stands for several tokens


# As plain numbers, which JAX takes as weakly typed.
EMPTY, TEXT, VISION, AUDIO, SUMMARY = (int(m) for m in Modality)
MODALITY_NAMES = tuple(m.name.lower() for m in Modality)

T = TypeVar("T")


class KV(NamedTuple):
    """KV pairs of one layer of one stream; layers and streams are leading axes added outside.

    `Gm` is 1, or G where KV heads keep different tokens.
    """

    k: Float[Array, "N G D"]  # keys before rotary embedding
    v: Float[Array, "N G D"]
    pos: Num[Array, "N Gm A"]  # position that the key is rotated to when read
    index: Int[Array, "N Gm"]  # arrival number, strictly increasing over the valid slots
    modality: Int[Array, "N Gm"]  # int8; EMPTY marks a slot that holds nothing


def empty(
    n: int,
    *,
    kv_heads: int,
    head_dim: int,
    axes: int = 1,
    groups: int = 1,
    dtype: Any = jnp.float32,
    pos_dtype: Any = jnp.int32,
) -> KV:
    """Return `n` empty slots.

    `groups` is Gm, 1 or G; `pos_dtype` is float32 for models with fractional positions.
    """
    return KV(
        k=jnp.zeros((n, kv_heads, head_dim), dtype),
        v=jnp.zeros((n, kv_heads, head_dim), dtype),
        pos=jnp.zeros((n, groups, axes), pos_dtype),
        index=jnp.zeros((n, groups), jnp.int32),
        modality=jnp.zeros((n, groups), jnp.int8),
    )


def valid(kv: KV) -> Bool[Array, "N Gm"]:
    """Return which slots hold a token."""
    return kv.modality != EMPTY


def count(kv: KV) -> Int[Array, ""]:
    """Return the number of valid slots (of the first group: groups hold equally many)."""
    return jnp.sum(kv.modality[:, 0] != EMPTY, dtype=jnp.int32)


def append(slots: T, new: T, n: Int[Array, ""]) -> T:
    """Write `new` after the `n` valid slots: the dense pool that selection chooses from.

    Dense means that pool index is causal order and that neighbours in the pool are neighbours in
    the stream, with no empty slots between memory and chunk. Both are any pytrees of one structure,
    with leading axes S (valid slots first) and T; the result has S + T, of which slots from n + T
    on are zero.

    Returns:
      The same structure with a leading axis S + T; slots from n + T on are zero.
    """

    def one(old: Array, fresh: Array) -> Array:
        room = jnp.zeros((fresh.shape[0], *old.shape[1:]), old.dtype)
        pool = jnp.concatenate([old, room])
        return jax.lax.dynamic_update_slice_in_dim(pool, fresh.astype(old.dtype), n, 0)

    return jax.tree.map(one, slots, new)


def stretch(slots: T, first: int | Array, many: Array, size: int) -> T:
    """Return `many` rows of every leaf from `first` on, at most `size`, and zeros after them."""
    row = jnp.arange(size, dtype=jnp.int32)
    return take(slots, row + first, row < many)


def take(slots: T, index: Int[Array, "K"], keep: Bool[Array, "K"]) -> T:
    """Gather rows `index` of every leaf and zero those that are not kept.

    A zeroed row is an empty slot (its modality becomes EMPTY): leftovers never reach statistics.
    """

    def one(leaf: Array) -> Array:
        # A row of zeros after the last stands for what is not kept. XLA fuses it into the gather,
        # which on a CPU is up to twice as fast as a choice after the gather.
        rows = jnp.pad(leaf, ((0, 1), *((0, 0),) * (leaf.ndim - 1)))
        return jnp.take(rows, jnp.where(keep, index, leaf.shape[0]), axis=0, mode="clip")

    return jax.tree.map(one, slots)

"""What a chunk keeps of itself, and how the clips in a bank are read.

A chunk may be shorter than others (a last, padded one), so what it keeps has a length of its own.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory.bank import host_memory
from jaxmem.memory.flexmem.ledger import Ledger
from jaxmem.memory.parts import scored
from jaxmem.typing import Array, Bool, Float, Int

Pick = tuple[Int[Array, "K"], Bool[Array, "K"]]
"""Rows of a chunk, ascending, and which of them count; feed it to `jaxmem.kv`."""


def shares(
    modality: Int[Array, "T"],
    ratio: int,
    own_audio: bool,
    before: Int[Array, ""] | int = 0,
    kept: Int[Array, ""] | int = 0,
) -> Int[Array, "C"]:
    """Return how many of a chunk's n valid rows are kept, so that its clip keeps one in `ratio`.

    That is floor((before + n) / ratio), at least one, less what the clip has kept so far. With
    `own_audio` (all but audio, audio): audio keeps its part of the chunk, rounded up, so that the
    few audio rows beside hundreds of pictures never vanish. `before` rows of the clip came before
    the chunk, of which it `kept` so many.
    """
    n = jnp.sum(modality != kvs.EMPTY, dtype=jnp.int32)
    total = jnp.clip(jnp.maximum((before + n) // ratio, 1) - kept, 0, n)
    if not own_audio:
        return total[None]
    audio = -(-jnp.sum(modality == kvs.AUDIO, dtype=jnp.int32) // ratio)
    audio = jnp.minimum(audio, total)
    return jnp.stack([total - audio, audio])


def pick(
    score: Float[Array, "T"], modality: Int[Array, "T"], quotas: Int[Array, "C"], slots: int
) -> Pick:
    """Return the rows of largest score, `quotas` of each group (see `shares`)."""
    index, keep = scored.choose(score[None], modality[:, None], quotas, slots)
    return index[0], keep[0]


def uniform(modality: Int[Array, "T"], quotas: Int[Array, "C"], slots: int) -> Float[Array, "T"]:
    """Return scores, 1 or 0, under which `pick` takes evenly spaced rows of each group."""
    valid, audio = modality != kvs.EMPTY, modality == kvs.AUDIO
    groups = [valid] if quotas.shape[0] == 1 else [valid & ~audio, audio]
    score = jnp.zeros(modality.shape, jnp.float32)
    for members, cap in zip(groups, quotas, strict=True):
        many = jnp.sum(members, dtype=jnp.int32)
        at = jnp.where(jnp.arange(slots) < cap, evenly(many, cap, slots), modality.shape[0])
        chosen = jnp.zeros(modality.shape, bool).at[at].set(True, mode="drop")
        rank = jnp.cumsum(members, dtype=jnp.int32) - 1
        score += jnp.where(members & chosen[rank], 1.0, 0.0)
    return score


def evenly(n: Int[Array, ""], count: Int[Array, ""], slots: int) -> Int[Array, "slots"]:
    """Return `count` numbers from 0 to n - 1, evenly spaced and truncated; entries past
    `count` are undefined.

    In float32 and from both ends towards the middle, as torch spaces them: where the quotient is a
    whole number it may come out one lower (of 95 numbers, the 12th of 23).
    """
    index = jnp.arange(slots, dtype=jnp.int32)
    half = jnp.maximum(count // 2, 1)  # a single number is the first
    step = (n - 1).astype(jnp.float32) / jnp.maximum(count - 1, 1).astype(jnp.float32)
    steps = jnp.where(index < half, index, count - 1 - index).astype(jnp.float32) * step
    # A fused multiply-subtract would round once where torch rounds twice.
    steps = jax.lax.optimization_barrier(steps)
    spaced = jnp.where(index < half, steps, (n - 1).astype(jnp.float32) - steps)
    return spaced.astype(jnp.int32)


def picks(
    score: Float[Array, "L T"],
    even: np.ndarray,
    modality: Array,
    quotas: Int[Array, "C"],
    slots: int,
) -> Pick:
    """Return the rows [L, slots] that every layer keeps: its best, or evenly spaced ones.

    `even` says which layers [L] take evenly spaced rows, `quotas` how many rows of each group are
    taken (see `shares`).
    """
    spaced = uniform(modality, quotas, slots)
    score = jnp.where(even[:, None], spaced[None], score)
    return jax.vmap(partial(pick, modality=modality, quotas=quotas, slots=slots))(score)


def read(
    stored: KV, ledger: Ledger, index: Int[Array, "K"], keep: Bool[Array, "K"], slots: int
) -> KV:
    """Return the tokens [L, slots] of clips `index`, one after the other, then empty slots.

    Only those rows of the bank are touched. All reading of banked clips goes through here. A bank
    in host memory is read in stretches of slots // K entries, the most that a clip may have. Clips
    come in the order of `index`; entries that do not fit into `slots` are left out.
    """
    many = jnp.where(keep, ledger.many[index], 0)
    ends = jnp.cumsum(many)
    slot = jnp.arange(slots, dtype=jnp.int32)
    which = jnp.minimum(jnp.searchsorted(ends, slot, side="right"), index.shape[0] - 1)
    inside = slot - (ends - many)[which]
    if not host_memory.on_host(stored.k):
        at = ledger.first[index][which] + inside
        return jax.vmap(kvs.take, in_axes=(0, None, None))(stored, at, slot < ends[-1])
    size = slots // index.shape[0]

    def layer(l: Array) -> KV:
        whole = jax.tree.map(lambda x: host_memory.get(x, l, ledger.first[index], size), stored)
        return kvs.take(whole, which * size + inside, slot < ends[-1])

    return jax.lax.map(layer, jnp.arange(stored.k.shape[0], dtype=jnp.int32))


def stretch(tokens: KV, first: Array, many: Array) -> KV:
    """Return `many` slots of every layer from `first` on, and empty ones after them."""
    return jax.vmap(lambda t: kvs.stretch(t, first, many, t.modality.shape[0]))(tokens)

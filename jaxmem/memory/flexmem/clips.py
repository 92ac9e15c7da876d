"""Clips: chunks that each keep a part of themselves, and are later read one by one.

A clip may be shorter than others (a last, padded chunk), so what it keeps has a length of its own.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.bank import host_memory as store
from jaxmem.memory.parts import scored as evict
from jaxmem.typing import Array, Bool, Float, Int

Pick = tuple[Int[Array, "K"], Bool[Array, "K"]]
"""Rows of a clip, ascending, and which of them count; feed it to `jaxmem.kv`."""


def shares(kind: Int[Array, "T"], ratio: int, per_kind: bool) -> Int[Array, "C"]:
    """Return how many of a clip's n valid rows are kept: floor(n / ratio) in all.

    With `per_kind` (all but audio, audio): audio keeps its part of the clip, rounded up, so that
    the few audio rows beside hundreds of pictures never vanish.
    """
    n = jnp.sum(kind != tk.EMPTY, dtype=jnp.int32)
    total = n // ratio
    if not per_kind:
        return total[None]
    audio = -(-jnp.sum(kind == tk.AUDIO, dtype=jnp.int32) // ratio)
    audio = jnp.minimum(audio, total)
    return jnp.stack([total - audio, audio])


def pick(
    score: Float[Array, "T"], kind: Int[Array, "T"], caps: Int[Array, "C"], slots: int
) -> Pick:
    """Return the rows of largest score, `caps` of each group (see `shares`)."""
    index, keep = evict.choose(score[None], kind[:, None], caps, slots)
    return index[0], keep[0]


def uniform(kind: Int[Array, "T"], caps: Int[Array, "C"], slots: int) -> Float[Array, "T"]:
    """Return scores, 1 or 0, under which `pick` takes evenly spaced rows of each group."""
    valid, audio = kind != tk.EMPTY, kind == tk.AUDIO
    groups = [valid] if caps.shape[0] == 1 else [valid & ~audio, audio]
    score = jnp.zeros(kind.shape, jnp.float32)
    for members, cap in zip(groups, caps, strict=True):
        many = jnp.sum(members, dtype=jnp.int32)
        at = jnp.where(jnp.arange(slots) < cap, evenly(many, cap, slots), kind.shape[0])
        chosen = jnp.zeros(kind.shape, bool).at[at].set(True, mode="drop")
        rank = jnp.cumsum(members, dtype=jnp.int32) - 1
        score += jnp.where(members & chosen[rank], 1.0, 0.0)
    return score


def evenly(n: Int[Array, ""], count: Int[Array, ""], slots: int) -> Int[Array, "slots"]:
    """Return `count` numbers from 0 to n - 1, evenly spaced and truncated; then anything.

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
    score: Float[Array, "L T"], even: np.ndarray, kind: Array, caps: Int[Array, "C"], slots: int
) -> Pick:
    """Return the rows [L, slots] that every layer keeps: its best, or evenly spaced ones.

    Args:
      score: of the rows.
      even: which layers [L] take evenly spaced rows.
      kind: of the rows [T].
      caps: how many rows of each group (see `shares`).
      slots: static size of the result.
    """
    spaced = uniform(kind, caps, slots)
    score = jnp.where(even[:, None], spaced[None], score)
    return jax.vmap(partial(pick, kind=kind, caps=caps, slots=slots))(score)


class Ledger(NamedTuple):
    """Where in a bank each clip lies. N clips are noted; later ones are only counted."""

    count: Int[Array, ""]  # clips written
    first: Int[Array, "N"]  # entry of the bank where the clip begins
    many: Int[Array, "N"]  # its entries
    rows: Int[Array, "N"]  # rows that it had

    @property
    def capacity(self) -> int:
        """N."""
        return self.first.shape[0]

    def line(self, rows: Array) -> Int[Array, ""]:
        """Return the line of a clip of `rows` rows that comes next; N (no line) for padding."""
        return jnp.where(rows > 0, self.count, self.capacity)

    def put(self, values: Array, new: Array, rows: Array) -> Array:
        """Return values [N, ...] with the next clip's, unless it is padding or there is no line."""
        return values.at[self.line(rows)].set(new.astype(values.dtype), mode="drop")

    def record(self, many: Array, rows: Array) -> Ledger:
        """Return the ledger with a clip of `rows` rows that spilled `many`; padding is no clip."""
        return Ledger(
            count=self.count + (rows > 0),
            first=self.put(self.first, jnp.sum(self.many), rows),
            many=self.put(self.many, many, rows),
            rows=self.put(self.rows, rows, rows),
        )


def ledger(capacity: int) -> Ledger:
    """Return a ledger without entries."""
    none = jnp.zeros((capacity,), jnp.int32)
    return Ledger(jnp.zeros((), jnp.int32), none, none, none)


def read(
    stored: KV, book: Ledger, index: Int[Array, "K"], keep: Bool[Array, "K"], slots: int
) -> KV:
    """Return the tokens [L, slots] of clips `index`, one behind the other, then empty slots.

    Only those rows of the bank are touched. All reading of banked clips goes through here. A bank
    in host memory is read in stretches of slots // K entries, the most that a clip may have.

    Args:
      stored: slots of a bank [L, capacity].
      book: where the clips lie.
      index: clips to read, in this order.
      keep: which of them count.
      slots: static size of the result; entries that do not fit are left out.
    """
    many = jnp.where(keep, book.many[index], 0)
    behind = jnp.cumsum(many)
    slot = jnp.arange(slots, dtype=jnp.int32)
    which = jnp.minimum(jnp.searchsorted(behind, slot, side="right"), index.shape[0] - 1)
    inside = slot - (behind - many)[which]
    if not store.on_host(stored.k):
        at = book.first[index][which] + inside
        return jax.vmap(tk.take, in_axes=(0, None, None))(stored, at, slot < behind[-1])
    size = slots // index.shape[0]

    def layer(l: Array) -> KV:
        whole = jax.tree.map(lambda x: store.get(x, l, book.first[index], size), stored)
        return tk.take(whole, which * size + inside, slot < behind[-1])

    return jax.lax.map(layer, jnp.arange(stored.k.shape[0], dtype=jnp.int32))


def stretch(tokens: KV, first: Array, many: Array) -> KV:
    """Return `many` slots of every layer from `first` on, and empty ones behind them."""
    return jax.vmap(lambda t: tk.stretch(t, first, many, t.modality.shape[0]))(tokens)

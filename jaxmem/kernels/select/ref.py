"""Top entries of each group and their compaction in time order, in plain XLA."""

from __future__ import annotations

from typing import TypeGuard

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmem.typing import Array, Bool, Float, Int

FEW = 16  # `top_k` is faster than bisection for a 16th of the entries or less (docs/kernels.md)
SMALL = 128  # up to so many entries all pairs are compared, which is faster than bisection
NEVER = np.int32(-(2**31))  # key of an entry that may not be chosen; also the bits of -0.0


def ordered(scores: Float[Array, "C N"]) -> Int[Array, "C N"]:
    """Return int32 keys that sort as the scores do; -inf and NaN become `NEVER`."""
    x = scores.astype(jnp.float32)
    never = jnp.isnan(x) | (x == -jnp.inf)
    bits = lax.bitcast_convert_type(x, jnp.int32)
    # -0.0 equals 0.0. Compared as bits: some back ends take subnormal floats for zero.
    bits = jnp.where(bits == NEVER, 0, bits)
    # Negative floats grow downwards in their bits: flip all but the sign.
    key = bits ^ ((bits >> 31) & np.int32(2**31 - 1))
    # A compiler may compute a score once per reader, with other last bits: an entry that lost
    # against itself would leave a slot empty.
    return lax.optimization_barrier(jnp.where(never, NEVER, key))


def _kth_largest(key: Int[Array, "C N"], k: Int[Array, "C"]) -> Int[Array, "C"]:
    """Return the largest t > NEVER with at least k entries >= t, else NEVER + 1, by bisection.

    The bits of t are found from the top: the sign, then 31 more.
    """

    def enough(t: Int[Array, "C"]) -> Bool[Array, "C"]:
        return jnp.sum(key >= t[:, None], axis=-1, dtype=jnp.int32) >= k

    def halve(i: Int[Array, ""], t: Int[Array, "C"]) -> Int[Array, "C"]:
        higher = t | (jnp.int32(1) << (30 - i))
        return jnp.where(enough(higher), higher, t)

    zero = jnp.zeros_like(k)
    t = jnp.where(enough(zero), zero, NEVER)
    return jnp.maximum(lax.fori_loop(0, 31, halve, t), NEVER + 1)


def _first_newer(level: Bool[Array, "C N"], room: Int[Array, "C"]) -> Int[Array, "C"]:
    """Return the smallest index from which on at most `room` entries are set, by bisection.

    A running count would tell it too, but takes longer than log2 N plain counts.
    """
    n = level.shape[1]
    index = jnp.arange(n, dtype=jnp.int32)[None]

    def too_many(start: Int[Array, "C"]) -> Bool[Array, "C"]:
        newer = level & (index >= start[:, None])
        return jnp.sum(newer, axis=-1, dtype=jnp.int32) > room

    def halve(i: Int[Array, ""], last: Int[Array, "C"]) -> Int[Array, "C"]:
        higher = last | (jnp.int32(1) << (bits - 1 - i))
        return jnp.where(too_many(higher), higher, last)

    # The last index from which on there are too many, one before the one that is sought.
    bits = n.bit_length()
    last = lax.fori_loop(0, bits, halve, jnp.zeros_like(room))
    return jnp.where(too_many(jnp.zeros_like(room)), last + 1, 0)


def _ranked(key: Int[Array, "C N"], caps: Int[Array, "C"]) -> Bool[Array, "C N"]:
    """Return which entries have fewer than `caps[c]` before them, by comparing all pairs."""
    index = jnp.arange(key.shape[1], dtype=jnp.int32)
    # j is before i if its key is larger, or equal and j newer: key_j >= key_i + (j <= i).
    older = index[:, None] <= index[None, :]
    bar = key[:, None, :] + older[None].astype(jnp.int32)
    # Never itself, even where a compiler computes the score once for j and once for i (`ordered`).
    bar = jnp.where((index[:, None] == index[None])[None], np.int32(2**31 - 1), bar)
    before = jnp.sum(key[:, :, None] >= bar, axis=1, dtype=jnp.int32)
    return (before < caps[:, None]) & (key != NEVER)


def top_mask(
    scores: Float[Array, "C N"], caps: Int[Array, "C"], *, most: int | None = None
) -> Bool[Array, "C N"]:
    """See `jaxmem.kernels.select`."""
    groups, n = scores.shape
    if _is_few(most, n):
        index = few(scores, caps, most)
        row = jnp.arange(groups, dtype=jnp.int32)[:, None]
        return jnp.zeros((groups, n), bool).at[row, index].set(True, mode="drop")
    key, caps = ordered(scores), caps.astype(jnp.int32)
    if n <= SMALL:
        return _ranked(key, caps)
    t = _kth_largest(key, caps)[:, None]
    above, level = key > t, key == t
    room = caps - jnp.sum(above, axis=-1, dtype=jnp.int32)
    index = jnp.arange(n, dtype=jnp.int32)[None]
    return above | (level & (index >= _first_newer(level, room)[:, None]))


def compact(chosen: Bool[Array, "N"], slots: int) -> tuple[Int[Array, "K"], Bool[Array, "K"]]:
    """Return the last `slots` chosen indices in ascending order, and which of them are real."""
    place = jnp.cumsum(chosen, dtype=jnp.int32) - 1
    many = place[-1] + 1
    place = place - jnp.maximum(many - slots, 0)  # negative for the oldest, which have no room
    place = jnp.where(chosen & (place >= 0), place, slots)
    numbers = jnp.arange(chosen.shape[0], dtype=jnp.int32)
    index = jnp.zeros((slots,), jnp.int32).at[place].set(numbers, mode="drop")
    return index, jnp.arange(slots, dtype=jnp.int32) < many


def _is_few(most: int | None, n: int) -> TypeGuard[int]:
    return most is not None and 0 < most * FEW <= n


def few(scores: Float[Array, "C N"], caps: Int[Array, "C"], most: int) -> Int[Array, "C most"]:
    """Return the chosen indices of each group by `top_k`, best first, and N behind them."""
    n, bits = scores.shape[1], lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.int32)
    x = lax.bitcast_convert_type(jnp.where(bits == NEVER, 0, bits), jnp.float32)
    x = jnp.where(ordered(scores) == NEVER, -jnp.inf, x)
    # Equal ones come in the order of their indices: reversed, the newer first.
    value, back = lax.top_k(x[:, ::-1], most)
    real = (value > -jnp.inf) & (jnp.arange(most, dtype=jnp.int32)[None] < caps[:, None])
    return jnp.where(real, n - 1 - back, n)


def select(
    scores: Float[Array, "C N"], caps: Int[Array, "C"], *, slots: int, most: int | None = None
) -> tuple[Int[Array, "K"], Bool[Array, "K"]]:
    """See `jaxmem.kernels.select`."""
    n = scores.shape[1]
    if not _is_few(most, n):
        return compact(jnp.any(top_mask(scores, caps), axis=0), slots)
    index = jnp.sort(few(scores, caps, most).ravel())
    first = jnp.concatenate([jnp.ones((1,), bool), index[1:] != index[:-1]])
    at, keep = compact(first & (index < n), slots)
    return jnp.minimum(index[at], n - 1), keep

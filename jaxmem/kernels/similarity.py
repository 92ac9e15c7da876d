"""How much a token resembles its neighbours in the stream, or what is at its place now.

In plain XLA: these are passes over the keys, bound by memory, for which no kernel is worth it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.blocks import wide
from jaxmem.typing import Array, Bool, Float, Int

COSINES = 2**16  # that are held at once, over all heads


def unit(x: Float[Array, "N E"]) -> Float[Array, "N E"]:
    """Return rows scaled to length 1, float32 (float64 if they are); a row of zeros stays zero."""
    x = x.astype(wide(x))
    # Divide by the largest entry first: squares of large or tiny entries leave float32's range,
    # and so would the reciprocal of an entry at its end.
    top = lax.stop_gradient(jnp.max(jnp.abs(x), axis=-1, keepdims=True))
    x = x / jnp.clip(top, 1e-30, 1e30)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(square > 0, square, 1.0))


def neighbour_cosine(
    unit: Float[Array, "N U"], n: Int[Array, ""], *, lengths: bool = False
) -> Float[Array, "N"]:
    """Return the mean cosine of every pool row with the row before and the row after it.

    It is float32 (float64 of such rows).

    A neighbour that is missing, at either end of the n valid rows, counts as 1, as if it were
    identical (OmniMem, arXiv 2606.07577, redundancy of the score); so do both of a row from n on.
    Rounding may lift a value a little above 1: clamp 1 - s before taking its root. `lengths`:
    divide by the lengths of the rows, which rounding to a smaller dtype has moved away from 1; one
    pass over the rows, where `unit` before it takes three. For rows whose squares float32 can hold.

    Raises:
      ValueError: if `unit` is not a matrix with at least one row.
    """
    if unit.ndim != 2 or unit.shape[0] == 0:
        raise ValueError(f"unit must be [N, U] with N > 0, got {unit.shape}; vmap over more axes.")
    u = unit.astype(wide(unit))
    index = jnp.arange(u.shape[0], dtype=jnp.int32)
    # Rolled, not cut: XLA on a CPU takes twice as long for sums over slices. The last row meets the
    # first one, which nothing below requires.
    after = jnp.sum(u * jnp.roll(u, -1, axis=0), axis=-1)  # cosine of row i with row i + 1
    if lengths:
        square = jnp.sum(u * u, axis=-1)
        inverse = jnp.where(square > 0, 1.0 / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
        after = after * inverse * jnp.roll(inverse, -1)
    right = jnp.where(index < n - 1, after, 1.0)
    left = jnp.where((index > 0) & (index < n), jnp.roll(after, 1), 1.0)
    return 0.5 * (left + right)


def similarity_to_recent(
    keys: Float[Array, "N G D"], recent: Bool[Array, "G N"], place: Int[Array, "N G"], places: int
) -> Float[Array, "G N"]:
    """Return the mean cosine of every key with the recent keys at its place in their frames.

    Temporal-axis redundancy of InfiniPot-V (arXiv 2506.15745), whose TaR score is its negative. No
    array of pairs of keys exists: one pass sums the recent keys of every place, one compares. It is
    float32; 0 where no recent key has that place, and for a key of zeros. Keys are rotated or not,
    in any float dtype. A recent key is compared with itself too, and so are keys of tokens that are
    not vision: the caller leaves them out.

    Raises:
      ValueError: if shapes do not fit, or a frame has no place.
    """
    if keys.ndim != 3 or recent.shape != keys.shape[1::-1] or place.shape != keys.shape[:2]:
        raise ValueError(
            "keys, recent and place must be [N, G, D], [G, N] and [N, G], got "
            f"{keys.shape}, {recent.shape} and {place.shape}; vmap over more axes."
        )
    if places < 1:
        raise ValueError(f"a frame has at least one place, got {places}.")
    keys = keys.astype(jnp.float32)
    unit = keys / (jnp.linalg.norm(keys, axis=-1, keepdims=True) + 1e-9)

    def one(unit: Array, place: Array, recent: Array) -> Array:
        # The mean of cosines with unit keys is the product with their mean.
        at = jnp.where(recent, place, places)
        total = jnp.zeros((places, unit.shape[1])).at[at].add(unit, mode="drop")
        count = jnp.zeros((places, 1)).at[at].add(1.0, mode="drop")
        return jnp.sum(unit * (total / jnp.maximum(count, 1.0))[place], axis=-1)

    return jax.vmap(one)(unit.transpose(1, 0, 2), place.T, recent)


def nearest_newer(
    keys: Float[Array, "N G D"],
    kind: Int[Array, "N Gm"],
    newer: Float[Array, "M G D"],
    newer_kind: Int[Array, "M Gm"],
    first: Int[Array, ""] | int,
    *,
    block: int | None = None,
) -> tuple[Float[Array, "G N"], Int[Array, "G N"]]:
    """Return every key's largest cosine with a later key of its kind, and that key's place.

    Row j of `newer` stands at place `first` + j of the pool whose rows are `keys`; "later" means at
    a larger place. The pool with itself is `newer` = `keys`, `first` = 0; a chunk's rows against
    the pool that ends with it cost N x M in place of N x N. Rows of kind 0 hold nothing. `block`
    rows are compared at once, as many as have about `COSINES` of them where it is None:
    [G, block, M] is the largest array. Cosines are float32, -1 without a later key (its place is
    then any); of equal ones the first is named.
    """
    heads = keys.shape[1]
    if block is None:
        block = max(16, 1 << (COSINES // (heads * newer.shape[0])).bit_length() >> 1)
    of_heads = lambda x: jnp.broadcast_to(x, (x.shape[0], heads)).T
    b, b_kind = unit(newer).swapaxes(0, 1), of_heads(newer_kind)
    place = jnp.arange(newer.shape[0], dtype=jnp.int32) + first

    def rows(start: Array, a: Float[Array, "G R D"], a_kind: Int[Array, "G R"]) -> Any:
        at = jnp.arange(a.shape[1], dtype=jnp.int32) + start
        cosine = jnp.einsum("grd,gmd->grm", a, b, precision=lax.Precision.HIGHEST)
        same = (a_kind[:, :, None] == b_kind[:, None]) & (b_kind != 0)[:, None]
        counts = same & (place[None, None] > at[None, :, None])
        cosine = jnp.where(counts, cosine, -1.0)
        nearest = jnp.argmax(cosine, axis=-1).astype(jnp.int32) + first
        return jnp.max(cosine, axis=-1), nearest

    a, a_kind, n = unit(keys).swapaxes(0, 1), of_heads(kind), keys.shape[0]
    if n <= block:
        return rows(jnp.zeros((), jnp.int32), a, a_kind)
    tiles = -(-n // block)
    more = tiles * block - n
    cut = lambda x: (
        jnp.pad(x, ((0, 0), (0, more)) + ((0, 0),) * (x.ndim - 2))
        .reshape(heads, tiles, block, *x.shape[2:])
        .swapaxes(0, 1)
    )
    starts = jnp.arange(tiles, dtype=jnp.int32) * block
    found = lax.map(lambda tile: rows(*tile), (starts, cut(a), cut(a_kind)))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(heads, -1)[:, :n], found)

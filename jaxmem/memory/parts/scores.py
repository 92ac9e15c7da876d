"""What makes a token worth its slot: importance, redundancy, and the scores made of them.

All scores are float32 whatever the model's dtype: in bfloat16 `1 - cosine` goes negative, its root
is NaN, and NaN ranks first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.typing import Array, Bool, Float, Int

BLOCK = 1024
NEAREST = 20


def carry_over(
    new: Float[Array, "N"],
    stored: Float[Array, "N"],
    n: Int[Array, ""],
    rows: Int[Array, ""],
    carry: float = 0.5,
) -> Float[Array, "N"]:
    """Return importances in which the memory's tokens remember what earlier chunks gave them.

    `new` is from this chunk's queries, over the dense pool; `stored` from the chunks before, read
    for the n entries of the memory, with weight `carry`. A chunk without valid rows leaves it
    alone.
    """
    weight = jnp.where(rows > 0, carry, 1.0)
    old = jnp.arange(new.shape[0], dtype=jnp.int32) < n
    return jnp.where(old, weight * stored + (1.0 - weight) * new, new)


def product(
    importance: Float[Array, "N"] | None, redundancy: Float[Array, "N"], lam: float, power: float
) -> Float[Array, "N"]:
    """Return a^lam * max(1 - s, 0)^power: attention received times distance to the substitute.

    OmniMem's score. `power` 0.5 is the released form, 1 the published one; ranking by (lam, 0.5)
    equals ranking by (2 lam, 1).
    """
    apart = jnp.maximum(1.0 - redundancy, 0.0)
    # The inner choice keeps the slope of a root at 0 out of gradients.
    distinct = jnp.where(apart > 0, jnp.where(apart > 0, apart, 1.0) ** power, 0.0)
    if importance is None or lam == 0.0:
        return distinct
    return importance**lam * distinct


def additive(
    importance: Float[Array, "N"] | None, redundancy: Float[Array, "N"], lam: float
) -> Float[Array, "N"]:
    """Return lam * a / sum(a) - 2 s: the additive variant (2 s is the sum of both cosines)."""
    if importance is None or lam == 0.0:
        return -2.0 * redundancy
    total = jnp.maximum(jnp.sum(importance), jnp.finfo(jnp.float32).tiny)
    return lam * importance / total - 2.0 * redundancy


def block_redundancy(
    unit: Float[Array, "N U"], *, block: int = BLOCK, nearest: int = NEAREST
) -> Float[Array, "N"]:
    """Return the mean of the `nearest` largest cosines inside blocks of `block` pool entries.

    The pool is cut from its start; an entry's own cosine and entries that do not exist (zero
    vectors) count as 0. Blocks are visited one at a time: [block, block] is all that is held.
    """
    n, width = unit.shape
    count = -(-n // block)
    padded = jnp.zeros((count * block, width), unit.dtype).at[:n].set(unit)
    other = ~jnp.eye(block, dtype=bool)

    def one(rows: Float[Array, "block U"]) -> Float[Array, "block"]:
        cosine = jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)
        largest, _ = jax.lax.top_k(jnp.where(other, cosine, 0.0), nearest)
        return jnp.mean(largest, axis=-1)

    return jax.lax.map(one, padded.reshape(count, block, width)).reshape(-1)[:n]


def newest(n: int) -> Float[Array, "n"]:
    """Return scores under which later pool entries win (exact in float32 up to 2^24 entries)."""
    return jnp.arange(n, dtype=jnp.float32)


def only(scores: Float[Array, "N"], members: Bool[Array, "N"]) -> Float[Array, "N"]:
    """Return the scores of a group's members, and -inf for everyone who may not be chosen."""
    return jnp.where(members, scores, -jnp.inf)


def protect(scores: Float[Array, "C N"], members: Bool[Array, "C N"]) -> Float[Array, "C N"]:
    """Return scores under which the members are kept first, the newest of them if not all fit."""
    return jnp.where(members, jnp.inf, scores)


def standing(scores: Float[Array, "G N"], members: Bool[Array, "G N"]) -> Float[Array, "G N"]:
    """Return the share of the members that a member ranks above or is, 0 to 1; equal: the newer.

    Ranks of unlike scores can be added up and compared (0 for who is no member).
    """
    rank = jnp.argsort(jnp.argsort(only(scores, members), axis=1), axis=1)
    count = jnp.sum(members, axis=1, keepdims=True)
    first = scores.shape[1] - count  # who is no member ranks below all others
    share = (rank - first + 1).astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)
    return jnp.where(members, share, 0.0)


def smooth(scores: Float[Array, "C N"], size: int) -> Float[Array, "C N"]:
    """Return the mean over `size` (odd) neighbours; entries beyond the ends count as 0."""
    total = lax.reduce_window(scores, 0.0, lax.add, (1, size), (1, 1), "SAME")
    return total / size


def cosine_to(
    keys: Float[Array, "N G D"], to: Float[Array, "N G D"], eps: float = 1e-9
) -> Float[Array, "G N"]:
    """Return the cosine of each key with its partner in `to`, float32."""
    length = jnp.linalg.norm(keys, axis=-1) * jnp.linalg.norm(to, axis=-1)
    return (jnp.sum(keys * to, axis=-1) / jnp.maximum(length, eps)).T


def unlike_mean(keys: Float[Array, "N G D"], members: Bool[Array, "Gm N"]) -> Float[Array, "G N"]:
    """Return -cos(k, mean of the unit keys of the members) (KeyDiff, arXiv 2504.15364, eq. 4)."""
    keys = keys.astype(jnp.float32)
    unit = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    held = members.T[..., None]
    count = jnp.maximum(jnp.sum(held, axis=0, keepdims=True), 1).astype(jnp.float32)
    mean = jnp.sum(jnp.where(held, unit, 0.0), axis=0, keepdims=True) / count
    return -cosine_to(keys, jnp.broadcast_to(mean, keys.shape), 1e-12)


def smooth_frames(
    score: Float[Array, "G T"], image: Array, index: Array, grid: tuple[int, int], depth: Array
) -> Float[Array, "G T"]:
    """Return numbers of vision tokens averaged over neighbours, by a window that falls with depth.

    Depth 0: space and time, 1: space, 2: sequence, 3: not at all (InfiniPot-V's released pooling).
    Windows of 7, 5 and 3, cut to the largest odd number that fits frames, rows and columns; what
    lies outside counts as 0. `score` is of a chunk's rows, of which `image` are vision tokens with
    these indices from the start of the chunk's first frame; `grid` is rows and columns of a frame,
    `depth` the quarter of the model's layers, 0 to 3.
    """
    frames = max(1, score.shape[1] // (grid[0] * grid[1]))
    size = frames * grid[0] * grid[1]
    at = jnp.where(image, index, size)
    dense = jnp.zeros((score.shape[0], size)).at[:, at].set(score, mode="drop")

    def mean(x: Array, window: tuple[int, ...]) -> Array:
        total = lax.reduce_window(x, 0.0, lax.add, window, (1,) * x.ndim, "SAME")
        return (total / jnp.prod(jnp.asarray(window))).reshape(dense.shape)

    def spatial(dims: int, most: int) -> Array:
        width = min(most, frames, *grid)
        width -= width % 2 == 0
        shape = (-1, frames, *grid)
        return mean(dense.reshape(shape), (1,) * (4 - dims) + (width,) * dims)

    options = [spatial(3, 7), spatial(2, 5), mean(dense, (1, 3)), dense]
    chosen = jnp.stack(options)[depth]
    near = jnp.take(chosen, jnp.minimum(at, size - 1), axis=1)
    return jnp.where((at < size)[None], near, score)

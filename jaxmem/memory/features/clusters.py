"""Merging features: weighted k-means, and pairs of similar neighbours, with explicit draws.

Everything works on arrays of fixed length of which the first `n` entries count, so that a memory
that is still filling compiles to the same program as a full one. Nothing is drawn here unless a
key is given: `Draws` and coins are data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.typing import Array, Bool, Float, Int

HIGHEST = jax.lax.Precision.HIGHEST
Similarity = Callable[[Float[Array, "P E"], Float[Array, "P E"]], Float[Array, ""]]


class Draws(NamedTuple):
    """What k-means leaves to chance."""

    first: Int[Array, "K"]  # points that are the initial centres
    refill: Int[Array, "R"]  # points for clusters that run empty, in order of use


class Clusters(NamedTuple):
    """The result of k-means. With K points or fewer, each is its own cluster."""

    centres: Float[Array, "K F"]
    weights: Float[Array, "K"]  # summed over members; 0: no cluster
    labels: Int[Array, "N"]  # cluster of each point at the last assignment; -1: no point
    rounds: Int[Array, ""]  # assignments made


class Merged(NamedTuple):
    """Entries, each of which is one frame or the mean of several."""

    x: Float[Array, "N ..."]
    size: Float[Array, "N"]  # frames that an entry is the mean of
    count: Int[Array, ""]  # entries in use, the first ones


def draw(
    key: Array, n: Int[Array, ""], size: int, clusters: int, *, among: Array | None = None
) -> Draws:
    """Draw initial centres without repetition, and points for clusters that run empty.

    `n` of the N = `size` points count, `clusters` is K, and `among` [N] says which points may be
    initial centres (None: all).
    """
    order, refill = jax.random.split(key)
    allowed = jnp.arange(size, dtype=jnp.int32) < n
    allowed = allowed if among is None else allowed & among
    rank = jnp.where(allowed, jax.random.uniform(order, (size,)), jnp.inf)
    points = jax.random.randint(refill, (clusters * 10,), 0, jnp.maximum(n, 1), jnp.int32)
    return Draws(jnp.argsort(rank)[:clusters].astype(jnp.int32), points)


def distances(
    x: Float[Array, "N F"], y: Float[Array, "K F"], valid: Bool[Array, "K"] | None = None
) -> Float[Array, "N K"]:
    """Return squared Euclidean distances in float32, infinite where `valid` is false.

    By differences and not by |a|^2 + |b|^2 - 2ab, which is negative for points that nearly agree.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)

    def to(one: Array) -> Array:
        return jnp.sum((x - one[None]) ** 2, -1)

    square = jax.lax.map(to, y).T
    return square if valid is None else jnp.where(valid[None], square, jnp.inf)


def weighted_kmeans(
    x: Float[Array, "N F"],
    weights: Float[Array, "N"],
    n: Int[Array, ""],
    draws: Draws,
    *,
    rounds: int = 10,
    tol: float = 1e-4,
) -> Clusters:
    """Cluster the first `n` points into K, in the order of `draws.first`.

    A centre is the weighted mean of its members; a point goes to the nearest centre, the first on
    ties; an empty cluster takes the next point of `draws.refill`. The loop ends when the centres
    move by less than `tol` together, and then returns those *before* the last move, so that they
    belong to labels and weights; at the cap of `rounds` the centres are one move newer, as in the
    code released with Flash-VStream (arXiv 2406.08085).

    Raises:
      ValueError: if the array is shorter than the number of clusters.
    """
    clusters, size = draws.first.shape[0], x.shape[0]
    if size < clusters:
        raise ValueError(f"{clusters} clusters need an array of as many points, got {size}.")
    valid = jnp.arange(size, dtype=jnp.int32) < n
    points = jnp.where(valid[:, None], x.astype(jnp.float32), 0)
    mass = jnp.where(valid, weights.astype(jnp.float32), 0)

    def step(held: tuple[Any, ...]) -> tuple[Any, ...]:
        centres, _, _, used, done, i = held
        labels = jnp.where(valid, jnp.argmin(distances(points, centres), -1), -1)
        member = jax.nn.one_hot(labels, clusters, dtype=jnp.float32)  # -1: no row at all
        total = jnp.sum(member * mass[:, None], 0)
        mean = jnp.matmul((member * mass[:, None]).T, points, precision=HIGHEST)
        mean = mean / jnp.where(total > 0, total, 1)[:, None]
        empty = jnp.sum(member, 0) == 0
        turn = (used + jnp.cumsum(empty, dtype=jnp.int32) - 1) % max(draws.refill.shape[0], 1)
        if draws.refill.shape[0]:
            mean = jnp.where(empty[:, None], points[draws.refill[turn]], mean)
        done = jnp.sum(jnp.sqrt(jnp.sum((mean - centres) ** 2, -1))) < tol
        centres = jnp.where(done, centres, mean)
        used = used + jnp.sum(empty, dtype=jnp.int32)
        return centres, total, labels.astype(jnp.int32), used, done, i + 1

    zero = jnp.zeros((), jnp.int32)
    start = (points[draws.first], jnp.zeros((clusters,), jnp.float32))
    start = (*start, jnp.zeros((size,), jnp.int32), zero, jnp.zeros((), bool), zero)
    found = jax.lax.while_loop(lambda held: (held[5] < rounds) & ~held[4], step, start)
    few = n <= clusters
    own = jnp.where(valid, jnp.arange(size, dtype=jnp.int32), -1)
    return Clusters(
        centres=jnp.where(few, points[:clusters], found[0]).astype(x.dtype),
        weights=jnp.where(few, mass[:clusters], found[1]),
        labels=jnp.where(few, own, found[2]),
        rounds=jnp.where(few, 0, found[5]),
    )


def heaviest(
    weights: Float[Array, "K"], count: Int[Array, ""], most: int
) -> tuple[Int[Array, "most"], Bool[Array, "most"]]:
    """Return the clusters of largest weight, the lower number on ties, and which exist."""
    real = jnp.arange(weights.shape[0], dtype=jnp.int32) < count
    order = jnp.argsort(jnp.where(real, -weights, jnp.inf), stable=True)
    return order[:most].astype(jnp.int32), jnp.arange(most, dtype=jnp.int32) < count


def cosine(a: Float[Array, "P E"], b: Float[Array, "P E"]) -> Float[Array, ""]:
    """Return the cosine of two frames as flat vectors (Flash-VStream; one place: MA-LMM)."""
    a, b = a.ravel().astype(jnp.float32), b.ravel().astype(jnp.float32)
    norm = jnp.sqrt(jnp.sum(a * a) * jnp.sum(b * b))
    return jnp.sum(a * b) / jnp.maximum(norm, 1e-8)


def mean_cosine(a: Float[Array, "P E"], b: Float[Array, "P E"]) -> Float[Array, ""]:
    """Return the mean over the P places of a frame of the cosines of their tokens (MemoryVLA)."""
    return jnp.mean(jax.vmap(cosine)(a, b))


def mean_dot(a: Float[Array, "P E"], b: Float[Array, "P E"]) -> Float[Array, ""]:
    """Return the mean over all P x P pairs of tokens of their dot product (MovieChat)."""
    return jnp.sum(a.astype(jnp.float32).mean(0) * b.astype(jnp.float32).mean(0))


def most_similar(
    pool: Merged, similarity: Similarity = cosine, *, anywhere: bool = False
) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """Return the most similar pair (left, right): adjacent, or `anywhere`; the first on ties."""
    x, size = pool.x, pool.x.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    if not anywhere:
        near = jax.vmap(similarity)(x[:-1], x[1:])
        left = jnp.argmax(jnp.where(index[1:] < pool.count, near, -jnp.inf)).astype(jnp.int32)
        return left, left + 1
    every = jax.vmap(lambda a: jax.vmap(lambda b: similarity(a, b))(x))(x)
    upper = (index[:, None] < index[None]) & (index < pool.count)[None]
    best = jnp.argmax(jnp.where(upper, every, -jnp.inf)).astype(jnp.int32)
    return best // size, best % size


def join(
    pool: Merged, left: Array, right: Array, *, weighted: bool, coin: Array | None = None
) -> Merged:
    """Make one entry of two: their mean at the place of the right one, or one of them.

    `weighted` weighs the mean by how many frames each is the mean of (MA-LMM). With a `coin` there
    is no mean: the right one is dropped where it is 1, the left one where 0.
    """
    x, size = pool.x, pool.size
    gone = left
    if coin is not None:
        gone = jnp.where(coin == 1, right, left)
    else:
        share = size[left] / (size[left] + size[right]) if weighted else jnp.float32(0.5)
        mean = share * x[left] + (1 - share) * x[right]
        x = x.at[right].set(mean.astype(x.dtype))
        size = size.at[right].add(size[left])
    index = jnp.arange(x.shape[0], dtype=jnp.int32)
    index = jnp.minimum(index + (index >= gone), x.shape[0] - 1)
    return Merged(x[index], size[index], pool.count - 1)


def empty_merged(slots: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Merged:
    """Return `slots` unused entries of a shape."""
    size = jnp.zeros((slots,), jnp.float32)
    return Merged(jnp.zeros((slots, *shape), dtype), size, jnp.zeros((), jnp.int32))


def add(
    held: Merged,
    frame: Float[Array, "..."],
    similarity: Similarity = cosine,
    *,
    anywhere: bool = False,
    weighted: bool = False,
    coin: Array | None = None,
) -> tuple[Merged, Int[Array, "2"]]:
    """Append a frame; if it does not fit, make one entry of the most similar pair.

    Returns:
      The entries, and the pair that was joined, (-1, -1) if the frame fitted.
    """
    slots = held.x.shape[0]
    x = jnp.pad(held.x, ((0, 1), *((0, 0),) * (held.x.ndim - 1))).at[held.count].set(frame)
    size = jnp.pad(held.size, (0, 1)).at[held.count].set(1)
    pool = Merged(x, size, held.count + 1)
    pair = most_similar(pool, similarity, anywhere=anywhere)
    joined = join(pool, *pair, weighted=weighted, coin=coin)
    fits = pool.count <= slots
    new = jax.tree.map(lambda a, b: jnp.where(fits, a, b), pool, joined)
    return Merged(new.x[:slots], new.size[:slots], new.count), jnp.where(fits, -1, jnp.stack(pair))


def shrink(pool: Merged, left: int, similarity: Similarity = mean_dot) -> Merged:
    """Average adjacent pairs, the most similar first, until `left` entries remain (MovieChat)."""

    def step(pool: Merged) -> Merged:
        return join(pool, *most_similar(pool, similarity), weighted=False)

    return jax.lax.while_loop(lambda pool: pool.count > left, step, pool)

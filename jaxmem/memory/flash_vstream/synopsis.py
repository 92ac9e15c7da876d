"""The parts of Flash-VStream's Qwen version: context synopsis, detail augmentation, AM-RoPE.

Source: "Flash-VStream: Efficient Real-Time Understanding for Long Video Streams", arXiv
2506.23825, and the code released with it. The context synopsis (CSM) is a weighted k-means over
low-resolution frames, ordered in time; the detail augmentation (DAM) takes, for each of the
heaviest centres, the nearest frame of a bank in high resolution. Both live in `Held`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.features.clusters import Draws, distances, heaviest, weighted_kmeans
from jaxmem.memory.features.frames import append_frames
from jaxmem.memory.flash_vstream.options import Form
from jaxmem.typing import Array, Bool, Float, Int


class Synopsis(NamedTuple):
    """Centres in the order of time; the first ones count while there are fewer points."""

    x: Float[Array, "K F"]
    weights: Float[Array, "K"]
    times: Float[Array, "K"]


def same(x: Float[Array, "N F"], n: Int[Array, ""]) -> tuple[Bool[Array, "N N"], Bool[Array, "N"]]:
    """Return which of the first `n` points are equal, and which are the first of their value."""
    size = x.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    valid = index < n
    x = jnp.where(valid[:, None], x, 0)
    equal = (distances(x, x) == 0) & valid[:, None] & valid[None]
    return equal, valid & (jnp.argmax(equal, -1) == index)


def ordered_kmeans(
    x: Float[Array, "N F"],
    weights: Float[Array, "N"],
    times: Float[Array, "N"],
    n: Int[Array, ""],
    draws: Draws,
    *,
    form: Form = "as_released",
    rounds: int = 10,
    tol: float = 1e-4,
) -> Synopsis:
    """Cluster the first `n` points and order the centres by time.

    As released, the time of a centre is the mean index of its members in the list of points, so
    that `times` has no effect; as published it is the weighted mean of their times. With fewer
    distinct points than clusters the distinct points come in order, after the first points of the
    list (every weight is 1). With K points or fewer, the points are the centres. Initial centres
    among the `draws` should be distinct points; `rounds` and `tol`: see `weighted_kmeans`.
    """
    clusters, size = draws.first.shape[0], x.shape[0]
    released = form == "as_released"
    index = jnp.arange(size, dtype=jnp.float32)
    valid = jnp.arange(size, dtype=jnp.int32) < n
    time = index if released else jnp.where(valid, times, 0)
    share = jnp.where(valid, 1 if released else weights, 0).astype(jnp.float32)

    found = weighted_kmeans(x, weights, n, draws, rounds=rounds, tol=tol)
    member = (found.labels[:, None] == jnp.arange(clusters)[None]) * share[:, None]
    total = jnp.sum(member, 0)
    mean = jnp.sum(member * time[:, None], 0) / jnp.where(total > 0, total, 1)
    # A cluster may end without members at the cap of rounds only; the released code then fails.
    mean = jnp.where(total > 0, mean, jnp.inf)
    order = jnp.argsort(mean, stable=True)
    many = Synopsis(found.centres[order], found.weights[order], mean[order])
    many = many._replace(times=jnp.where(jnp.isinf(many.times), n - 1.0, many.times))

    equal, distinct = same(x, n)
    mass = equal * share[None]
    at = jnp.sum(mass * time[None], -1) / jnp.maximum(jnp.sum(mass, -1), 1e-9)
    order = jnp.argsort(jnp.where(distinct, at, jnp.inf), stable=True)
    front = clusters - jnp.sum(distinct, dtype=jnp.int32)
    place = jnp.arange(clusters, dtype=jnp.int32)
    pick = jnp.where(place < front, place, order[jnp.clip(place - front, 0, size - 1)])
    early = jnp.where(place < front, time[:clusters], at[pick])
    few = Synopsis(x[pick], jnp.ones((clusters,), jnp.float32), early)

    kept = Synopsis(x[:clusters], jnp.where(valid, weights, 0)[:clusters], times[:clusters])
    if released:
        kept = Synopsis(x[:clusters], jnp.ones((clusters,), jnp.float32), index[:clusters])

    def choose(a: Array, b: Array, c: Array) -> Array:
        return jnp.where(n <= clusters, a, jnp.where(front > 0, b, c)).astype(a.dtype)

    return Synopsis(*map(choose, kept, few, many))


def nearest_frames(
    centres: Float[Array, "k F"], bank: Float[Array, "R F"], valid: Bool[Array, "R"]
) -> Int[Array, "k"]:
    """Return for each centre the place of the nearest frame of the bank, the first on ties."""
    return jnp.argmin(distances(centres, bank, valid), -1).astype(jnp.int32)


class Held(NamedTuple):
    """The centres, and the bank in both resolutions."""

    x: Float[Array, "K p E"]
    weights: Float[Array, "K"]
    times: Float[Array, "K"]
    count: Int[Array, ""]  # centres
    high: Float[Array, "R P E"]
    low: Float[Array, "R p E"]
    seen: Int[Array, ""]  # frames so far


def init_held(
    slots: int, bank: int, tokens: int, small: int, width: int, dtype: Any = jnp.float32
) -> Held:
    """Return the empty memory: `tokens` rows in a frame of the bank, `small` in a centre."""
    zero = jnp.zeros((), jnp.int32)
    return Held(
        x=jnp.zeros((slots, small, width), dtype),
        weights=jnp.zeros((slots,), jnp.float32),
        times=jnp.zeros((slots,), jnp.float32),
        count=zero,
        high=jnp.zeros((bank, tokens, width), dtype),
        low=jnp.zeros((bank, small, width), dtype),
        seen=zero,
    )


def advance(
    held: Held,
    high: Float[Array, "F P E"],
    low: Float[Array, "F p E"],
    n: Int[Array, ""],
    draws: Draws,
    form: Form = "as_released",
) -> Held:
    """Take the first `n` of F frames; `draws` are for the points [centres ; new frames]."""
    fresh = jnp.arange(high.shape[0], dtype=jnp.int32)
    capacity, number = held.high.shape[0], held.seen + fresh
    stays = (fresh < n) & (fresh >= n - capacity)
    slot = jnp.where(stays, number % capacity, capacity)
    points = append_frames(held.x, held.count, low)
    weights = append_frames(held.weights, held.count, jnp.ones_like(fresh, jnp.float32))
    times = append_frames(held.times, held.count, number.astype(jnp.float32))
    total, clusters = held.count + n, held.x.shape[0]
    flat = points.reshape(points.shape[0], -1)
    found = ordered_kmeans(flat, weights, times, total, draws, form=form)
    new = Held(
        x=found.x.reshape(held.x.shape).astype(held.x.dtype),
        weights=found.weights,
        times=found.times,
        count=jnp.minimum(total, clusters),
        high=held.high.at[slot].set(high.astype(held.high.dtype), mode="drop"),
        low=held.low.at[slot].set(low.astype(held.low.dtype), mode="drop"),
        seen=held.seen + n,
    )
    # The bank is as it was without a frame: a choice between two would copy the whole of it.
    chosen = jax.tree.map(lambda a, b: jnp.where(n > 0, a, b), new, held)
    return chosen._replace(high=new.high, low=new.low)


def details(held: Held, most: int) -> tuple[Int[Array, "k"], Int[Array, "k"], Bool[Array, "k"]]:
    """Return the places in the bank of the detail frames, their numbers, and which exist.

    One for each of the heaviest centres, in the order of their weights; a frame may come twice.
    """
    capacity = held.low.shape[0]
    clusters, real = heaviest(held.weights, held.count, most)
    full = jnp.arange(capacity, dtype=jnp.int32) < held.seen
    flat = held.x.reshape(held.x.shape[0], -1)[clusters]
    place = nearest_frames(flat, held.low.reshape(capacity, -1), full)
    return place, held.seen - 1 - (held.seen - 1 - place) % capacity, real


def am_rope(
    frames: Int[Array, "k"],
    times: Float[Array, "K"],
    details: Int[Array, ""],
    grid: tuple[int, int],
    small: tuple[int, int],
) -> Float[Array, "N 3"]:
    """Return the positions (t, h, w) of [details ; synopsis] tokens, relative to the first.

    A detail is at the number of its frame; a centre at its rounded time (half to even), all three
    axes moved on by the number of detail tokens. `frames` are the numbers of the detail frames, of
    which `details` exist, and `times` those of the centres; `grid` and `small` are (h, w) of a
    detail frame and of a centre, in rows of the decoder.
    """

    def box(t: Array, size: tuple[int, int]) -> Array:
        shape = (t.shape[0], *size)
        axes = [jnp.broadcast_to(t.reshape(-1, 1, 1), shape)]
        axes += [jnp.broadcast_to(jnp.arange(size[0], dtype=t.dtype)[None, :, None], shape)]
        axes += [jnp.broadcast_to(jnp.arange(size[1], dtype=t.dtype)[None, None], shape)]
        return jnp.stack(axes, -1).reshape(-1, 3)

    shift = (details * (grid[0] * grid[1])).astype(jnp.float32)
    return jnp.concatenate(
        [box(frames.astype(jnp.float32), grid), box(jnp.round(times), small) + shift]
    )


def pixel_pool(
    x: Float[Array, "n V"],
    thw: tuple[int, int, int],
    *,
    channels: int = 3,
    frames: int = 2,
    patch: int = 14,
) -> Float[Array, "n/4 V"]:
    """Average 2 x 2 pixels of video patches in Qwen2-VL's layout.

    Patches are ordered (t, h/2, w/2, 2, 2); each is a vector (channel, frame, y, x). For models
    that encode every frame a second time in low resolution.

    Raises:
      ValueError: if the grid does not divide by 4 or does not fit the patches.
    """
    t, h, w = thw
    if h % 4 or w % 4 or x.shape != (t * h * w, channels * frames * patch**2):
        raise ValueError(
            f"patches {x.shape} do not fit a grid (t, h, w) = {thw} with h and w divisible by 4 "
            f"and {channels} channels, {frames} frames, patches of {patch} pixels."
        )
    image = x.reshape(t, h // 2, w // 2, 2, 2, channels, frames, patch, patch)
    image = image.transpose(0, 5, 6, 1, 3, 7, 2, 4, 8)
    image = image.reshape(t, channels, frames, h * patch // 2, 2, w * patch // 2, 2).mean((4, 6))
    small = image.reshape(t, channels, frames, h // 4, 2, patch, w // 4, 2, patch)
    return small.transpose(0, 3, 6, 4, 7, 1, 2, 5, 8).reshape(t * h * w // 4, -1)

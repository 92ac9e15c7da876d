"""Flash-VStream's STAR memory: spatial, temporal, abstract and retrieved features.

Source: "Flash-VStream: Memory-Based Real-Time Understanding for Long Video Streams", arXiv
2406.08085. It holds features, not keys: no decoder runs until a question is asked, which is then
answered after the memory as a prompt.

* spatial: the newest frames as they are;
* temporal: centres of a weighted k-means over [old centres ; new frames], coarser;
* abstract: M <- (1 - a) M + a softmax(f_q(M) f_k(x)^T / sqrt(h)) x, coarser still;
* retrieved: frames of a buffer, one for each of the heaviest clusters.

`form="as_released"` does what the code published with the paper does: cluster weights start from
1 with every chunk; the heaviest clusters' *numbers* are used as numbers of frames, so that what is
retrieved is always among the first frames of the stream; the first chunk is stored uncompressed.
"as_published" carries the weights, retrieves the buffered frame nearest to the cluster's centre,
and compresses the first chunk as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.features.clusters import Draws, distances, heaviest, weighted_kmeans
from jaxmem.memory.features.frames import (
    Block,
    Grid,
    append_frames,
    area,
    pool_grid,
    square,
)
from jaxmem.memory.flash_vstream.options import Form
from jaxmem.memory.flash_vstream.semantic import Maps, attend_groups
from jaxmem.typing import Array, Float, Int


@dataclass(frozen=True)
class Sizes:
    """Static sizes: frames held by each part, and the grid of a frame in it.

    A grid is (rows, columns), or the side of a square.

    Attributes:
      grid: of the encoder's frames.
      side: spatial and retrieved.
      spatial: newest frames.
      temporal: centres.
      temporal_side: of a centre.
      abstract: frames of the abstract memory.
      abstract_side: of one.
      retrieved: frames.
      buffer: newest frames to retrieve from ("as_published").
      ratio: a, of the semantic attention.
    """

    grid: Grid = 16
    side: Grid = 8
    spatial: int = 1
    temporal: int = 25
    temporal_side: Grid = 4
    abstract: int = 25
    abstract_side: Grid = 1
    retrieved: int = 3
    buffer: int = 300
    ratio: float = 0.2

    @classmethod
    def of_frame(cls, frame: tuple[int, int]) -> Sizes:
        """Return the published sizes for frames of another grid.

        Published are grids of 16, 8, 4 and 1: a side that cannot be halved stays.
        """
        side = tuple(n if n % 2 or n <= 8 else n // 2 for n in frame)
        half = tuple(n if n % 2 else n // 2 for n in side)
        return cls(grid=frame, side=side, temporal_side=half)  # type: ignore[arg-type]

    @property
    def tokens(self) -> int:
        """Return the rows of a frame."""
        return area(self.grid)

    def check(self) -> None:
        """Raise ValueError if a grid does not divide the one before it."""
        for name in ("temporal_side", "abstract_side"):
            grids = [square(g) for g in (self.grid, self.side, getattr(self, name))]
            if any(
                big % small for a, b in pairwise(grids) for big, small in zip(a, b, strict=True)
            ):
                raise ValueError(
                    f"grid {self.grid}, side {self.side} and {name} {getattr(self, name)} must "
                    "divide each other, in this order."
                )


class Held(NamedTuple):
    """The features held. Temporal and abstract memory are as long as a chunk at least."""

    spatial: Float[Array, "s P E"]  # newest last, right-aligned
    temporal: Float[Array, "Mt p E"]
    weights: Float[Array, "Mt"]
    temporal_count: Int[Array, ""]
    abstract: Float[Array, "Ma a E"]
    abstract_count: Int[Array, ""]
    buffer: Float[Array, "R P E"]
    retrieved: Float[Array, "r P E"]
    frames: Int[Array, "r"]  # numbers of the retrieved frames, -1: none
    seen: Int[Array, ""]  # frames so far


def init_held(sizes: Sizes, width: int, chunk: int, form: Form, dtype: Any = jnp.float32) -> Held:
    """Return the empty memory for chunks of at most `chunk` frames."""
    more = chunk if form == "as_released" else 0
    slots, gists = max(sizes.temporal, more), max(sizes.abstract, more)
    # As released only numbers of clusters are looked up: the stream's first frames are enough.
    buffer = sizes.temporal if form == "as_released" else sizes.buffer

    def empty(n: int, side: Grid) -> Array:
        return jnp.zeros((n, area(side), width), dtype)

    zero = jnp.zeros((), jnp.int32)
    return Held(
        spatial=empty(sizes.spatial, sizes.side),
        temporal=empty(slots, sizes.temporal_side),
        weights=jnp.zeros((slots,), jnp.float32),
        temporal_count=zero,
        abstract=empty(gists, sizes.abstract_side),
        abstract_count=zero,
        buffer=empty(buffer, sizes.side),
        retrieved=empty(sizes.retrieved, sizes.side),
        frames=jnp.full((sizes.retrieved,), -1, jnp.int32),
        seen=zero,
    )


def advance(
    held: Held,
    frames: Float[Array, "F P E"],
    n: Int[Array, ""],
    draws: Draws,
    maps: Maps | None,
    sizes: Sizes,
    form: Form = "as_released",
    *,
    whole: bool = False,
) -> Held:
    """Take the first `n` of F frames, each of the tokens of `sizes.grid`, into the memory.

    `draws` are for the points [old centres ; new frames]. Without a frame nothing changes.
    `whole` says that the frames are the whole video: then nothing is stored uncompressed.
    """
    frames = _pooled(frames, sizes)
    raw = (held.seen == 0) & (form == "as_released" and not whole)  # stored as it is
    newest = append_frames(held.spatial, jnp.int32(sizes.spatial), frames)
    new = _temporal(held, frames, n, draws, sizes, form, raw)
    new = _abstract(new, frames, n, maps, sizes, raw)
    new = _buffered(new, frames, n, form)
    new = new._replace(
        spatial=jax.lax.dynamic_slice_in_dim(newest, n, sizes.spatial), seen=held.seen + n
    )
    new = _retrieved(new, sizes, form, raw)
    # The buffer is as it was without a frame: a choice between two would copy the whole of it.
    return jax.tree.map(lambda a, b: jnp.where(n > 0, a, b), new, held)._replace(buffer=new.buffer)


def _pooled(frames: Array, sizes: Sizes) -> Array:
    """Return the encoder's frames as spatial and retrieved memory hold them."""
    return pool_grid(frames, sizes.grid, sizes.side)


def _first(x: Array, size: int) -> Array:
    """Return the first `size` entries, zeros where there are fewer."""
    return jnp.pad(x[:size], ((0, max(size - x.shape[0], 0)), *((0, 0),) * (x.ndim - 1)))


def _temporal(
    held: Held, frames: Array, n: Array, draws: Draws, sizes: Sizes, form: Form, raw: Array
) -> Held:
    small = pool_grid(frames, sizes.side, sizes.temporal_side)
    points = append_frames(held.temporal, held.temporal_count, small)
    total, size = held.temporal_count + n, held.temporal.shape[0]
    ones = jnp.ones((frames.shape[0],), jnp.float32)
    weights = append_frames(held.weights, held.temporal_count, ones)
    weights = jnp.ones_like(weights) if form == "as_released" else weights
    weights = jnp.where(jnp.arange(weights.shape[0]) < total, weights, 0)
    found = weighted_kmeans(points.reshape(points.shape[0], -1), weights, total, draws)
    centres = _first(found.centres.reshape(-1, *points.shape[1:]), size)
    return held._replace(
        temporal=jnp.where(raw, points[:size], centres.astype(points.dtype)),
        weights=jnp.where(raw, weights[:size], _first(found.weights, size)),
        temporal_count=jnp.where(raw, total, jnp.minimum(total, sizes.temporal)),
    )


def _abstract(
    held: Held, frames: Array, n: Array, maps: Maps | None, sizes: Sizes, raw: Array
) -> Held:
    small = pool_grid(frames, sizes.side, sizes.abstract_side)
    gists = append_frames(held.abstract, held.abstract_count, small)
    total, size, slots = held.abstract_count + n, held.abstract.shape[0], sizes.abstract
    mixed = attend_groups(gists, total, maps, slots=slots, ratio=sizes.ratio).astype(gists.dtype)
    few = raw | (total <= slots)
    return held._replace(
        abstract=jnp.where(few, gists[:size], _first(mixed, size)),
        abstract_count=jnp.where(raw, total, jnp.minimum(total, slots)),
    )


def _buffered(held: Held, frames: Array, n: Array, form: Form) -> Held:
    """Keep the first frames of the stream (as released), or a ring of the newest."""
    capacity = held.buffer.shape[0]
    index = jnp.arange(frames.shape[0], dtype=jnp.int32)
    number = held.seen + index
    slot, stays = number, index < n
    if form == "as_published":
        slot, stays = number % capacity, stays & (index >= n - capacity)
    slot = jnp.where(stays, slot, capacity)
    buffer = held.buffer.at[slot].set(frames.astype(held.buffer.dtype), mode="drop")
    return held._replace(buffer=buffer)


def _retrieved(held: Held, sizes: Sizes, form: Form, raw: Array) -> Held:
    """Choose a frame for each of the heaviest clusters; none while `raw`."""
    capacity = held.buffer.shape[0]
    place, real = heaviest(held.weights, held.temporal_count, sizes.retrieved)
    number = place
    if form == "as_published":
        pooled = pool_grid(held.buffer, sizes.side, sizes.temporal_side).reshape(capacity, -1)
        full = jnp.arange(capacity, dtype=jnp.int32) < held.seen
        centres = held.temporal.reshape(held.temporal.shape[0], -1)[place]
        place = jnp.argmin(distances(centres, pooled, full), -1).astype(jnp.int32)
        number = held.seen - 1 - (held.seen - 1 - place) % capacity  # of the frame in that place
    real &= ~raw
    return held._replace(
        retrieved=jnp.where(real[:, None, None], held.buffer[place], 0),
        frames=jnp.where(real, number, -1),
    )


def blocks_of(held: Held) -> list[Block]:
    """Return the parts in the order of the prompt: abstract, temporal, retrieved, newest."""

    def first(x: Array, count: Array) -> Block:
        return x, jnp.arange(x.shape[0], dtype=jnp.int32) < count

    s = held.spatial.shape[0]
    return [
        first(held.abstract, held.abstract_count),
        first(held.temporal, held.temporal_count),
        (held.retrieved, held.frames >= 0),
        (held.spatial, jnp.arange(s, dtype=jnp.int32) >= s - held.seen),
    ]


def offline(
    x: Float[Array, "T P E"],
    draws: Draws,
    maps: Maps | None,
    sizes: Sizes,
    form: Form = "as_released",
) -> Held:
    """Compress a whole video of T frames at once; the newest frames stay out of the clusters."""
    last = x.shape[0] - sizes.spatial
    start = init_held(replace(sizes, buffer=last), x.shape[-1], 0, form, x.dtype)
    held = advance(start, x[:last], jnp.int32(last), draws, maps, sizes, form, whole=True)
    newest = _pooled(x[last:], sizes)
    return held._replace(spatial=newest, seen=jnp.int32(x.shape[0]))

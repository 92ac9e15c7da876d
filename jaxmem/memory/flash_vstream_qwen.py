"""Flash-VStream, Qwen version (arXiv 2506.23825): parts in `jaxmem.memory.synopsis`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.base import Memory, Query, Rows, Seen, Spec, State
from jaxmem.memory.clusters import Draws, draw, heaviest
from jaxmem.memory.feature_rows import append_frames, frames_of, no_view, pool_grid, rows_of
from jaxmem.memory.synopsis import Form, am_rope, nearest_frames, ordered_kmeans, same
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree


@dataclass(frozen=True)
class Sizes:
    """Static sizes in frames (pairs of video frames in Qwen2-VL), and sides of square grids."""

    grid: int = 16  # rows of a frame, per side; a centre has half as many
    synopsis: int = 60
    details: int = 30
    bank: int = 512  # newest frames that details are taken from; the release keeps all


class Held(NamedTuple):
    """The centres, and the bank in both resolutions."""

    x: Float[Array, "K p E"]
    weights: Float[Array, "K"]
    times: Float[Array, "K"]
    count: Int[Array, ""]  # centres
    high: Float[Array, "R P E"]
    low: Float[Array, "R p E"]
    seen: Int[Array, ""]  # frames so far


class Notes(NamedTuple):
    """What is not a feature."""

    key: Array  # data of the key for the next chunk's draws
    step: Num[Array, "A"]
    lost: Int[Array, ""]  # vision rows of frames that a chunk cut


def init_held(
    slots: int, bank: int, tokens: int, small: int, width: int, dtype=jnp.float32
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
    return jax.tree.map(lambda a, b: jnp.where(n > 0, a, b), new, held)


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


def flash_vstream_qwen(
    sizes: Sizes | None = None, *, form: Form = "as_released", seed: int = 0
) -> Memory:
    """Return the Qwen version's memory, scope "feature".

    It reads vision rows in whole frames of `sizes.grid`^2 rows; text and sound are not kept. A
    question is answered behind [details ; synopsis]: 11 520 rows with the default sizes. With
    three position axes they stand where AM-RoPE puts them; with another number of axes they are
    numbered like text. The low-resolution frames are 2 x 2 averages of the rows; the released
    model encodes averaged pixels a second time (`jaxmem.memory.synopsis.pixel_pool`).

    Args:
      sizes: static sizes; the released ones if None.
      form: "as_released": the time of a centre is the mean place of its members in the list that
        was clustered, which drifts in a stream; "as_published": the weighted mean of their times.
      seed: of the draws of k-means.

    Raises:
      ValueError: for an unknown form, an odd grid, more details than centres, or chunks shorter
        than a frame.
    """
    sizes = Sizes() if sizes is None else sizes
    grid, small = sizes.grid, sizes.grid // 2
    if form not in ("as_released", "as_published"):
        raise ValueError(f'form must be "as_released" or "as_published", got {form!r}.')
    if sizes.grid % 2 or sizes.details > sizes.synopsis:
        raise ValueError(f"grid must be even and details at most synopsis, got {sizes}.")

    def init(spec: Spec) -> State:
        held = init_held(sizes.synopsis, sizes.bank, grid**2, small**2, spec.width, spec.dtype)
        step = jnp.asarray(spec.step, spec.pos_dtype)
        key = jax.random.key_data(jax.random.key(seed))
        return State(held, Notes(key, step, jnp.zeros((), jnp.int32)))

    def write(state: State, seen: Seen) -> tuple[State, None]:
        held: Held = state.slots
        notes: Notes = state.notes
        high, n, cut = frames_of(seen, grid**2)
        low = pool_grid(high, grid, small)
        points = append_frames(held.x, held.count, low)
        total = held.count + n
        _, distinct = same(points.reshape(points.shape[0], -1), total)
        key = jax.random.fold_in(jax.random.wrap_key_data(notes.key), held.seen)
        draws = draw(key, total, points.shape[0], sizes.synopsis, among=distinct)
        held = advance(held, high, low, n, draws, form)
        return State(held, notes._replace(lost=notes.lost + cut)), None

    def recall(state: State, bank: PyTree, query: Query | None) -> Rows:
        del bank, query
        held: Held = state.slots
        place, number, real = details(held, sizes.details)
        centres = jnp.arange(sizes.synopsis, dtype=jnp.int32) < held.count
        blocks = [(held.high[place], real), (held.x, centres)]
        positions = None
        if state.notes.step.shape[0] == 3:
            chosen = jnp.sum(real, dtype=jnp.int32)
            positions = am_rope(number, held.times, chosen, (grid, grid), (small, small))
        return rows_of(blocks, state.notes.step, place=positions)

    return Memory(
        init,
        no_view,  # type: ignore[arg-type]
        write,
        recall,  # type: ignore[arg-type]
        scope="feature",
        name="flash_vstream_qwen",
    )

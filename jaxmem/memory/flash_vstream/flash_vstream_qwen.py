"""Flash-VStream, Qwen version (arXiv 2506.23825), as a memory; its parts: `synopsis`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State
from jaxmem.memory.features.clusters import draw
from jaxmem.memory.features.frames import append_frames, frames_of, no_view, pool_grid, rows_of
from jaxmem.memory.flash_vstream.synopsis import (
    Form,
    Held,
    advance,
    am_rope,
    details,
    init_held,
    same,
)
from jaxmem.typing import Array, Int, Num, PyTree


@dataclass(frozen=True)
class Sizes:
    """Static sizes in frames (pairs of video frames in Qwen2-VL), and sides of square grids."""

    grid: int = 16  # rows of a frame, per side; a centre has half as many
    synopsis: int = 60
    details: int = 30
    bank: int = 512  # newest frames that details are taken from; the release keeps all


class Notes(NamedTuple):
    """What is not a feature."""

    key: Array  # data of the key for the next chunk's draws
    step: Num[Array, "A"]
    lost: Int[Array, ""]  # vision rows of frames that a chunk cut


def flash_vstream_qwen(
    sizes: Sizes | None = None, *, form: Form = "as_released", seed: int = 0
) -> Memory:
    """Return the Qwen version's memory, scope "feature".

    It reads vision rows in whole frames of `sizes.grid`^2 rows; text and sound are not kept. A
    question is answered behind [details ; synopsis]: 11 520 rows with the default sizes. With
    three position axes they stand where AM-RoPE puts them; with another number of axes they are
    numbered like text. The low-resolution frames are 2 x 2 averages of the rows; the released
    model encodes averaged pixels a second time (`jaxmem.memory.flash_vstream.synopsis`).

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

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        held: Held = state.slots
        notes: Notes = state.aux
        high, n, cut = frames_of(seen, grid**2)
        low = pool_grid(high, grid, small)
        points = append_frames(held.x, held.count, low)
        total = held.count + n
        _, distinct = same(points.reshape(points.shape[0], -1), total)
        key = jax.random.fold_in(jax.random.wrap_key_data(notes.key), held.seen)
        draws = draw(key, total, points.shape[0], sizes.synopsis, among=distinct)
        held = advance(held, high, low, n, draws, form)
        return State(held, notes._replace(lost=notes.lost + cut)), None

    def recall(state: State, bank: PyTree, query: Question | None) -> Embeds:
        del bank, query
        held: Held = state.slots
        place, number, real = details(held, sizes.details)
        centres = jnp.arange(sizes.synopsis, dtype=jnp.int32) < held.count
        blocks = [(held.high[place], real), (held.x, centres)]
        positions = None
        if state.aux.step.shape[0] == 3:
            chosen = jnp.sum(real, dtype=jnp.int32)
            positions = am_rope(number, held.times, chosen, (grid, grid), (small, small))
        return rows_of(blocks, state.aux.step, place=positions)

    return Memory(
        init,
        no_view,  # type: ignore[arg-type]
        write,
        recall,  # type: ignore[arg-type]
        scope="feature",
        name="flash_vstream_qwen",
    )

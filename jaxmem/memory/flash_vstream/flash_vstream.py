"""Flash-VStream (arXiv 2406.08085) as a memory before the decoder; its parts: `star`."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State
from jaxmem.memory.features.clusters import draw
from jaxmem.memory.features.frames import frames_of, no_view, rows_of
from jaxmem.memory.flash_vstream.semantic import Attention
from jaxmem.memory.flash_vstream.star import Form, Held, Sizes, advance, blocks_of, init_held
from jaxmem.typing import Array, Int, Num, PyTree


class Notes(NamedTuple):
    """What is not a feature."""

    key: Array  # data of the key for the next chunk's draws
    maps: Attention | None  # the learned maps: weights are data, never part of the program
    step: Num[Array, "A"]
    lost: Int[Array, ""]  # vision rows of frames that a chunk cut


def flash_vstream(
    sizes: Sizes | None = None,
    *,
    maps: Attention | None = None,
    form: Form = "as_released",
    seed: int = 0,
) -> Memory:
    """Return Flash-VStream's STAR memory, scope "feature".

    It reads vision rows in whole frames of `sizes.grid`^2 rows; text and sound are not kept. A
    question is answered behind [abstract ; temporal ; retrieved ; newest], numbered like text:
    681 rows with the default sizes.

    Args:
      sizes: static sizes; the paper's if None.
      maps: the learned maps of the semantic attention, over features of the rows' width; None:
        the features attend to each other without maps.
      form: "as_released" or "as_published", see `jaxmem.memory.flash_vstream.star`.
      seed: of the draws of k-means.

    Raises:
      ValueError: for an unknown form, sizes that do not divide each other, or chunks shorter than
        a frame.
    """
    sizes = Sizes() if sizes is None else sizes
    if form not in ("as_released", "as_published"):
        raise ValueError(f'form must be "as_released" or "as_published", got {form!r}.')
    for name in ("temporal_side", "abstract_side"):
        if sizes.grid % sizes.side or sizes.side % getattr(sizes, name):
            raise ValueError(
                f"grid {sizes.grid}, side {sizes.side} and {name} {getattr(sizes, name)} must "
                "divide each other, in this order."
            )

    def init(spec: Spec) -> State:
        chunk = spec.chunk // sizes.grid**2
        held = init_held(sizes, spec.width, chunk, form, spec.dtype)
        step = jnp.asarray(spec.step, spec.pos_dtype)
        key = jax.random.key_data(jax.random.key(seed))
        learned = None if maps is None else jax.tree.map(jnp.asarray, maps)
        return State(held, Notes(key, learned, step, jnp.zeros((), jnp.int32)))

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        held: Held = state.slots
        notes: Notes = state.aux
        frames, n, cut = frames_of(seen, sizes.grid**2)
        # By the number of frames and not of chunks: a chunk without a frame changes nothing.
        key = jax.random.fold_in(jax.random.wrap_key_data(notes.key), held.seen)
        points = held.temporal.shape[0] + frames.shape[0]
        draws = draw(key, held.temporal_count + n, points, sizes.temporal)
        held = advance(held, frames, n, draws, notes.maps, sizes, form)
        return State(held, notes._replace(lost=notes.lost + cut)), None

    def recall(state: State, bank: PyTree, query: Question | None) -> Embeds:
        del bank, query
        return rows_of(blocks_of(state.slots), state.aux.step)

    return Memory(
        init,
        no_view,  # type: ignore[arg-type]
        write,
        recall,  # type: ignore[arg-type]
        scope="feature",
        name="flash_vstream",
    )

"""Between rows and frames, for memories of scope "feature".

Such a memory takes the vision rows of a chunk as whole frames of P tokens (or its rows of sound as
pieces of P tokens), and gives rows back that are prefilled in front of a question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kv import EMPTY, VISION
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree

Block = tuple[Float[Array, "n P E"], Bool[Array, "n"]]
"""Frames, and which of them hold something."""


def frames_of(
    seen: Chunk, tokens: int, kind: int = VISION
) -> tuple[Float[Array, "F P E"], Int[Array, ""], Int[Array, ""]]:
    """Return the rows of one kind in a chunk as frames of `tokens` rows.

    Returns:
      Frames, how many of them are whole, and how many rows of the kind are left over: the rows of
      a frame that the chunk cuts. Other kinds are not looked at.

    Raises:
      ValueError: if a chunk is shorter than a frame.
    """
    assert seen.hidden is not None and seen.modality is not None  # by scope "feature"
    rows = seen.hidden.shape[0]
    if rows < tokens:
        raise ValueError(
            f"chunks have {rows} rows but a frame has {tokens}; stream chunks of whole frames."
        )
    mine = seen.modality == kind
    index = jnp.argsort(~mine, stable=True)[: rows // tokens * tokens]
    frames = seen.hidden[index].reshape(rows // tokens, tokens, -1)
    found = jnp.sum(mine, dtype=jnp.int32)
    whole = jnp.arange(frames.shape[0], dtype=jnp.int32) < found // tokens
    # Zeros where no frame is: what padding rows hold never reaches a state.
    frames = jnp.where(whole[:, None, None], frames, 0)
    return frames, found // tokens, found % tokens


def rows_of(
    blocks: list[Block],
    step: Num[Array, "A"],
    *,
    place: Num[Array, "N A"] | None = None,
    kinds: tuple[int, ...] | None = None,
) -> Embeds:
    """Return blocks of frames as rows, those that hold something first.

    Args:
      blocks: in the order of the prompt; N tokens in all.
      step: how far a token of text advances each position axis.
      place: positions of all N tokens; None: numbered like text.
      kinds: of each block's tokens; `VISION` for all if None.
    """
    kinds = (VISION,) * len(blocks) if kinds is None else kinds
    x = jnp.concatenate([frames.reshape(-1, frames.shape[-1]) for frames, _ in blocks])
    real = jnp.concatenate([jnp.repeat(valid, frames.shape[1]) for frames, valid in blocks])
    kind = jnp.concatenate(
        [jnp.full((f.shape[0] * f.shape[1],), k) for (f, _), k in zip(blocks, kinds, strict=True)]
    )
    index = jnp.argsort(~real, stable=True)
    real = real[index]
    if place is None:
        place = jnp.arange(x.shape[0], dtype=step.dtype)[:, None] * step[None]
    else:
        place = place[index].astype(step.dtype)
    return Embeds(
        x=jnp.where(real[:, None], x[index], 0),
        pos=jnp.where(real[:, None], place, 0),
        modality=jnp.where(real, kind[index], EMPTY).astype(jnp.int8),
        advance=jnp.sum(real).astype(step.dtype) * step,
    )


def append_frames(
    held: Float[Array, "M ..."], count: Int[Array, ""], fresh: Float[Array, "F ..."]
) -> Float[Array, "M+F ..."]:
    """Return [held ; fresh] with the fresh entries right behind the first `count` held ones."""
    room = jnp.zeros((held.shape[0] + fresh.shape[0], *held.shape[1:]), held.dtype)
    index = jnp.arange(fresh.shape[0], dtype=jnp.int32) + count
    return room.at[: held.shape[0]].set(held).at[index].set(fresh.astype(held.dtype))


def pool_grid(x: Float[Array, "N P E"], side: int, to: int) -> Float[Array, "N p E"]:
    """Average frames of `side` x `side` tokens to `to` x `to`.

    Raises:
      ValueError: if `side` is not a multiple of `to`, or P not its square.
    """
    if side % to or x.shape[1] != side * side:
        raise ValueError(
            f"{x.shape[1]} tokens as a grid of side {side} cannot be averaged to side {to}."
        )
    blocks = x.reshape(x.shape[0], to, side // to, to, side // to, x.shape[2])
    return jnp.mean(blocks, (2, 4)).reshape(x.shape[0], to * to, x.shape[2])


class Notes(NamedTuple):
    """What is not a feature."""

    step: Num[Array, "A"]
    lost: Int[Array, ""]  # rows of frames that a chunk cut


def frame_by_frame(
    name: str,
    tokens: int,
    start: Callable[[Spec], PyTree],
    step: Callable[[PyTree, Array], PyTree],
    blocks: Callable[[PyTree], list[Block]],
    kind: int = VISION,
) -> Memory:
    """Return a memory of scope "feature" that takes one frame of `tokens` rows after another.

    Args:
      name: of the memory.
      tokens: P, rows of a frame.
      start: the empty features held.
      step: (held, frame [P, E]) -> held.
      blocks: what a question reads.
      kind: of the rows that are taken.

    Raises:
      ValueError: if `tokens` is not positive.
    """
    if tokens < 1:
        raise ValueError(f"{name} needs at least 1 token in a frame, got {tokens}.")

    def init(spec: Spec) -> State:
        notes = Notes(jnp.asarray(spec.step, spec.pos_dtype), jnp.zeros((), jnp.int32))
        return State(start(spec), notes)

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        notes: Notes = state.aux
        frames, n, cut = frames_of(seen, tokens, kind)

        def take(held: PyTree, item: tuple[Array, Array]) -> tuple[PyTree, None]:
            frame, comes = item
            new = step(held, frame)
            return jax.tree.map(lambda a, b: jnp.where(comes, a, b), new, held), None

        comes = jnp.arange(frames.shape[0], dtype=jnp.int32) < n
        held = jax.lax.scan(take, state.slots, (frames, comes))[0]
        return State(held, notes._replace(lost=notes.lost + cut)), None

    def recall(state: State, bank: PyTree, query: Question | None) -> Embeds:
        del bank, query
        held = blocks(state.slots)
        return rows_of(held, state.aux.step, kinds=(kind,) * len(held))

    return Memory(
        init,
        no_view,  # type: ignore[arg-type]
        write,
        recall,  # type: ignore[arg-type]
        scope="feature",
        name=name,
    )


def no_view(*unused) -> None:
    """Stand for `Memory.view`, which a memory before the decoder does not have."""
    raise ValueError("a memory of scope 'feature' has no view; the decoder runs at questions only.")


__all__ = [
    "Block",
    "append_frames",
    "frame_by_frame",
    "frames_of",
    "no_view",
    "pool_grid",
    "rows_of",
]

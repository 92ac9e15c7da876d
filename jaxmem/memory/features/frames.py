"""Between rows and frames, for memories of features.

Such a memory takes the vision rows of a chunk as whole frames of P tokens (or its rows of audio as
pieces of P tokens), and gives rows back that are prefilled in front of a question.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.kv import EMPTY, VISION
from jaxmem.memory.base import FeatureMemory, Spec, State
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.features.clusters import Merged
from jaxmem.memory.parts.options import at_least
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree

Block = tuple[Float[Array, "n P E"], Bool[Array, "n"]]
"""Frames, and which of them hold something."""
Grid = int | tuple[int, int]
"""Rows and columns of a frame's tokens, or the side of a square."""


def frames_of(
    embeds: Embeds, tokens: int, modality: int = VISION
) -> tuple[Float[Array, "F P E"], Int[Array, ""], Int[Array, ""]]:
    """Return the rows of one modality in a chunk as frames of `tokens` rows.

    Returns:
      Frames, how many of them are whole, and how many rows of the modality are left over: the rows
      of a frame that the chunk cuts. Other modalities are not looked at.

    Raises:
      ValueError: if a chunk is shorter than a frame.
    """
    rows = embeds.x.shape[0]
    if rows < tokens:
        raise ValueError(
            f"chunks have {rows} rows but a frame has {tokens}; stream chunks of whole frames."
        )
    mine = embeds.modality == modality
    index = jnp.argsort(~mine, stable=True)[: rows // tokens * tokens]
    frames = embeds.x[index].reshape(rows // tokens, tokens, -1)
    found = jnp.sum(mine, dtype=jnp.int32)
    whole = jnp.arange(frames.shape[0], dtype=jnp.int32) < found // tokens
    # Zeros where no frame is: what padding rows hold never reaches a state.
    frames = jnp.where(whole[:, None, None], frames, 0)
    return frames, found // tokens, found % tokens


def rows_of(
    spec: Spec,
    blocks: list[Block],
    *,
    place: Num[Array, "N A"] | None = None,
    modalities: tuple[int, ...] | None = None,
) -> Embeds:
    """Return blocks of frames as rows, those that hold something first.

    Blocks come in the order of the prompt, N tokens in all, at the positions `place` (None:
    numbered like text) and of the `modalities` of their blocks (None: vision).
    """
    step = jnp.asarray(spec.step, spec.pos_dtype)
    modalities = (VISION,) * len(blocks) if modalities is None else modalities
    x = jnp.concatenate([frames.reshape(-1, frames.shape[-1]) for frames, _ in blocks])
    real = jnp.concatenate([jnp.repeat(valid, frames.shape[1]) for frames, valid in blocks])
    sizes = [frames.shape[0] * frames.shape[1] for frames, _ in blocks]
    modality = jnp.asarray(np.repeat(np.asarray(modalities, np.int8), sizes))
    index = jnp.argsort(~real, stable=True)
    real = real[index]
    if place is None:
        place = jnp.arange(x.shape[0], dtype=step.dtype)[:, None] * step[None]
    else:
        place = place[index].astype(step.dtype)
    return Embeds(
        x=jnp.where(real[:, None], x[index], 0),
        pos=jnp.where(real[:, None], place, 0),
        modality=jnp.where(real, modality[index], EMPTY).astype(jnp.int8),
        advance=jnp.sum(real).astype(step.dtype) * step,
    )


def append_frames(
    held: Float[Array, "M ..."], count: Int[Array, ""], fresh: Float[Array, "F ..."]
) -> Float[Array, "M+F ..."]:
    """Return [held ; fresh] with the fresh entries right after the first `count` held ones."""
    both = jnp.zeros((held.shape[0] + fresh.shape[0], *held.shape[1:]), held.dtype)
    index = jnp.arange(fresh.shape[0], dtype=jnp.int32) + count
    return both.at[: held.shape[0]].set(held).at[index].set(fresh.astype(held.dtype))


def pool_grid(x: Float[Array, "N P E"], grid: Grid, to: Grid) -> Float[Array, "N p E"]:
    """Average frames of a grid (rows, columns) of tokens to a smaller one; one number: a square.

    Raises:
      ValueError: if the smaller grid does not divide the larger, or P is not its size.
    """
    (rows, columns), (less, fewer) = square(grid), square(to)
    if rows % less or columns % fewer or x.shape[1] != rows * columns:
        raise ValueError(
            f"{x.shape[1]} tokens as a grid of {rows} x {columns} cannot be averaged to "
            f"{less} x {fewer}."
        )
    blocks = x.reshape(x.shape[0], less, rows // less, fewer, columns // fewer, x.shape[2])
    return jnp.mean(blocks, (2, 4)).reshape(x.shape[0], less * fewer, x.shape[2])


def halve_grid(x: Float[Array, "N P E"], grid: Grid) -> Float[Array, "N p E"]:
    """Average 2 x 2 tokens of frames; an odd last row or column is averaged with itself."""
    rows, columns = square(grid)
    image = x.reshape(x.shape[0], rows, columns, x.shape[2])
    image = jnp.pad(image, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)), mode="edge")
    even = rows + rows % 2, columns + columns % 2
    flat = image.reshape(x.shape[0], even[0] * even[1], x.shape[2])
    return pool_grid(flat, even, (even[0] // 2, even[1] // 2))


def square(grid: Grid) -> tuple[int, int]:
    """Return a grid as rows and columns; one number is a square's side."""
    return (grid, grid) if isinstance(grid, int) else grid


def area(grid: Grid) -> int:
    """Return the tokens of a grid."""
    rows, columns = square(grid)
    return rows * columns


def check_frame(name: str, spec: Spec, tokens: int) -> None:
    """Raise ValueError if a chunk is shorter than a frame."""
    if spec.chunk < tokens:
        raise ValueError(
            f"{name} takes whole frames of {tokens} rows, but chunks have {spec.chunk}: stream "
            "longer chunks."
        )


class Aux(NamedTuple):
    """What is not a feature."""

    dropped: Int[Array, ""]  # rows of frames that a chunk cut


@dataclass(frozen=True)
class FrameByFrame(FeatureMemory):
    """A memory that takes one frame after another."""

    _: KW_ONLY
    tokens: int | None = None  # P, rows of a frame; None: those of `Spec.frame`

    def tokens_of(self, spec: Spec) -> int:
        """Return P, rows of a frame."""
        return spec.frame_tokens(self) if self.tokens is None else self.tokens

    def start(self, spec: Spec) -> PyTree:
        """Return the empty features held."""
        raise NotImplementedError(f"{self.name}.start")

    def step(self, held: PyTree, frame: PyTree) -> PyTree:
        """Take one frame [P, E] (with what goes along, where a memory's `write` gives more)."""
        raise NotImplementedError(f"{self.name}.step")

    def blocks(self, held: PyTree) -> list[Block]:
        """Return what a question reads."""
        raise NotImplementedError(f"{self.name}.blocks")

    @property
    def taken(self) -> int:
        """Return the modality of the rows that are taken."""
        return VISION

    def init(self, spec: Spec) -> State:
        check_frame(self.name, spec, self.tokens_of(spec))
        return State(self.start(spec), Aux(jnp.zeros((), jnp.int32)))

    def write(self, spec: Spec, state: State, embeds: Embeds) -> State:
        frames, n, cut = frames_of(embeds, self.tokens_of(spec), self.taken)
        return State(self.taking(state.slots, frames, n), Aux(state.aux.dropped + cut))

    def taking(self, held: PyTree, frames: PyTree, n: Int[Array, ""]) -> PyTree:
        """Return what is held after the first `n` of F frames, one after another."""

        def take(held: PyTree, item: tuple[PyTree, Array]) -> tuple[PyTree, None]:
            frame, comes = item
            new = self.step(held, frame)
            return jax.tree.map(lambda a, b: jnp.where(comes, a, b), new, held), None

        comes = jnp.arange(jax.tree.leaves(frames)[0].shape[0], dtype=jnp.int32) < n
        return jax.lax.scan(take, held, (frames, comes))[0]

    def read(self, spec: Spec, state: State) -> Embeds:
        held = self.blocks(state.slots)
        return rows_of(spec, held, modalities=(self.taken,) * len(held))


@dataclass(frozen=True)
class Entries(FrameByFrame):
    """A memory of `frames` entries of a frame each, some of them empty at first."""

    sized: ClassVar[tuple[str, ...]] = ("frames",)
    """What `resized` decides."""

    frames: int = 1

    def __post_init__(self):
        at_least(self.name, 1, frames=self.frames, tokens=self.tokens)

    def resized(self, slots: int, spec: Spec) -> Self:
        """Return the same memory in so many rows."""
        return replace(self, frames=max(1, slots // self.tokens_of(spec)))

    def entries(self, held: Merged) -> Block:
        """Return the entries, and which of them hold something."""
        return held.x, jnp.arange(self.frames, dtype=jnp.int32) < held.count

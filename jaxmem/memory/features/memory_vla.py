"""MemoryVLA's perceptual bank (arXiv 2508.19236): the most similar neighbours become one frame."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax.numpy as jnp

from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Embeds
from jaxmem.memory.features.clusters import Merged, add, empty_merged, mean_cosine
from jaxmem.memory.features.frames import Block, Entries, frames_of, rows_of
from jaxmem.typing import Array, Float, Int, Num


class Held(NamedTuple):
    """Entries of a frame each, and where they are in the stream."""

    frames: Merged
    pos: Num[Array, "N P A"]  # since the stream began; of several frames, those of the earliest


class Aux(NamedTuple):
    """What is not a feature."""

    dropped: Int[Array, ""]  # rows of frames that a chunk cut
    next_pos: Num[Array, "A"]  # how far the stream has advanced


@dataclass(frozen=True)
class MemoryVLA(Entries):
    """MemoryVLA's bank of `frames` entries of a frame each.

    A frame is appended; if the bank was full, the adjacent pair with the largest mean, over the P
    tokens of a frame, of their cosines becomes its plain mean, at the time of the earlier one. A
    question reads the entries at the positions that they had in the stream, and begins where the
    stream is. Other modalities are not kept; see `WithAudio` for both.

    Attributes:
      frames: entries of the bank; 16 as released.
      tokens: P, rows of a frame; None: those of `Spec.frame`.
      reindex: rows are numbered like text, without gaps; False: they keep their positions.

    Raises:
      ValueError: if a size is not positive, or, when the stream begins, chunks are shorter than a
        frame.
    """

    frames: int = 16
    _: KW_ONLY
    reindex: bool = False

    def start(self, spec: Spec) -> Held:
        tokens = self.tokens_of(spec)
        pos = jnp.zeros((self.frames, tokens, spec.axes), spec.pos_dtype)
        return Held(empty_merged(self.frames, (tokens, spec.width), spec.dtype), pos)

    def init(self, spec: Spec) -> State:
        slots, aux = super().init(spec)
        return State(slots, Aux(aux.dropped, jnp.zeros((spec.axes,), spec.pos_dtype)))

    def write(self, spec: Spec, state: State, embeds: Embeds) -> State:
        aux: Aux = state.aux
        pos = embeds.pos.astype(spec.pos_dtype) + aux.next_pos[None]
        places = frames_of(embeds._replace(x=pos), self.tokens_of(spec))[0]
        frames, n, cut = frames_of(embeds, self.tokens_of(spec))
        held = self.taking(state.slots, (frames, places), n)
        next_pos = aux.next_pos + embeds.advance.astype(spec.pos_dtype)
        return State(held, Aux(aux.dropped + cut, next_pos))

    def step(self, held: Held, frame: tuple[Float[Array, "P E"], Num[Array, "P A"]]) -> Held:
        x, place = frame
        frames, (_, right) = add(held.frames, x, mean_cosine, weighted=False)
        pos = jnp.pad(held.pos, ((0, 1), (0, 0), (0, 0))).at[held.frames.count].set(place)
        index = jnp.arange(self.frames, dtype=jnp.int32)
        return Held(frames, pos[index + ((right >= 0) & (index >= right))])

    def blocks(self, held: Held) -> list[Block]:
        return [self.entries(held.frames)]

    def read(self, spec: Spec, state: State) -> Embeds:
        if self.reindex:
            return super().read(spec, state)
        place = state.slots.pos.reshape(-1, spec.axes)
        rows = rows_of(spec, self.blocks(state.slots), place=place)
        return rows._replace(advance=state.aux.next_pos)

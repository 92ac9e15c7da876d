"""The embedded rows of the last frames, for memories that encode them again at a question."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp

from jaxmem.kv import EMPTY, KV, count
from jaxmem.memory.base import Spec, State
from jaxmem.memory.baselines import LastFrames
from jaxmem.memory.exchange import Chunk, Embeds
from jaxmem.memory.parts.positions import following
from jaxmem.typing import Array, Bool, Int, Num


@dataclass(frozen=True)
class LastRows:
    """The rows of the last whole frames, with their text and audio: `LastFrames` of rows.

    A row is held as a key of width E, without a value, at its position since the stream began.

    Attributes:
      rows: R, rows that are held at most.
      frames: frames that are held at most; None: as many as fit.
      tokens_per_frame: see `LastFrames`.
    """

    rows: int
    frames: int | None = None
    tokens_per_frame: int | None = None

    @property
    def _frames(self) -> LastFrames:
        return LastFrames(self.rows, frames=self.frames, tokens_per_frame=self.tokens_per_frame)

    def init(self, spec: Spec) -> State:
        """Return no rows."""
        slots, aux = self._frames.init(_flat(spec))
        return State(slots._replace(kv=slots.kv._replace(v=None)), aux)

    def write(
        self, spec: Spec, state: State, embeds: Embeds, index: Int[Array, "T"] | None = None
    ) -> State:
        """Take a chunk's rows; `index` are their arrival numbers where they are known."""
        begin, rows = state.aux.next_pos, embeds.x.shape[0]
        pos = begin[None] + embeds.pos.astype(begin.dtype)
        fresh = KV(
            k=embeds.x[:, None].astype(spec.dtype),
            v=None,  # type: ignore[arg-type]
            pos=pos[:, None],
            index=(jnp.zeros((rows,), jnp.int32) if index is None else index)[:, None],
            modality=embeds.modality[:, None].astype(jnp.int8),
        )
        chunk = Chunk(fresh, begin + embeds.advance.astype(begin.dtype))
        return self._frames.write(_flat(spec), state, chunk)[0]

    def read(self, spec: Spec, state: State) -> Embeds:
        """Return the rows as a prompt of their own: what follows them begins at `advance`.

        Positions are those of the stream, less the first one's on the axes that text advances. On
        axes that advance together what follows begins after the largest of them, as text does.
        """
        kv, moves = state.slots.kv, jnp.asarray(spec.step) != 0
        real = held(state)
        first = jnp.where(moves & real[0], kv.pos[0, 0], 0)
        pos = jnp.where(real[:, None], kv.pos[:, 0] - first[None], 0)
        if all(spec.step):
            advance = following(pos, real, jnp.zeros_like(first))
        else:
            advance = jnp.where(real[0], state.aux.next_pos - first, 0)
        return Embeds(kv.k[:, 0], pos, kv.modality[:, 0], advance.astype(first.dtype))


def held(state: State) -> Bool[Array, "R"]:
    """Return which rows are held; they come first."""
    return state.slots.kv.modality[:, 0] != EMPTY


def first_number(state: State) -> Int[Array, ""]:
    """Return the arrival number of the first row; the largest number where there is none."""
    kv = state.slots.kv
    return jnp.where(count(kv) > 0, kv.index[0, 0], jnp.iinfo(jnp.int32).max)


def numbers(state: State) -> tuple[Int[Array, "R 1"], Num[Array, "R 1 A"]]:
    """Return arrival numbers and positions since the stream began."""
    return state.slots.kv.index, state.slots.kv.pos


def _flat(spec: Spec) -> Spec:
    """Return the sizes of rows held as keys; positions begin at 0."""
    return replace(spec, kv_heads=1, head_dim=spec.width, prefix=0)

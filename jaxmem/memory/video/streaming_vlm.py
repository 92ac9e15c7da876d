"""StreamingVLM (arXiv 2510.09608): a text sink, recent text, a window of vision, no scores."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.select import select
from jaxmem.kv import AUDIO, EMPTY, KV, TEXT
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Chunk, Embeds, View
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import at_least
from jaxmem.memory.parts.positions import Reindexed, start
from jaxmem.memory.parts.scored import AUDIO_SHARE, check_budget, lend, length, split
from jaxmem.typing import Array, Bool, Int, Num, PyTree

PUBLISHED = 512
"""Text tokens held from the start, and as many of the newest."""


class Slots(NamedTuple):
    """Tokens, and the number of the chunk each came with."""

    kv: KV
    chunk: Int[Array, "S"]


class Aux(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]
    next_pos: Num[Array, "A"]  # where the next chunk begins; reindexed: where the stream began
    quotas: Int[Array, "C"]  # vision, audio (if it has a part), text, sinks
    chunk: Int[Array, ""]  # chunks so far, without those of padding


@dataclass(frozen=True)
class StreamingVLM(Reindexed):
    """StreamingVLM: eviction by structure, decided by modality and age alone.

    Held are the first `sinks` text tokens, the newest `text` others, and the vision of the newest
    `window` chunks (the newest tokens of it, if slots are short). The released code keeps the text
    of the last 16 rounds on top of `text`, moves the assistant's after the older text when a
    round leaves, and deletes the round's wrapper. Here all text competes for `text`, which must
    leave room for the rounds', and wrappers stay; with one window for both, vision is gone when
    text moves, so the order is that of arrival. A part of the budget that nothing competes for
    lends its slots to vision, or to the next part that has any token.

    Attributes:
      budget: S, slots of every layer: sinks, text, and the rest for vision and audio.
      sinks: text tokens held from the start of the stream; None: 512 as published, at most a
        quarter of the budget, where text comes with the stream, else 0. At most budget - 1.
      text: newest text tokens held after the sinks; None: as `sinks`.
      window: chunks whose vision (and audio) is held; 16 of one second as released.
      audio_share: audio's part of what sinks and text leave; None: it takes slots of vision, newest
        first (the published model has no audio).
      reindex: positions that the surviving tokens would have as one prompt, as released ("shrink",
        see `contiguous`); False ("append") lets them grow.

    Raises:
      ValueError: if a size is out of range.
    """

    budget: int
    _: KW_ONLY
    sinks: int | None = None
    text: int | None = None
    window: int = 16
    audio_share: float | None = AUDIO_SHARE
    reindex: bool = True

    def __post_init__(self):
        check_budget(self.name, self.budget, self.audio_share)
        at_least(self.name, 0, sinks=self.sinks, text=self.text)
        at_least(self.name, 1, window=self.window)

    def parts(self, spec: Spec) -> tuple[int, ...]:
        """Return the slots of vision, audio (if it has a part), text and sinks."""
        usual = min(PUBLISHED, self.budget // 4) if spec.timestamps else 0
        sinks = min(usual if self.sinks is None else self.sinks, self.budget - 1)
        text = min(usual if self.text is None else self.text, self.budget - 1 - sinks)
        return (*split(self.budget - sinks - text, self.audio_share), text, sinks)

    def init(self, spec: Spec, layer: int = 0) -> State:
        aux = Aux(
            capacity=jnp.asarray(self.budget, jnp.int32),
            next_pos=start(spec),
            quotas=jnp.asarray(self.parts(spec), jnp.int32),
            chunk=jnp.zeros((), jnp.int32),
        )
        return State(Slots(spec.empty(self.budget), jnp.zeros((self.budget,), jnp.int32)), aux)

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        (kv, chunk), aux = state
        if not self.reindex:
            return View(kv, aux.next_pos)
        return View(*contiguous(kv, chunk, aux.next_pos, jnp.asarray(spec.step, jnp.int32)))

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        held, aux = state
        number = jnp.full(chunk.kv.modality.shape[:1], aux.chunk)
        pool: Slots = kvs.append(held, Slots(chunk.kv, number), kvs.count(held.kv))
        chunks = aux.chunk + jnp.any(chunk.kv.modality != EMPTY).astype(jnp.int32)
        groups = self._groups(spec, pool, chunks)
        ranked = scores.only(scores.newest(groups.shape[1])[None], groups)
        index, keep = select(ranked, lend(aux.quotas, groups), slots=length(state))
        aux = self.moved(aux._replace(chunk=chunks), chunk)
        return State(kvs.take(pool, index, keep), aux), None

    def _groups(self, spec: Spec, pool: Slots, chunks: Int[Array, ""]) -> Bool[Array, "C N"]:
        """Return who competes for each part of the budget, in the order of `parts`."""
        modality = pool.kv.modality[:, 0]
        word, near = modality == TEXT, pool.chunk >= chunks - self.window
        # No sink is ever evicted, so the first text tokens of the pool are those of the stream.
        sink = word & (jnp.cumsum(word) <= self.parts(spec)[-1])
        other, audio = (modality != EMPTY) & ~word & near, modality == AUDIO
        media = [other] if self.audio_share is None else [other & ~audio, other & audio]
        return jnp.stack([*media, word & ~sink, sink])


def contiguous(
    kv: KV, chunk: Int[Array, "S"], first: Num[Array, "A"], step: Int[Array, "A"]
) -> tuple[KV, Num[Array, "A"]]:
    """Return tokens at the positions of a prompt of M-RoPE's form, and the position after them.

    Text tokens, and runs of other tokens of one chunk, are units. A unit begins, on every axis, one
    after the largest coordinate of the unit before; within it distances stay as they came. Axes
    that text does not advance (image coordinates, where they are absolute) are left alone. `chunk`
    is the number of the chunk that each token came with, `first` where the stream began, `step` how
    far a text token advances each axis.
    """
    modality, pos, size = kv.modality[:, 0], kv.pos[:, 0], chunk.shape[0]
    valid, word, moves = modality != EMPTY, modality == TEXT, (step > 0)[None]
    same = (chunk[1:] == chunk[:-1]) & ~word[1:] & ~word[:-1]
    unit = jnp.cumsum(~jnp.pad(same, (1, 0)), dtype=jnp.int32) - 1
    unit = jnp.where(valid, unit, size)
    inside = pos - jax.ops.segment_min(pos, unit, size + 1)[unit]
    reach = jnp.max(jnp.where(valid[:, None] & moves, inside, 0), axis=1)
    reach = jnp.floor(reach) if jnp.issubdtype(reach.dtype, jnp.floating) else reach
    many = jnp.max(jnp.where(valid, unit + 1, 0))
    extent = jax.ops.segment_max(reach, unit, size + 1) + 1
    extent = jnp.where(jnp.arange(size + 1) < many, extent, 0)
    begin = first[None] + (jnp.cumsum(extent) - extent)[unit][:, None].astype(pos.dtype)
    pos = jnp.where(valid[:, None] & moves, begin + inside, pos)
    end = first + jnp.where(moves[0], jnp.sum(extent), 0).astype(first.dtype)
    return kv._replace(pos=pos[:, None]), end

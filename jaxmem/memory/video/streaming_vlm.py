"""StreamingVLM (arXiv 2510.09608): a text sink, recent text, a window of vision, no scores."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kernels.select import select
from jaxmem.kv import AUDIO, EMPTY, KV, TEXT
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State, View
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.typing import Array, Int, Num, PyTree


class Slots(NamedTuple):
    """Tokens, and the number of the chunk each came with."""

    tokens: KV
    chunk: Int[Array, "S"]


class Notes(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]
    next_pos: Num[
        Array, "A"
    ]  # where the next chunk begins; under "contiguous" where the stream began
    quotas: Int[Array, "C"]  # sink, text, vision, audio
    chunk: Int[Array, ""]  # chunks so far, without those of padding
    step: Int[Array, "A"]  # how far text advances each axis


def streaming_vlm(
    budget: int,
    *,
    sinks: int = 512,
    text: int = 512,
    window: int = 16,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: places.Rule = "contiguous",
) -> Memory:
    """Return StreamingVLM: eviction by structure, decided by kind and age alone.

    Held are the first `sinks` text tokens, the newest `text` others, and the vision of the newest
    `window` chunks (the newest tokens of it, if slots are short). The released code keeps the text
    of the last 16 rounds on top of `text`, moves the assistant's behind the older text when a
    round leaves, and deletes the round's wrapper. Here all text competes for `text`, which must
    leave room for the rounds', and wrappers stay; with one window for both, vision is gone when
    text moves, so the order is that of arrival.

    Args:
      budget: S, slots of every layer: sinks, text, and the rest for vision and audio.
      sinks: text held from the start of the stream.
      text: newest text behind the sinks.
      window: chunks whose vision (and audio) is held; 16 of one second as released.
      per_kind: audio of the window has its own part of what sinks and text leave. False: it takes
        slots of vision, newest first; the published model hears nothing.
      audio_share: that part.
      positions: "contiguous" as released ("shrink"): the positions that the surviving tokens would
        have as one prompt, see `contiguous`; "keep" ("append") lets them grow.

    Raises:
      ValueError: if a size is out of range or the budget leaves no slot for vision.
    """
    if min(sinks, text) < 0 or window < 1 or sinks + text >= budget:
        raise ValueError(
            "streaming_vlm needs sinks and text >= 0, a window of at least 1 chunk and slots left "
            f"for vision, got sinks={sinks}, text={text}, window={window}, budget={budget}."
        )
    if positions not in ("keep", "contiguous"):
        raise ValueError(f'positions must be "keep" or "contiguous", got {positions!r}.')
    parts = evict.caps("streaming_vlm", budget - sinks - text, per_kind, audio_share)

    def init(spec: Spec) -> State:
        zero, step = jnp.zeros((), jnp.int32), jnp.asarray(spec.step, jnp.int32)
        caps = jnp.asarray((sinks, text, *parts), jnp.int32)
        notes = Notes(jnp.asarray(budget, jnp.int32), places.start(spec), caps, zero, step)
        return State(Slots(spec.empty(budget), jnp.zeros((budget,), jnp.int32)), notes)

    def view(state: State, bank: PyTree, rows: Embeds | None) -> View:
        del bank, rows
        (tokens, chunk), notes = state
        if positions == "keep":
            return View(tokens, notes.next_pos)
        return View(*contiguous(tokens, chunk, notes.next_pos, notes.step))

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        held, notes = state
        fresh = Slots(seen.tokens, jnp.full(seen.tokens.modality.shape[:1], notes.chunk))
        pool: Slots = tk.append(held, fresh, tk.count(held.tokens))
        kind = pool.tokens.modality[:, 0]
        chunks = notes.chunk + jnp.any(seen.tokens.modality != EMPTY).astype(jnp.int32)
        word, near = kind == TEXT, pool.chunk >= chunks - window
        # No sink is ever evicted, so the first text tokens of the pool are those of the stream.
        sink = word & (jnp.cumsum(word) <= sinks)
        other = (kind != EMPTY) & ~word & near
        groups = [sink, word & ~sink, other & (kind != AUDIO), other & (kind == AUDIO)]
        groups = groups if per_kind else [*groups[:2], other]
        newest = scores.newest(kind.shape[0])
        ranked = jnp.stack([scores.only(newest, group) for group in groups])
        index, keep = select(ranked, notes.quotas, slots=held.chunk.shape[0])
        end = (
            places.keep(seen).astype(notes.next_pos.dtype)
            if positions == "keep"
            else notes.next_pos
        )
        notes = notes._replace(next_pos=end, chunk=chunks)
        return State(tk.take(pool, index, keep), notes), None

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        del query
        return view(state, bank, None)

    return Memory(init, view, write, recall, name="streaming_vlm")


def contiguous(
    tokens: KV, chunk: Int[Array, "S"], first: Num[Array, "A"], step: Int[Array, "A"]
) -> tuple[KV, Num[Array, "A"]]:
    """Return tokens at the positions of a prompt of M-RoPE's form, and the position behind them.

    Text tokens, and runs of other tokens of one chunk, are units. A unit begins, on every axis,
    one behind the largest coordinate of the unit before; within it distances stay as they came.
    Axes that text does not advance (image coordinates, where they are absolute) are left alone.
    """
    kind, pos, size = tokens.modality[:, 0], tokens.pos[:, 0], chunk.shape[0]
    valid, word, moves = kind != EMPTY, kind == TEXT, (step > 0)[None]
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
    return tokens._replace(pos=pos[:, None]), end

"""`evict`: memories that rank memory and chunk together after each chunk and keep the best.

A method is a score. Every KV head may keep tokens of its own (Gm = G): heads differ in which, never
in how many. Audio may compete in a budget of its own, so that hundreds of visual tokens cannot push
out the few beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kernels.select import select
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Requires, Spec, State, View
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scores
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree

T = TypeVar("T")
AUDIO_SHARE = 1 / 6
"""Audio's default part of a budget: OmniMem's released prior, five visual slots for each."""


class Slots(NamedTuple):
    """Tokens, and what a method remembers of each."""

    tokens: KV
    received: Float[Array, "S Gm"] | None = None  # attention so far, where it is carried


class Notes(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]  # slots that may be filled
    next_pos: Num[Array, "A"]  # where the next chunk begins
    quotas: Int[Array, "C"]  # (all), or (all but audio, audio)


class Pool(NamedTuple):
    """Memory, then chunk, dense, as a score sees them. Entries from `n` on hold nothing."""

    tokens: KV  # [N]
    received: Float[Array, "Gm N"] | None  # attention from this chunk's rows, and carried
    n: Int[Array, ""]  # valid entries
    rows: Int[Array, ""]  # how many of them the chunk brought
    next_pos: Num[Array, "A"]  # where the next chunk begins
    queries: Float[Array, "T H D"] | None = None  # of the chunk's rows, before rotation

    @property
    def valid(self) -> Bool[Array, "Gm N"]:
        """Return which entries hold a token."""
        return tk.valid(self.tokens).T

    def newest(self, count: int | Array) -> Bool[Array, "1 N"]:
        """Return which entries are the last `count` valid ones (the same ones in every head)."""
        index = jnp.arange(self.tokens.modality.shape[0], dtype=jnp.int32)[None]
        return (index < self.n) & (index >= self.n - count)


Score = Callable[[Pool], Float[Array, "Gm N"]]
"""Finite or +inf scores; entries that hold nothing may have any."""


def evict(
    budget: int,
    score: Score,
    *,
    name: str,
    reads: Requires | None = None,
    per_head: bool = True,
    carry: bool = False,
    per_kind: bool = True,
    audio_share: float = AUDIO_SHARE,
    positions: places.Rule = "keep",
) -> Memory:
    """Return the memory that keeps the tokens of largest score.

    Args:
      budget: S, slots of every layer.
      score: of the pool, after each chunk; equal scores go to the newer token.
      name: of the memory.
      reads: what the forward pass must report.
      per_head: every KV head keeps its own tokens.
      carry: attention received adds up over chunks and is part of the state.
      per_kind: audio has a part of the budget of its own.
      audio_share: that part.
      positions: "keep" the position of arrival, or renumber ("contiguous").

    Raises:
      ValueError: if the budget is too small for its parts, or an option is out of range.
    """
    parts = caps(name, budget, per_kind, audio_share)

    def init(spec: Spec) -> State:
        groups = spec.kv_heads if per_head else 1
        received = jnp.zeros((budget, groups), jnp.float32) if carry else None
        return State(Slots(spec.empty(budget, groups), received), notes(spec, parts))

    def view(state: State, bank: PyTree, rows: Embeds | None) -> View:
        del bank, rows
        return View(state.slots.tokens, state.aux.next_pos)

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        pool = pool_of(state.slots.tokens, state.slots.received, seen)
        index, keep = choose(score(pool), pool.tokens.modality, state.aux.quotas, slots_of(state))
        received = None if pool.received is None or not carry else pool.received.T
        slots = take(Slots(pool.tokens, received), index, keep)
        end = places.keep(seen).astype(state.aux.next_pos.dtype)
        return State(slots, state.aux._replace(next_pos=end)), None

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        del query
        return view(state, bank, None)

    memory = Memory(init, view, write, recall, reads or Requires(), name=name)
    return places.ruled(memory, positions)


def caps(name: str, budget: int, per_kind: bool, audio_share: float) -> tuple[int, ...]:
    """Return how a budget is divided: (all), or (all but audio, audio).

    Raises:
      ValueError: if the budget has no slot, or the share is no share.
    """
    if budget < 1:
        raise ValueError(f"{name} needs a budget of at least 1 slot, got {budget}.")
    if not 0.0 <= audio_share <= 1.0:
        raise ValueError(f"audio_share is a part of the budget, 0 to 1, got {audio_share}.")
    audio = round(budget * audio_share)
    return (budget - audio, audio) if per_kind else (budget,)


def notes(spec: Spec, parts: tuple[int, ...]) -> Notes:
    """Return the notes of a stream that has not begun."""
    return Notes(
        capacity=jnp.asarray(sum(parts), jnp.int32),
        next_pos=places.start(spec),
        quotas=jnp.asarray(parts, jnp.int32),
    )


def slots_of(state: State) -> int:
    """Return the length of a state's arrays, at least its room."""
    return state.slots.tokens.modality.shape[0]


def pool_of(held: KV, received: Float[Array, "S Gm"] | None, seen: Chunk) -> Pool:
    """Return the dense pool of a layer; `received` is what the memory's tokens carry."""
    n = tk.count(held)
    rows = jnp.sum(seen.tokens.modality[:, 0] != tk.EMPTY, dtype=jnp.int32)
    mass = None
    if seen.mass is not None:
        old = seen.mass.memory.T + (0.0 if received is None else received)
        mass = jax.lax.stop_gradient(tk.append(old, seen.mass.chunk.T, n).T)
    tokens = tk.append(held, seen.tokens, n)
    return Pool(tokens, mass, n + rows, rows, seen.next_pos, seen.queries)


def choose(
    score: Float[Array, "Gm N"], kind: Int[Array, "N Gm"], caps: Int[Array, "C"], slots: int
) -> tuple[Int[Array, "Gm K"], Bool[Array, "Gm K"]]:
    """Return what every head keeps, oldest first; feed it to `take`."""
    ranked = by_part(score, kind, caps.shape[0])
    return jax.vmap(partial(select, slots=slots), in_axes=(0, None))(ranked, caps)


def by_part(
    score: Float[Array, "Gm N"], kind: Int[Array, "N Gm"], parts: int
) -> Float[Array, "Gm C N"]:
    """Return one row of scores for each part of the budget, -inf for who may not compete in it."""
    valid, audio = kind.T != tk.EMPTY, kind.T == tk.AUDIO
    groups = [valid] if parts == 1 else [valid & ~audio, audio]
    return jnp.stack([scores.only(score, group) for group in groups], axis=1)


def take(slots: T, index: Int[Array, "Gm K"], keep: Bool[Array, "Gm K"]) -> T:
    """Gather rows of every leaf [N, Gm or G, ...] by head, and zero those that are not kept."""
    if index.shape[0] == 1:
        return tk.take(slots, index[0], keep[0])
    return jax.vmap(tk.take, in_axes=(1, 0, 0), out_axes=1)(slots, index, keep)

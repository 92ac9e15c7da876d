"""Ada-KV (arXiv 2407.11550): the slots of a layer go to the heads whose scores are worth them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kernels.select import top_mask
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Requires, Spec, State, View
from jaxmem.memory.compression import head_ragged as ragged
from jaxmem.memory.compression import value_norm as values
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.typing import Array, Bool, Float, Int, Num, PyTree


class Slots(NamedTuple):
    """At rest [M, 1, ...], one KV head's token each; spread out [W, G, ...] (see `ragged`)."""

    tokens: KV
    norm: Float[Array, "M 1"] | None = None  # |W_o v|_1, for the choice in two stages


class Notes(NamedTuple):
    """What is not a slot."""

    capacity: Int[Array, ""]  # M
    next_pos: Num[Array, "A"]
    quotas: Int[Array, "C"]  # of an even share: (all), or (all but audio, audio)
    counts: Int[Array, "G"]  # tokens that every head holds


def adakv(
    budget: int,
    score: evict.Score,
    *,
    reads: Requires | None = None,
    alpha: float = 0.2,
    mix: bool = False,
    most: float | None = None,
    first: float | None = None,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: places.Rule = "keep",
) -> Memory:
    """Return Ada-KV over the score of another method: the heads of a layer share a flat pool.

    After each chunk the best G * budget tokens of all heads together are kept, in so many slots.
    While a chunk is read every head is spread out to the most it may hold.

    Args:
      budget: slots of a KV head, on average over the heads of a layer.
      score: as in `evict`, of every KV head; empty entries of its pool come first and last.
      reads: what that score needs.
      alpha: part of an even share that no head goes below.
      mix: how. False: its best tokens are certain of slots (kvpress). True: it gets alpha * even +
        (1 - alpha) * won slots, rounded down (the authors' code rounds).
      most: a head holds at most so many even shares; None: what the others leave, as published.
      first: CriticalAdaKV: the score fills this part of a head's slots (0.5 as published), the
        score weighed by values the rest; None: the score alone.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous": the newest token of every head stands right
        before the next chunk.

    Raises:
      ValueError: if the budget has no slot, or an option is out of range.
    """
    parts = evict.caps("adakv", budget, per_kind, audio_share)
    if not (0 <= alpha <= 1 and 0 <= (first or 0) <= 1 and (most is None or most >= 1)):
        raise ValueError(
            f"adakv needs alpha and first in 0 to 1 and most >= 1, got {alpha}, {first}, {most}."
        )
    if positions not in ("keep", "contiguous"):
        raise ValueError(f'positions must be "keep" or "contiguous", got {positions!r}.')
    requires = (reads or Requires())._replace(output=first is not None)
    if requires.window is not None:
        raise ValueError("heads hold different numbers, so rows cannot look at a sliding window.")
    safe = tuple(int(alpha * part) for part in parts)

    def limits(groups: int) -> tuple[int, ...]:
        """Return the slots of each part that one head may hold: what the others must leave."""
        left = [groups * part - (groups - 1) * s for part, s in zip(parts, safe, strict=True)]
        shares = groups if most is None else most
        return tuple(min(n, int(shares * part)) for n, part in zip(left, parts, strict=True))

    def init(spec: Spec) -> State:
        total, notes = spec.kv_heads * budget, evict.notes(spec, parts)
        norm = None if first is None else jnp.zeros((total, 1), jnp.float32)
        slots = Slots(replace(spec, kv_heads=1).empty(total), norm)
        counts = jnp.zeros((spec.kv_heads,), jnp.int32)
        return State(
            slots, Notes(jnp.asarray(total, jnp.int32), notes.next_pos, notes.quotas, counts)
        )

    def spread(state: State) -> tuple[Slots, Num[Array, "A"]]:
        """Return what the heads hold, side by side, and where the next chunk begins."""
        counts, end = state.aux.counts, state.aux.next_pos
        slots = ragged.unpack(state.slots, counts, sum(limits(counts.shape[0])))
        if positions == "keep":
            return slots, end
        end = end + jnp.max(counts).astype(end.dtype)
        index = jnp.arange(slots.tokens.modality.shape[0], dtype=jnp.int32)[:, None] - counts[None]
        pos = end[None, None] + index[..., None].astype(end.dtype)
        return slots._replace(tokens=slots.tokens._replace(pos=pos)), end

    def view(state: State, bank: PyTree, rows: Embeds | None) -> View:
        del bank, rows
        slots, end = spread(state)
        return View(slots.tokens, end)

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        notes: Notes = state.aux
        fresh = Slots(seen.tokens, None if first is None else values.output_norm(seen))
        slots = ragged.behind(spread(state)[0], fresh, notes.counts)
        kind, pool = slots.tokens.modality, ragged.pool_of(slots.tokens, seen, notes.counts)
        s = jnp.broadcast_to(score(pool), kind.T.shape)
        ranked = evict.by_part(s, kind, len(parts))
        ranked = scores.only(ranked, ragged.best_of_each(ranked, limits(len(s))))
        certain = ranked if mix else scores.protect(ranked, ragged.best_of_each(ranked, safe))
        mask = ragged.best(certain, notes.quotas)
        if mix:
            mask = _mixed(ranked, mask, notes.quotas, alpha)
        if first is not None and slots.norm is not None:
            counts = jnp.sum(mask, axis=2, dtype=jnp.int32)
            stage = jnp.maximum((first * counts).astype(jnp.int32), jnp.asarray([safe], jnp.int32))
            ranked = evict.by_part(values.two_stage(s, slots.norm.T, kind, stage), kind, len(parts))
            mask = jax.vmap(top_mask)(ranked, counts)
        mask, size = jnp.any(mask, axis=1), evict.slots_of(state)
        slots, counts = ragged.pack(slots, mask, notes.capacity, size)
        end = (
            places.keep(seen).astype(notes.next_pos.dtype)
            if positions == "keep"
            else notes.next_pos
        )
        return State(slots, notes._replace(next_pos=end, counts=counts)), None

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        del query
        return view(state, bank, None)

    def held(state: State) -> KV:
        counts = state.aux.counts
        return ragged.unpack(state.slots, counts, sum(limits(counts.shape[0]))).tokens

    return Memory(init, view, write, recall, requires, name="adakv", held=held)


def _mixed(ranked: Array, won: Array, caps: Array, alpha: float) -> Bool[Array, "G C N"]:
    """Return every head's best floor(alpha * even + (1 - alpha) * won)."""
    own = jnp.sum(won, axis=2, dtype=jnp.float32)
    counts = jnp.floor(alpha * caps[None].astype(jnp.float32) + (1.0 - alpha) * own)
    return jax.vmap(top_mask)(ranked, counts.astype(jnp.int32))

"""Where the next chunk begins, and which positions the kept keys are read at.

Keys are stored before rotation, so a position rule is a function of numbers; no key is touched.
A memory holds the answer of its rule in its notes (`end [A]`) and returns it as `View.base`.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Spec, State, View
from jaxmem.typing import Array, Bool, Int, Num, PyTree, Scalar

Rule = Literal["keep", "contiguous"]
"""What positions kept tokens are read at."""


def start(spec: Spec) -> Num[Array, "A"]:
    """Return where the first chunk begins: behind the P tokens of the prefix, on every axis."""
    return jnp.full((spec.axes,), spec.prefix, spec.pos_dtype)


def keep(seen: Chunk) -> Num[Array, "A"]:
    """Keep original positions: the next chunk begins where this one ended, whatever was dropped.

    The rule of OmniMem and of every baseline here. A chunk of padding spans nothing, so it does
    not move the end.
    """
    return seen.next_pos


def ruled(memory: Memory, rule: Rule) -> Memory:
    """Return the memory under a rule of positions.

    "keep" is the memory as it is. "contiguous" reads the i-th valid slot at position P + i on every
    axis, and the next chunk begins behind the last one: distances then count what is held, not the
    time that has passed (StreamingLLM, section 3.2). Notes that held the end of the stream hold P.

    Raises:
      ValueError: for another rule.
    """
    if rule == "keep":
        return memory
    if rule != "contiguous":
        raise ValueError(f'positions must be "keep" or "contiguous", got {rule!r}.')

    def view(state: State, bank: PyTree, rows: Embeds) -> View:
        return View(*numbered(memory.view(state, bank, rows).tokens, state.aux.next_pos))

    def write(state: State, seen: Chunk) -> tuple[State, PyTree]:
        after, spill = memory.write(state, seen)
        return State(after.slots, after.aux._replace(next_pos=state.aux.next_pos)), spill

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        return View(*numbered(memory.recall(state, bank, query).tokens, state.aux.next_pos))

    return memory._replace(view=view, write=write, recall=recall)


def numbered(tokens: KV, first: Num[Array, "A"]) -> tuple[KV, Num[Array, "A"]]:
    """Return tokens at positions `first` + index on every axis, and the position behind them.

    Where heads hold different numbers they end together, and the fullest begins at `first`.
    """
    counts = jnp.sum(tk.valid(tokens), axis=0, dtype=jnp.int32)  # [Gm]
    late = jnp.max(counts) - counts
    index = jnp.arange(tokens.modality.shape[0], dtype=jnp.int32)[:, None] + late[None]
    index = index[..., None].astype(tokens.pos.dtype)
    pos = jnp.broadcast_to(first.astype(index.dtype)[None, None] + index, tokens.pos.shape)
    return tokens._replace(pos=pos), first + jnp.max(counts).astype(first.dtype)


def largest(pos: Num[Array, "N A"], valid: Bool[Array, "N"], start: Num[Array, "A"]) -> Scalar:
    """Return the largest coordinate over valid entries and axes; without any, the prefix's."""
    return jnp.max(jnp.where(valid[:, None], pos, (start - 1)[None].astype(pos.dtype)))


def behind(
    pos: Num[Array, "N A"], valid: Bool[Array, "N"], start: Num[Array, "A"]
) -> Num[Array, "A"]:
    """Return the first whole position behind everything that is held, the same on every axis.

    HERMES' rule for the next chunk: it closes the gap if the newest tokens were dropped.
    """
    top = largest(pos, valid, start)
    whole = jnp.floor(top) if jnp.issubdtype(top.dtype, jnp.floating) else top
    return jnp.broadcast_to(whole + 1, (pos.shape[1],))


def compact(
    pos: Num[Array, "N A"], valid: Bool[Array, "N"], start: Num[Array, "A"]
) -> Num[Array, "N A"]:
    """Return positions without gaps: `start` plus the dense rank on each axis by itself.

    Equal coordinates share a rank. On one axis where no two tokens share a position that is the
    token's rank. Entries that are not valid get arbitrary numbers.
    """
    ranks = [_dense_rank(pos[:, a], valid) for a in range(pos.shape[1])]
    return start[None].astype(pos.dtype) + jnp.stack(ranks, axis=-1).astype(pos.dtype)


def _dense_rank(values: Num[Array, "N"], valid: Bool[Array, "N"]) -> Int[Array, "N"]:
    """Return how many distinct smaller values the valid entries hold, for each of them."""
    # Valid entries first, then by value: invalid ones cannot come between two equal values.
    order = jnp.lexsort((values, ~valid))
    ranked = values[order]
    fresh = jnp.concatenate([jnp.zeros((1,), bool), ranked[1:] != ranked[:-1]])
    rank = jnp.cumsum(fresh, dtype=jnp.int32)
    return jnp.zeros(values.shape, jnp.int32).at[order].set(rank)

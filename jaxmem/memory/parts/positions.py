"""Where the next chunk begins, and which positions the kept keys are read at.

Keys are stored before rotation, so a position rule is a function of numbers; no key is touched.
A memory holds the answer of its rule in its state (`aux.next_pos`) and returns it as `View.base`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory.base import Memory, Spec, State
from jaxmem.memory.exchange import Chunk, Embeds, View
from jaxmem.typing import Array, Bool, Int, Num, PyTree, Scalar


def start(spec: Spec) -> Num[Array, "A"]:
    """Return where the first chunk begins: after the P tokens of the prefix, on every axis."""
    return jnp.full((spec.axes,), spec.prefix, spec.pos_dtype)


@dataclass(frozen=True)
class Reindexed(Memory):
    """A memory that keeps positions as they came, or numbers what it holds without gaps.

    Attributes:
      reindex: the i-th valid slot is read at position P + i on every axis, and the next chunk
        begins after the last one: distances then count what is held, not the time that has passed
        (StreamingLLM, section 3.2). `aux.next_pos` then stays at P. False: positions are kept, and
        the next chunk begins where the last one ended, whatever was dropped.
    """

    _: KW_ONLY
    reindex: bool = False

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        kv, next_pos = self.kv(state), state.aux.next_pos
        return View(*numbered(kv, next_pos)) if self.reindex else View(kv, next_pos)

    def moved(self, aux: Any, chunk: Chunk) -> Any:
        """Return `aux` with the position where the next chunk begins."""
        if self.reindex:
            return aux
        return aux._replace(next_pos=chunk.next_pos.astype(aux.next_pos.dtype))


def numbered(kv: KV, first: Num[Array, "A"]) -> tuple[KV, Num[Array, "A"]]:
    """Return `kv` at positions `first` + index on every axis, and the position after them.

    Where heads hold different numbers they end together, and the fullest begins at `first`.
    """
    counts = jnp.sum(kvs.valid(kv), axis=0, dtype=jnp.int32)  # [Gm]
    late = jnp.max(counts) - counts
    index = jnp.arange(kv.modality.shape[0], dtype=jnp.int32)[:, None] + late[None]
    index = index[..., None].astype(kv.pos.dtype)
    pos = jnp.broadcast_to(first.astype(index.dtype)[None, None] + index, kv.pos.shape)
    return kv._replace(pos=pos), first + jnp.max(counts).astype(first.dtype)


def largest(pos: Num[Array, "N A"], valid: Bool[Array, "N"], start: Num[Array, "A"]) -> Scalar:
    """Return the largest coordinate over valid entries and axes; without any, the prefix's."""
    return jnp.max(jnp.where(valid[:, None], pos, (start - 1)[None].astype(pos.dtype)))


def following(
    pos: Num[Array, "N A"], valid: Bool[Array, "N"], start: Num[Array, "A"]
) -> Num[Array, "A"]:
    """Return the first whole position after everything that is held, the same on every axis.

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

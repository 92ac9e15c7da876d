"""CriticalKV (arXiv 2502.03805): attention, weighed by what a value adds to the layer's output."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Embeds, Memory, Question, Requires, Spec, State, View
from jaxmem.memory.compression import value_norm as values
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored as evict
from jaxmem.typing import Array, Float, PyTree


class Slots(NamedTuple):
    """Tokens, and the norm of each value behind the output projection."""

    tokens: KV
    norm: Float[Array, "S G"]


def criticalkv(
    budget: int,
    score: evict.Score,
    *,
    reads: Requires | None = None,
    first: float = 0.5,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: places.Rule = "keep",
) -> Memory:
    """Return CriticalKV over the score of another method.

    The best by s fill `first` of the budget; the best by s' = (s + 1e-4) mean_h |W_o^h v|_1 of the
    tokens that are left fill the rest. The norm is taken once, when a token arrives. Tokens that
    the score forces in (+inf: a window, sinks) are kept by both stages.

        criticalkv(96, partial(snapkv.score, window=32, kernel=5),
                   reads=Reads(mass="softmax", last=32))

    Args:
      budget: S, slots of every layer.
      score: s, as in `evict`; of every KV head, or one for all.
      reads: what that score needs; the output projection is added to it.
      first: part of the budget that s fills alone, 0.5 as published.
      per_kind: audio competes in its own part of the budget, in both stages; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if the budget has no slot, or `first` is no part of it.
    """
    parts = evict.caps("criticalkv", budget, per_kind, audio_share)
    if not 0.0 <= first <= 1.0:
        raise ValueError(f"first is a part of the budget, 0 to 1, got {first}.")
    stage = [int(first * part) for part in parts]

    def init(spec: Spec) -> State:
        norm = jnp.zeros((budget, spec.kv_heads), jnp.float32)
        return State(Slots(spec.empty(budget, spec.kv_heads), norm), evict.notes(spec, parts))

    def view(state: State, bank: PyTree, rows: Embeds | None) -> View:
        del bank, rows
        return View(state.slots.tokens, state.aux.next_pos)

    def write(state: State, seen: Chunk) -> tuple[State, None]:
        held = state.slots
        pool = evict.pool_of(held.tokens, None, seen)
        norm = tk.append(held.norm, values.output_norm(seen), tk.count(held.tokens))
        ranked = jnp.broadcast_to(score(pool), norm.T.shape)
        certain = jnp.asarray([stage] * norm.shape[1], jnp.int32)
        ranked = values.two_stage(ranked, norm.T, pool.tokens.modality, certain)
        index, keep = evict.choose(
            ranked, pool.tokens.modality, state.aux.quotas, evict.slots_of(state)
        )
        end = places.keep(seen).astype(state.aux.next_pos.dtype)
        slots = evict.take(Slots(pool.tokens, norm), index, keep)
        return State(slots, state.aux._replace(next_pos=end)), None

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        del query
        return view(state, bank, None)

    reads = (reads or Requires())._replace(output=True)
    return places.ruled(Memory(init, view, write, recall, reads, name="criticalkv"), positions)

"""`LastCopy`: the last copy of everything distinct. A memory of this package; no paper."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.similarity import largest_newer_cosine
from jaxmem.kv import KV, TEXT
from jaxmem.memory.base import Attention, Chunk, Requires, Spec, State
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import one_of
from jaxmem.memory.parts.scored import Candidates, Scored, choose, length, received, take
from jaxmem.typing import Array, Float

Text = Literal["copies", "keys", "attention"]


class Slots(NamedTuple):
    """Tokens, and what is carried of each."""

    kv: KV
    received: Float[Array, "S Gm"] | None  # attention so far, where text is judged by it
    likeness: Float[Array, "S G"]  # the largest cosine with anything that came later


@dataclass(frozen=True)
class LastCopy(Scored):
    """Keeps the last copy of everything distinct, and the newest.

    A picture or sound token may go when a later one resembles it; the last of its kind stays:
    score_i = 1 - max cos(k_i, k_j) over later tokens j of the same modality, keys before rotation,
    every KV head by itself. Text says nothing twice and has a score of its own. Where text and
    others share a part of the budget, they compete by their ranks among their own.

    Attributes:
      text: how text is scored: "copies" like the others; "keys" by KeyDiff's score; "attention" by
        the ranks of KeyDiff's score and of all attention received so far, added up, which the
        decoder must then report.
      carry: the largest cosine so far is part of the state (4 bytes a head and slot). A chunk then
        costs slots times its tokens, not slots squared, and a token whose like has been seen stays
        so when the like is dropped. False: later tokens count that are held.
    """

    _: KW_ONLY
    floor: float = 0.125
    text: Text = "keys"
    carry: bool = False

    def __post_init__(self):
        super().__post_init__()
        one_of(self.name, get_args(Text), text=self.text)

    @property
    def accumulates(self) -> bool:  # type: ignore[override]
        return self.text == "attention"

    @property
    def requires(self) -> Requires:
        return Requires(attention=Attention("softmax") if self.accumulates else None)

    def init(self, spec: Spec, layer: int = 0) -> State:
        state = super().init(spec, layer)
        if not self.carry:
            return state
        unlike = jnp.full((self.budget, spec.kv_heads), -1.0, jnp.float32)
        return state._replace(slots=Slots(state.slots.kv, state.slots.received, unlike))

    def score(self, candidates: Candidates) -> Float[Array, "G N"]:
        kv = candidates.kv
        return self._worth(
            candidates, largest_newer_cosine(kv.k, kv.modality, kv.k, kv.modality, 0)
        )

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, Any]:
        if not self.carry:
            return super().write(spec, state, chunk)
        slots, fresh = state.slots, chunk.kv
        found, n = self.candidates(spec, state, chunk), kvs.count(slots.kv)
        kv = found.kv
        like = largest_newer_cosine(kv.k, kv.modality, fresh.k, fresh.modality, n)
        unlike = jnp.full((fresh.k.shape[0], like.shape[0]), -1.0, jnp.float32)
        like = jnp.maximum(like, kvs.append(slots.likeness, unlike, n).T)
        score = self.ranked_by(self._worth(found, like), found)
        keep = choose(score, kv.modality, state.aux.quotas, length(state))
        total = received(self, found).T if self.accumulates else None
        stored = Slots(kvs.append(slots.kv, fresh, n), total, like.T)
        return State(take(stored, *keep), self.moved(state.aux, chunk)), None

    def _worth(self, candidates: Candidates, like: Float[Array, "G N"]) -> Float[Array, "G N"]:
        """Return 1 - `like`, or ranks where text has a score of its own."""
        novel = 1.0 - like
        if self.text == "copies":
            return novel
        valid = jnp.broadcast_to(candidates.valid, novel.shape)
        text = valid & jnp.broadcast_to(candidates.kv.modality.T == TEXT, novel.shape)
        own = scores.standing(scores.unlike_mean(candidates.kv.k, text), text)
        if self.accumulates:
            attended = jnp.broadcast_to(received(self, candidates), novel.shape)
            own = own + scores.standing(attended, text)
            own = scores.standing(own, text)
        return jnp.where(text, own, scores.standing(novel, valid & ~text))

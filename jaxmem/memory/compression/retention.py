"""Retention (DMA, arXiv 2508.02124): a score read off a token's values alone.

The score never changes and does not depend on the query, so what leaves the best never returns: the
slots are all that the published attention ever sees, whatever the length of the stream.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kv import KV
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Chunk, Embeds, Requires, View
from jaxmem.memory.parts.scored import Candidates, Scored, choose, length, take
from jaxmem.typing import Array, Float, PyTree


class Slots(NamedTuple):
    """Tokens and their scores: of every head, whichever chose them."""

    kv: KV
    score: Float[Array, "S G"]


@dataclass(frozen=True)
class Retention(Scored):
    """Keeps the tokens whose values have the largest score, by weights that were learned for it.

    Attributes:
      logits: rows see no token that the budget has dropped before them, and the score is added to
        the logits of those that they see: exact for decoders trained so (DMA). False: the score
        only chooses what is kept, for decoders that were trained without.

    Raises:
      ValueError: with `logits`, for options that such decoders do not have.
    """

    _: KW_ONLY
    logits: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.logits and (self.newest or self.floor or not self.per_head):
            raise ValueError(
                f"{self.name} with logits=True is the attention of a decoder that was trained with "
                f"it, got newest={self.newest}, floor={self.floor}, per_head={self.per_head}: use "
                "logits=False."
            )

    @property
    def requires(self) -> Requires:
        return Requires(retention="logits" if self.logits else "score")

    def init(self, spec: Spec, layer: int = 0) -> State:
        groups = spec.kv_heads if self.per_head else 1
        score = jnp.zeros((self.budget, spec.kv_heads), jnp.float32)
        return State(Slots(spec.empty(self.budget, groups), score), self.aux(spec))

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        view = super().view(spec, state, embeds, bank)
        if not self.logits:
            return view
        return view._replace(bias=state.slots.score, quotas=state.aux.quotas)

    def score(self, candidates: Candidates) -> Float[Array, "G N"]:
        assert candidates.received is not None
        return candidates.received

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, None]:
        if chunk.retention is None:
            raise ValueError(
                f"{self.name} chooses by Chunk.retention, which is None: the decoder must report "
                "what `requires.retention` asks for."
            )
        found, held = self.candidates(spec, state, chunk), state.slots
        n = kvs.count(held.kv)
        score = kvs.append(held.score, chunk.retention, n)
        ranked = self.ranked(found._replace(received=score.T))
        keep = choose(ranked, found.kv.modality, state.aux.quotas, length(state))
        stored = Slots(kvs.append(held.kv, chunk.kv, n), score)
        return State(take(stored, *keep), self.moved(state.aux, chunk)), None

"""`LastCopy`: the last copy of everything distinct. A memory of this package; no paper."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.similarity import nearest_newer
from jaxmem.kv import KV, TEXT
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Attention, Chunk, Embeds, Requires, View
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import between, odd, one_of
from jaxmem.memory.parts.scored import Candidates, Scored, choose, length, received, take
from jaxmem.typing import Array, Bool, Float, Int, PyTree, UInt

Text = Literal["copies", "keys", "attention"]
ALIKE = 0.9
"""Cosine above which a token that is dropped is counted as a copy of its nearest later one."""
MOST = 255
"""Copies that are counted: a byte."""


class Slots(NamedTuple):
    """Tokens, and what is carried of each."""

    kv: KV
    received: Float[Array, "S Gm"] | None  # attention so far, where text is judged by it
    likeness: Float[Array, "S G"] | None  # the largest cosine with anything later, if carried
    copies: UInt[Array, "S Gm"] | None  # tokens that it stands for, itself among them, if counted


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
      kernel: text's scores are means over so many neighbours (odd), so that a sentence stays with
        the word in it that is unlike all else; 1: each token by itself. Not of "copies".
      count: so often the logarithm of the number of copies that a token stands for is added to its
        logits: 1 gives it the attention of as many equal ones, 0 of one. What is dropped counts for
        the nearest later token (1 byte a head and slot); text is not counted.
      carry: the largest cosine so far is part of the state (4 bytes a head and slot). A chunk then
        costs slots times its tokens, not slots squared, and a token whose like has been seen stays
        so when the like is dropped. False: later tokens count that are held.
    """

    _: KW_ONLY
    floor: float = 0.125
    text: Text = "keys"
    kernel: int = 1
    count: float = 0.0
    carry: bool = False

    def __post_init__(self):
        super().__post_init__()
        one_of(self.name, get_args(Text), text=self.text)
        between(self.name, 0, 1, count=self.count)
        odd(self.name, kernel=self.kernel)
        if self.kernel > 1 and self.text == "copies":
            raise ValueError(
                f"{self.name} averages over neighbours what text alone is scored by, and "
                f"text='copies' scores it like the others, got kernel={self.kernel}; leave one out."
            )
        if self.count and self.carry:
            raise ValueError(
                f"{self.name} counts copies by comparing all it holds, and carry=True compares the "
                f"chunk alone, got count={self.count}; leave one of them out."
            )

    @property
    def accumulates(self) -> bool:  # type: ignore[override]
        return self.text == "attention"

    @property
    def requires(self) -> Requires:
        return Requires(attention=Attention("softmax") if self.accumulates else None)

    def init(self, spec: Spec, layer: int = 0) -> State:
        state = super().init(spec, layer)
        kv, received, _ = state.slots
        unlike = jnp.full((self.budget, spec.kv_heads), -1.0, jnp.float32)
        none = jnp.zeros(kv.modality.shape, jnp.uint8)
        own = Slots(kv, received, unlike if self.carry else None, none if self.count else None)
        return state._replace(slots=own)

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        view = super().view(spec, state, embeds, bank)
        if not self.count:
            return view
        copies = jnp.maximum(state.slots.copies, 1).astype(jnp.float32)
        return view._replace(bias=self.count * jnp.log(copies))

    def score(self, candidates: Candidates) -> Float[Array, "G N"]:
        kv = candidates.kv
        return self._worth(candidates, nearest_newer(kv.k, kv.modality, kv.k, kv.modality, 0)[0])

    def write(self, spec: Spec, state: State, chunk: Chunk) -> tuple[State, Any]:
        slots, fresh = state.slots, chunk.kv
        found, n = self.candidates(spec, state, chunk), kvs.count(slots.kv)
        kv = found.kv
        newer, first = (fresh, n) if self.carry else (kv, 0)
        like, nearest = nearest_newer(kv.k, kv.modality, newer.k, newer.modality, first)
        likeness = copies = None
        seen = like
        if self.carry:
            unlike = jnp.full((fresh.k.shape[0], like.shape[0]), -1.0, jnp.float32)
            seen = jnp.maximum(like, kvs.append(slots.likeness, unlike, n).T)
            likeness = seen.T
        score = self.ranked_by(self._worth(found, seen), found)
        keep = choose(score, kv.modality, state.aux.quotas, length(state))
        if self.count:
            one = (fresh.modality != kvs.EMPTY).astype(jnp.uint8)
            copies = kvs.append(slots.copies, one, n).T
            to = jnp.where((like > ALIKE) & (kv.modality.T != TEXT), nearest, kv.k.shape[0])
            if not self.per_head:  # one choice for all heads: the nearest in any of them
                to = jnp.take_along_axis(to, jnp.argmax(like, axis=0)[None], axis=0)
            copies = jax.vmap(counted)(copies, *keep, to).T
        total = received(self, found).T if self.accumulates else None
        stored = Slots(kvs.append(slots.kv, fresh, n), total, likeness, copies)
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
        if self.kernel > 1:
            own = scores.smooth(jnp.where(text, own, 0.0), self.kernel)
        if self.accumulates or self.kernel > 1:
            own = scores.standing(own, text)
        return jnp.where(text, own, scores.standing(novel, valid & ~text))


def counted(
    copies: UInt[Array, "N"], index: Int[Array, "K"], keep: Bool[Array, "K"], to: Int[Array, "N"]
) -> UInt[Array, "N"]:
    """Return the copies of what stays, with those of all that goes and leads to it.

    Args:
      copies: of the entries of a pool.
      index: of the entries that stay.
      keep: which of these are any.
      to: a later entry that each one is a copy of; N: it is of none.
    """
    n = copies.shape[0]
    entry = jnp.arange(n + 1, dtype=jnp.int32)
    stays = jnp.zeros((n + 1,), bool).at[n].set(True).at[index].max(keep)
    to = jnp.where(stays, entry, jnp.pad(to, (0, 1)))
    for _ in range(n.bit_length()):  # a copy of a copy: twice as many steps each time
        to = to[to]
    total = jnp.zeros((n + 1,), jnp.int32).at[to].add(jnp.pad(copies, (0, 1)).astype(jnp.int32))
    return jnp.minimum(total[:n], MOST).astype(jnp.uint8)

"""LiveVLM v2 (arXiv 2505.15269): position buckets on the way in, pages on the way out."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.select import select, top_mask
from jaxmem.kv import KV, VISION
from jaxmem.memory.bank import retrieval
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Attention, Question, Requires, View
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.options import at_least, odd
from jaxmem.memory.parts.positions import numbered
from jaxmem.memory.parts.scored import Aux, Candidates, Scored, lend, members, received, split
from jaxmem.typing import Array, Bool, Float, Int, PyTree, UInt


@dataclass(frozen=True)
class LiveVLM(Scored):
    """LiveVLM v2: a short-term memory held whole, and M long-term slots.

    Write (VSB): what leaves the short-term memory competes with the long-term memory by the mean
    attention of the chunk's last r vision rows (rows of any modality, in a chunk without vision).
    The top R are placed; then, from the best down, tokens whose bucket has room. Token p of the L
    that compete (1, 2, ...) lies in bucket ceil(p / (L / N)) of N = M / Bc. Read (PaR): pages of C
    long-term slots are scored by the question's attention to their mean keys before rotation,
    softmax over pages, mean over rows and heads; the best are read where they stood, with the
    short-term memory. While the stream is watched everything held is attended to.

    The paper's r, R, short-term size and pooling kernel are not known, nor its treatment of heads.

    Attributes:
      budget: S, slots of every layer: short-term memory and M (12k in the paper).
      short: the short-term memory's part of the budget; it holds at least the `newest` tokens.
      window: r.
      top: R as a part of M.
      bucket: Bc, slots of a bucket; 1 as published.
      kernel: width of an average of attention over neighbours, odd; 1 for none.
      page: C, 16 as published.
      ratio: part of the pages that a question reads, rounded up; 0.4 as published.
      per_head: every KV head keeps its own tokens, by the mean over its query heads; False: all
        heads keep the same.
      audio_share: audio's part of M, with buckets of its own; None as published: all tokens compete
        for all of M. A part that nothing competes for lends its slots to the other.

    Raises:
      ValueError: if an option is out of range.
    """

    sized_by_options: ClassVar[bool] = True

    _: KW_ONLY
    short: float = 0.25
    window: int = 32
    top: float = 0.5
    bucket: int = 1
    kernel: int = 1
    page: int = 16
    ratio: float = 0.4
    per_head: bool = False

    def __post_init__(self):
        super().__post_init__()
        at_least(self.name, 1, window=self.window, bucket=self.bucket, page=self.page)
        odd(self.name, kernel=self.kernel)
        if not (0 <= self.short < 1 and 0 <= self.top <= 1 and 0 < self.ratio <= 1):
            raise ValueError(
                "short, top and ratio are parts of 1, got "
                f"{self.short}, {self.top} and {self.ratio}."
            )

    @property
    def requires(self) -> Requires:
        return Requires(
            attention=Attention("softmax", last=self.window, modality=VISION), question="layer"
        )

    @property
    def short_slots(self) -> int:
        """Return the slots of the short-term memory."""
        return max(int(self.budget * self.short), self.newest)

    @property
    def long_slots(self) -> int:
        """Return M, the slots of the long-term memory."""
        return self.budget - self.short_slots

    def aux(self, spec: Spec) -> Aux:
        # Buckets divide the long-term memory; what they choose competes for all slots.
        return super().aux(spec)._replace(quotas=jnp.asarray([self.budget], jnp.int32))

    def score(self, candidates: Candidates) -> Float[Array, "Gm N"]:
        """Return 0 for the short-term memory and VSB's choice of the rest, and -inf for others."""
        valid = candidates.valid
        given = jnp.where(valid, received(self, candidates), 0.0)
        given = scores.smooth(given, self.kernel)
        kept = candidates.newest(self.short_slots) & valid
        parts = split(self.long_slots, self.audio_share)
        groups = members(candidates.kv.modality, len(parts)) & (valid & ~kept)[None]
        quotas = lend(jnp.asarray(parts, jnp.int32), groups[:, 0])
        for group, own, quota in zip(groups, parts, quotas, strict=True):
            kept |= place(given, group, self._first(own, quota), quota, self.bucket)
        return scores.only(jnp.zeros(kept.shape), kept)

    def _first(self, own: int, quota: Int[Array, ""]) -> Int[Array, ""]:
        """Return R of a part that has its own slots, or all of them."""
        best = lambda slots: math.floor(self.top * slots)
        return jnp.where(quota == self.long_slots, best(self.long_slots), best(own))

    def recall(
        self, spec: Spec, state: State, question: Question | None, bank: PyTree = None
    ) -> View:
        if question is None:
            raise ValueError(
                f"{self.name} recalls by a question's queries: ask through jaxmem.ask or a "
                "Session, or pass them."
            )
        kv, next_pos = self._pages(state.slots.kv, question), state.aux.next_pos
        return View(*numbered(kv, next_pos)) if self.reindex else View(kv, next_pos)

    def _pages(self, kv: KV, question: Question) -> KV:
        """Return the best pages and the short-term memory, oldest first (PaR)."""
        n, slot = kvs.count(kv), jnp.arange(kv.modality.shape[0], dtype=jnp.int32)
        old = jnp.maximum(n - self.short_slots, 0)
        most = max(1, -(-self.long_slots // self.page))  # pages, the last one maybe not full
        # The short-term memory counts as one page more, which is always read.
        of, there = (
            jnp.where(slot < old, slot // self.page, most),
            jnp.arange(most) * self.page < old,
        )
        count = jnp.ceil(self.ratio * jnp.sum(there) - 1e-4).astype(jnp.int32)
        score = scores.only(page_scores(kv.k, of, there, question), there)
        best = top_mask(score[None], count[None])[0]
        read = jnp.append(best, True)[of] & (slot < n)
        size = min(self.budget, self.page * math.ceil(self.ratio * most - 1e-4) + self.short_slots)
        which = scores.only(jnp.zeros(slot.shape), read)[None]
        return kvs.take(kv, *select(which, jnp.full((1,), size, jnp.int32), slots=size))


def place(
    given: Float[Array, "Gm N"],
    group: Bool[Array, "Gm N"],
    first: Int[Array, ""],
    cap: Int[Array, ""],
    bucket: int,
) -> Bool[Array, "Gm N"]:
    """Return VSB's choice of `cap` members of a group.

    The top R come first, then who finds room in its bucket (the top R take theirs), then, where
    slots are left, everyone else, each in the order of attention. Equal ones go to the newer.
    `first` is R, `cap` the slots and `bucket` Bc, the slots of a bucket.
    """
    index = jnp.arange(given.shape[1], dtype=jnp.int32)
    number = jnp.maximum(cap // bucket, 1).astype(jnp.uint32)

    def one(given: Array, group: Array) -> Array:
        p, length = jnp.cumsum(group, dtype=jnp.uint32), jnp.sum(group, dtype=jnp.uint32)
        of = jnp.where(group, _bucket(p, number, jnp.maximum(length, 1)), 0)
        order = jnp.lexsort((-index, -given, of))
        begins = jnp.concatenate([jnp.ones((1,), bool), of[order][1:] != of[order][:-1]])
        inside = index - jax.lax.cummax(jnp.where(begins, index, 0))
        fits = jnp.zeros(group.shape, bool).at[order].set(inside < bucket)
        best = top_mask(scores.only(given, group)[None], first[None])[0]
        ranked = jnp.lexsort((index, given, jnp.where(best, 2, fits)))
        rank = jnp.zeros(given.shape).at[ranked].set(index.astype(jnp.float32))
        return top_mask(scores.only(rank, group)[None], cap[None])[0]

    return jax.vmap(one)(given, group)


def _bucket(p: UInt[Array, "N"], number: Array, length: Array) -> UInt[Array, "N"]:
    """Return ceil(p * number / length), exact up to a million: products are split at 8 bits."""
    high = (p >> 8) * number
    low = ((high % length) << 8) + (p & 255) * number
    return ((high // length) << 8) + (low + length - 1) // length


def page_scores(
    k: Float[Array, "S G D"], of: Int[Array, "S"], there: Bool[Array, "n"], question: Question
) -> Float[Array, "n"]:
    """Return softmax_p(q . mean key of p / sqrt(D)), mean over heads, sum over rows (PaR)."""
    pages = there.shape[0]
    total = jax.ops.segment_sum(k.astype(jnp.float32), of, pages + 1)[:pages]
    mean = total / jnp.maximum(jnp.bincount(of, length=pages + 1)[:pages], 1)[:, None, None]
    return retrieval.attention(mean, there, question)

"""LiveVLM v2 (arXiv 2505.15269): position buckets on the way in, pages on the way out."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.kernels.select import select, top_mask
from jaxmem.kv import AUDIO, VISION
from jaxmem.memory.bank import retrieval as blocks
from jaxmem.memory.base import Memory, Question, Requires, State, View
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.typing import Array, Bool, Float, Int, PyTree, UInt


def livevlm(
    budget: int,
    *,
    short: float = 0.25,
    window: int = 32,
    top: float = 0.5,
    bucket: int = 1,
    kernel: int = 1,
    page: int = 16,
    ratio: float = 0.4,
    per_head: bool = False,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: places.Rule = "keep",
) -> Memory:
    """Return LiveVLM v2: a short-term memory held whole, and M long-term slots behind it.

    Write (VSB): what leaves the short-term memory competes with the long-term memory by the mean
    attention of the chunk's last r vision rows (all kinds, in a chunk without vision). The top R
    are placed; then, from the best down, tokens whose bucket has room. Token p of the L that
    compete (1, 2, ...) lies in bucket ceil(p / (L / N)) of N = M / Bc. Read (PaR): pages of C
    long-term slots are scored by the question's attention to their mean keys before rotation,
    softmax over pages, mean over rows and heads; the best are read where they stood, with the
    short-term memory. While the stream is watched everything held is attended to.

    The paper's r, R, short-term size and pooling kernel are not known, nor its treatment of heads.

    Args:
      budget: S, slots of every layer: short-term memory and M (12k in the paper).
      short: the short-term memory's part of the budget.
      window: r.
      top: R as a part of M.
      bucket: Bc, slots of a bucket; 1 as published.
      kernel: width of an average of attention over neighbours, odd; 1 for none.
      page: C.
      ratio: part of the pages that a question reads, rounded up; 0.4 as published.
      per_head: every KV head keeps its own tokens, by the mean over its query heads.
      per_kind: audio competes in its own part of M, in buckets of its own; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if an option is out of range.
    """
    sizes = (window, bucket, page, kernel)
    if min(sizes) < 1 or kernel % 2 == 0:
        raise ValueError(f"window, bucket, page and an odd kernel are at least 1, got {sizes}.")
    if not (0 <= short < 1 and 0 <= top <= 1 and 0 < ratio <= 1):
        raise ValueError(f"short, top and ratio are parts of 1, got {short}, {top} and {ratio}.")
    newest = int(budget * short)
    parts = evict.caps("livevlm", budget - newest, per_kind, audio_share)
    most = -(-(budget - newest) // page)  # pages, the last one maybe not full

    def score(pool: evict.Pool) -> Float[Array, "Gm N"]:
        if pool.received is None:
            raise ValueError(
                "LiveVLM needs Chunk.mass; the decoder step must honour requires.mass."
            )
        given = scores.smooth(jnp.where(pool.valid, pool.received, 0.0), kernel)
        kept, audio = pool.newest(newest) & pool.valid, pool.tokens.modality.T == AUDIO
        old = pool.valid & ~kept
        groups = (old & ~audio, old & audio) if per_kind else (old,)
        for group, cap in zip(groups, parts, strict=True):
            kept |= place(given, group, cap, top, bucket)
        return scores.only(jnp.zeros(kept.shape), kept)

    def recall(state: State, bank: PyTree, query: Question | None) -> View:
        del bank
        if query is None:
            raise ValueError("livevlm recalls by a question's queries; requires.ask asks for them.")
        tokens, n = state.slots.tokens, tk.count(state.slots.tokens)
        old, slot = (
            jnp.maximum(n - newest, 0),
            jnp.arange(tokens.modality.shape[0], dtype=jnp.int32),
        )
        # The short-term memory counts as one page more, which is always read.
        of, there = jnp.where(slot < old, slot // page, most), jnp.arange(most) * page < old
        count = jnp.ceil(ratio * jnp.sum(there) - 1e-4).astype(jnp.int32)
        best = top_mask(
            scores.only(page_scores(tokens.k, of, there, query), there)[None], count[None]
        )
        read = jnp.append(best[0], True)[of] & (slot < n)
        size = min(budget, page * math.ceil(ratio * most - 1e-4) + newest)
        which = scores.only(jnp.zeros(slot.shape), read)[None]
        index, keep = select(which, jnp.full((1,), size, jnp.int32), slots=size)
        return View(tk.take(tokens, index, keep), state.aux.next_pos)

    reads = Requires(mass="softmax", last=window, modality=VISION, ask="layer")
    more = {"per_head": per_head, "per_kind": False}
    memory = evict.evict(budget, score, name="livevlm", reads=reads, positions="keep", **more)
    return places.ruled(memory._replace(recall=recall), positions)


def place(
    given: Float[Array, "Gm N"], group: Bool[Array, "Gm N"], cap: int, top: float, bucket: int
) -> Bool[Array, "Gm N"]:
    """Return VSB's choice of `cap` members of the group.

    The top R come first, then who finds room in its bucket (the top R take theirs), then, where
    slots are left, everyone else, each in the order of attention. Equal ones go to the newer.
    """
    index, number = jnp.arange(given.shape[1], dtype=jnp.int32), max(cap // bucket, 1)
    caps = jnp.asarray([math.floor(top * cap), cap], jnp.int32)

    def one(given: Array, group: Array) -> Array:
        p, length = jnp.cumsum(group, dtype=jnp.uint32), jnp.sum(group, dtype=jnp.uint32)
        of = jnp.where(group, _bucket(p, number, jnp.maximum(length, 1)), 0)
        order = jnp.lexsort((-index, -given, of))
        begins = jnp.concatenate([jnp.ones((1,), bool), of[order][1:] != of[order][:-1]])
        inside = index - jax.lax.cummax(jnp.where(begins, index, 0))
        fits = jnp.zeros(group.shape, bool).at[order].set(inside < bucket)
        best = top_mask(scores.only(given, group)[None], caps[:1])[0]
        ranked = jnp.lexsort((index, given, jnp.where(best, 2, fits)))
        rank = jnp.zeros(given.shape).at[ranked].set(index.astype(jnp.float32))
        return top_mask(scores.only(rank, group)[None], caps[1:])[0]

    return jax.vmap(one)(given, group)


def _bucket(p: UInt[Array, "N"], number: int, length: Array) -> UInt[Array, "N"]:
    """Return ceil(p * number / length), exact up to a million: products are split at 8 bits."""
    high = (p >> 8) * number
    low = ((high % length) << 8) + (p & 255) * number
    return ((high // length) << 8) + (low + length - 1) // length


def page_scores(
    k: Float[Array, "S G D"], of: Int[Array, "S"], there: Bool[Array, "n"], query: Question
) -> Float[Array, "n"]:
    """Return softmax_p(q . mean key of p / sqrt(D)), mean over heads, sum over rows (PaR)."""
    pages = there.shape[0]
    total = jax.ops.segment_sum(k.astype(jnp.float32), of, pages + 1)[:pages]
    mean = total / jnp.maximum(jnp.bincount(of, length=pages + 1)[:pages], 1)[:, None, None]
    return blocks.attention(mean, there, query)

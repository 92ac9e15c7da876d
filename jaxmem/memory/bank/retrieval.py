"""Recall of whole blocks of a bank: what a block is scored by, and which ones are read.

A block is `block` neighbouring entries of a bank, in the order of their arrival.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.select import select
from jaxmem.kv import KV
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.bank.bank import read as read_bank
from jaxmem.memory.exchange import Question
from jaxmem.memory.parts.options import at_least
from jaxmem.typing import Array, Bool, Float, Int, PyTree


def scores(blocks: Float[Array, "n G D"], question: Question) -> Float[Array, "n"]:
    """Return mean query . mean key, summed over query heads; KV heads serve their group."""
    rows = question.valid[:, None, None]
    q = jnp.sum(jnp.where(rows, question.q.astype(jnp.float32), 0.0), axis=0)
    q = q / jnp.maximum(jnp.sum(question.valid), 1)
    groups = blocks.shape[1]
    return jnp.einsum("ngd,gd->n", blocks, jnp.sum(q.reshape(groups, -1, q.shape[-1]), axis=1))


def pooled(
    score: Float[Array, "n"], many: Int[Array, ""], size: int
) -> tuple[Float[Array, "c"], Int[Array, "c"]]:
    """Return the mean score of `size` neighbours each and how many of them exist."""
    pad = -score.shape[0] % size
    there = (jnp.arange(score.shape[0] + pad, dtype=jnp.int32) < many).reshape(-1, size)
    total = jnp.sum(jnp.where(there, jnp.pad(score, (0, pad)).reshape(-1, size), 0.0), axis=1)
    count = jnp.sum(there, axis=1, dtype=jnp.int32)
    return total / jnp.maximum(count, 1), count


def best(
    score: Float[Array, "n"], many: Int[Array, ""], topk: int, size: int
) -> tuple[Int[Array, "topk"], Bool[Array, "topk"]]:
    """Return the blocks recalled, oldest first: the best topk // size groups of `size` neighbours.

    All of them if there are no more than `topk`. A last group that is not full brings fewer.
    """
    mean, count = pooled(score, many, size)
    chosen = topk // size
    # Scores that are not finite (a question of NaN) still order: by time, after all others.
    mean = jnp.where(jnp.isfinite(mean), mean, jnp.finfo(jnp.float32).min)
    ranked = jnp.where(count > 0, mean, -jnp.inf)[None]
    group, keep = select(ranked, jnp.full((1,), chosen, jnp.int32), slots=chosen, most=chosen)
    index = (group[:, None] * size + jnp.arange(size, dtype=jnp.int32)[None]).reshape(-1)
    keep = jnp.repeat(keep, size) & (index < many)
    every = jnp.arange(topk, dtype=jnp.int32)
    rest = (0, topk - index.shape[0])
    few = many <= topk
    return (
        jnp.where(few, every, jnp.pad(index, rest)),
        jnp.where(few, every < many, jnp.pad(keep, rest)),
    )


def read(sink: KV, bank: Bank, index: Array, keep: Array, block: int) -> KV:
    """Return [sinks | blocks `index`] of one layer; only those rows of the bank are touched."""
    return kvs.append(sink, stored(bank, index, keep, block), kvs.count(sink))


def stored(bank: Bank, index: Array, keep: Array, block: int) -> KV:
    """Return blocks `index` of one layer on the device, one after the other; zeros if not kept."""
    rows: KV = read_bank(bank, index * block, block)
    return kvs.take(
        rows, jnp.arange(rows.modality.shape[0], dtype=jnp.int32), jnp.repeat(keep, block)
    )


@dataclass(frozen=True)
class Recall:
    """A rule of recall: what a block is known by on the device, and how a question scores it."""

    def summary(self, kv: KV) -> PyTree:
        """Return what one full block [block] is known by: its mean key before rotation.

        In as many bits as a key.
        """
        return jnp.mean(kv.k.astype(jnp.float32), axis=0).astype(kv.k.dtype)

    def score(
        self, summaries: PyTree, there: Bool[Array, "n"], question: Question
    ) -> Float[Array, "n"]:
        """Return the score of each block.

        `there` says which of the summaries [n, ...] are.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class ByMean(Recall):
    """ReKV's rule: mean query . mean key of the block (see `scores`)."""

    def score(
        self, summaries: PyTree, there: Bool[Array, "n"], question: Question
    ) -> Float[Array, "n"]:
        return scores(summaries.astype(jnp.float32), question)


@dataclass(frozen=True)
class ByAttention(Recall):
    """LiveVLM's rule: the attention of every row and head to the mean keys of the blocks.

    A softmax over blocks, mean over heads, sum over the question's rows: rows and heads have one
    vote each, however long their queries are.
    """

    def score(
        self, summaries: PyTree, there: Bool[Array, "n"], question: Question
    ) -> Float[Array, "n"]:
        return attention(summaries, there, question)


@dataclass(frozen=True)
class ByParts(Recall):
    """Scores a block by the best of the mean keys of its `parts` parts.

    A few tokens that matter are not averaged away by their neighbours; summaries are `parts` times
    as large. A block that `parts` does not divide has a longer last part; a part has a token.

    Raises:
      ValueError: if `parts` is not positive.
    """

    parts: int = 4

    def __post_init__(self):
        at_least("ByParts", 1, parts=self.parts)

    def summary(self, kv: KV) -> Float[Array, "p G D"]:
        k = kv.k.astype(jnp.float32)
        several = min(self.parts, k.shape[0])
        of = jnp.arange(k.shape[0], dtype=jnp.int32) // (k.shape[0] // several)
        of = jnp.minimum(of, several - 1)
        many = jnp.bincount(of, length=several)
        means = jax.ops.segment_sum(k, of, several) / many[:, None, None]
        return means.astype(kv.k.dtype)

    def score(
        self, summaries: PyTree, there: Bool[Array, "n"], question: Question
    ) -> Float[Array, "n"]:
        flat = summaries.reshape(-1, *summaries.shape[2:]).astype(jnp.float32)
        return jnp.max(scores(flat, question).reshape(summaries.shape[0], -1), axis=1)


RecallName = Literal["mean", "attention", "parts"]
RULES: Mapping[str, Recall] = MappingProxyType(
    {"mean": ByMean(), "attention": ByAttention(), "parts": ByParts()}
)


def attention(
    means: Float[Array, "n G D"], there: Bool[Array, "n"], question: Question
) -> Float[Array, "n"]:
    """Return softmax_p(q . mean key of p / sqrt(D)), mean over heads, sum over rows."""
    rows, _, width = question.q.shape
    q = question.q.astype(jnp.float32).reshape(rows, means.shape[1], -1, width)
    logits = jnp.einsum("qghd,ngd->qghn", q, means.astype(jnp.float32), precision="highest")
    logits = logits / width**0.5
    given = jax.nn.softmax(jnp.where(there[None, None, None], logits, -1e30), axis=-1).mean((1, 2))
    return jnp.sum(jnp.where(question.valid[:, None], given, 0.0), axis=0)

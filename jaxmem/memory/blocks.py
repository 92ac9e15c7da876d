"""Recall of whole blocks of a bank: what a block is scored by, and which ones are read.

A block is `block` neighbouring entries of a bank, in the order of their arrival.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxmem import tokens as tk
from jaxmem.kernels.select import select
from jaxmem.memory.bank import Bank
from jaxmem.memory.base import Query
from jaxmem.tokens import Tokens
from jaxmem.typing import Array, Bool, Float, Int


def scores(blocks: Float[Array, "n G D"], query: Query) -> Float[Array, "n"]:
    """Return mean query . mean key, summed over query heads; KV heads serve their group."""
    rows = query.valid[:, None, None]
    q = jnp.sum(jnp.where(rows, query.q.astype(jnp.float32), 0.0), axis=0)
    q = q / jnp.maximum(jnp.sum(query.valid), 1)
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
    ranked = jnp.where(count > 0, mean, -jnp.inf)[None]
    group, keep = select(ranked, jnp.full((1,), chosen, jnp.int32), slots=chosen)
    index = (group[:, None] * size + jnp.arange(size, dtype=jnp.int32)[None]).reshape(-1)
    keep = jnp.repeat(keep, size) & (index < many)
    every = jnp.arange(topk, dtype=jnp.int32)
    rest = (0, topk - index.shape[0])
    few = many <= topk
    return (
        jnp.where(few, every, jnp.pad(index, rest)),
        jnp.where(few, every < many, jnp.pad(keep, rest)),
    )


def read(sink: Tokens, bank: Bank, index: Array, keep: Array, block: int) -> Tokens:
    """Return [sinks | blocks `index`] of one layer; only those rows of the bank are touched."""
    at = (index[:, None] * block + jnp.arange(block, dtype=jnp.int32)[None]).reshape(-1)
    stored = tk.take(bank.slots, at, jnp.repeat(keep, block))
    return tk.append(sink, stored, tk.count(sink))

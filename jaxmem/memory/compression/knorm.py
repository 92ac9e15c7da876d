"""Knorm (arXiv 2406.11430) and KeyDiff (arXiv 2504.15364): keys alone decide, no attention is read.

Knorm: keys of small norm draw attention. KeyDiff: keys unlike the others do.
"""

from __future__ import annotations

import jax.numpy as jnp

from jaxmem.memory.base import Memory
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.memory.parts.positions import Rule
from jaxmem.rope import Rope, rope
from jaxmem.typing import Array, Float


def knorm(
    budget: int,
    *,
    per_head: bool = True,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: Rule = "keep",
) -> Memory:
    """Return the memory of the keys with the smallest L2 norm.

    A rotary embedding does not change norms, so stored keys are compared as they are.

    Args:
      budget: S, slots of every layer.
      per_head: every KV head keeps its own tokens; False: norms are averaged over the heads.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if the budget has no slot.
    """
    return evict.evict(
        budget,
        lambda pool: _heads(norm_score(pool), per_head),
        name="knorm",
        per_head=per_head,
        per_kind=per_kind,
        audio_share=audio_share,
        positions=positions,
    )


def keydiff(
    budget: int,
    *,
    rotary: Rope | None = None,
    per_head: bool = True,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: Rule = "keep",
) -> Memory:
    """Return the memory of the keys least like the mean key.

    Args:
      budget: S, slots of every layer.
      rotary: the model's embedding, to compare keys at their positions as published; None compares
        them before rotation, where time alone makes no difference between keys.
      per_head: every KV head keeps its own tokens; False: cosines are averaged over the heads.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if the budget has no slot.
    """
    return evict.evict(
        budget,
        lambda pool: _heads(difference_score(pool, rotary), per_head),
        name="keydiff",
        per_head=per_head,
        per_kind=per_kind,
        audio_share=audio_share,
        positions=positions,
    )


def norm_score(pool: evict.Pool) -> Float[Array, "G N"]:
    """Return -|k|."""
    return -jnp.linalg.norm(pool.tokens.k.astype(jnp.float32), axis=-1).T


def difference_score(pool: evict.Pool, rotary: Rope | None) -> Float[Array, "G N"]:
    """Return -cos(k, mean of the unit keys of the pool) (KeyDiff, equation 4)."""
    keys = pool.tokens.k.astype(jnp.float32)
    if rotary is not None:
        # Turning all keys by one angle changes no cosine, so that small angles can be taken.
        keys = rope(
            keys, pool.tokens.pos - pool.next_pos.astype(pool.tokens.pos.dtype)[None, None], rotary
        )
    unit = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    count = jnp.maximum(pool.n, 1).astype(jnp.float32)
    held = pool.valid.T[..., None]
    mean = jnp.sum(jnp.where(held, unit, 0.0), axis=0, keepdims=True) / count
    return -scores.cosine_to(keys, jnp.broadcast_to(mean, keys.shape), 1e-12)


def _heads(score: Float[Array, "G N"], per_head: bool) -> Float[Array, "Gm N"]:
    return score if per_head else jnp.mean(score, axis=0, keepdims=True)

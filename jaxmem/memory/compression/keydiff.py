"""KeyDiff (arXiv 2504.15364): keys unlike the others draw attention, so they are kept."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import jax.numpy as jnp

from jaxmem.memory.parts import scores
from jaxmem.memory.parts.scored import Candidates, Scored
from jaxmem.rope import Rope, rope
from jaxmem.typing import Array, Float


@dataclass(frozen=True)
class KeyDiff(Scored):
    """KeyDiff: the keys least like the mean key are kept.

    Attributes:
      rotated: compare keys at their positions as published; False compares them before rotation,
        where time alone makes no difference between keys.
    """

    _: KW_ONLY
    rotated: bool = True

    def score(self, candidates: Candidates) -> Float[Array, "G N"]:
        rotary = candidates.spec.needed("rope", self) if self.rotated else None
        return difference_score(candidates, rotary)


def difference_score(candidates: Candidates, rotary: Rope | None) -> Float[Array, "G N"]:
    """Return -cos(k, mean of the unit keys of the pool) (KeyDiff, equation 4)."""
    kv = candidates.kv
    keys = kv.k.astype(jnp.float32)
    if rotary is not None:
        # Turning all keys by one angle changes no cosine, so that small angles can be taken.
        keys = rope(keys, kv.pos - candidates.next_pos.astype(kv.pos.dtype)[None, None], rotary)
    unit = keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)
    count = jnp.maximum(candidates.n, 1).astype(jnp.float32)
    held = candidates.valid.T[..., None]
    mean = jnp.sum(jnp.where(held, unit, 0.0), axis=0, keepdims=True) / count
    return -scores.cosine_to(keys, jnp.broadcast_to(mean, keys.shape), 1e-12)

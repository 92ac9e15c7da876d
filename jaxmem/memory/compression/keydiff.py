"""KeyDiff (arXiv 2504.15364): keys unlike the others draw attention, so they are kept."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import jax.numpy as jnp

from jaxmem.memory.parts import scores
from jaxmem.memory.parts.scored import Candidates, Scored
from jaxmem.rope import rope
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
        kv, keys = candidates.kv, candidates.kv.k.astype(jnp.float32)
        if self.rotated:
            # Turning all keys by one angle changes no cosine, so that small angles can be taken.
            near = kv.pos - candidates.next_pos.astype(kv.pos.dtype)[None, None]
            keys = rope(keys, near, candidates.spec.needed("rope", self))
        return scores.unlike_mean(keys, candidates.valid)

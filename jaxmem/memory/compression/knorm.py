"""Knorm (arXiv 2406.11430): keys of small norm draw attention, so they are kept."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp

from jaxmem.memory.parts.scored import Candidates, Scored
from jaxmem.typing import Array, Float


@dataclass(frozen=True)
class Knorm(Scored):
    """Knorm: keys of the smallest L2 norm are kept.

    A rotary embedding does not change norms, so stored keys are compared as they are.
    """

    def score(self, candidates: Candidates) -> Float[Array, "G N"]:
        """Return -|k|."""
        return -jnp.linalg.norm(candidates.kv.k.astype(jnp.float32), axis=-1).T

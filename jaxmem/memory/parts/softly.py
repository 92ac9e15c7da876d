"""Soft selection, for training: which tokens are kept has a gradient by the scores that chose.

A token that is kept has a gate of 1, whose gradient is that of a sigmoid of its score
(`kernels.select.gate`). The gate stays with the token, in its slot, and its logarithm is added to
the token's logits wherever it is read: the sum is 0 and its gradient is what the token is worth to
its readers. What is stored is never scaled, and the forward pass is that of the hard choice.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.select import gate
from jaxmem.memory.base import Spec, State
from jaxmem.memory.exchange import Embeds, View
from jaxmem.memory.parts.positions import Reindexed
from jaxmem.typing import Array, Float, Int, PyTree

TEMPERATURE = 0.1
"""Width of the sigmoid where none is given, in units of the scores."""


@dataclass(frozen=True)
class Softly(Reindexed):
    """A memory whose choice can have a gradient by its scores.

    Its slots have a field `gate`, None where the choice is hard.

    Attributes:
      soft: for training, the temperature of the gate that scores get a gradient through, in units
        of the scores (reports of attention carry none); None: the choice has no gradient.
    """

    _: KW_ONLY
    soft: float | None = None

    @property
    def softens(self) -> bool:
        """Return whether its scores have a gradient, so that `soft` can be given."""
        return True

    def check_soft(self) -> None:
        """Refuse a temperature that is none, or that no score has a gradient for; ValueError."""
        if self.soft is None or (self.soft > 0 and self.softens):
            return
        raise ValueError(
            "soft is a temperature above 0, for memories that choose by one score of what they "
            f"hold (OmniMem, Knorm, KeyDiff, ExpectedAttention), got soft={self.soft} for "
            f"{self.name}."
        )

    def view(self, spec: Spec, state: State, embeds: Embeds | None, bank: PyTree = None) -> View:
        view = super().view(spec, state, embeds, bank)
        gates = getattr(state.slots, "gate", None)
        return view if gates is None else view._replace(bias=gates)

    def no_gates(self, spec: Spec, slots: int, groups: int = 1) -> Float[Array, "S Gm"] | None:
        """Return the gates of empty slots; None where the choice is hard."""
        if self.soft is None:
            return None
        return jnp.zeros((slots, groups), jnp.promote_types(spec.dtype, jnp.float32))


def passed(old: Float[Array, "S Gm"], new: Float[Array, "N Gm"], n: Array) -> Float[Array, "N Gm"]:
    """Return the gates of a pool after one more choice; every choice has a gate of its own.

    Args:
      old: of the slots, of which n hold a token.
      new: of this choice, over slots and chunk.
      n: valid slots.
    """
    fresh = jnp.zeros((new.shape[0] - old.shape[0], old.shape[1]), old.dtype)
    return kvs.append(old, fresh, n) + new.astype(old.dtype)


def log_gate(
    scores: Float[Array, "C N"], caps: Int[Array, "C"], *, temperature: float
) -> Float[Array, "N"]:
    """Return the logarithm of the gate of every entry: 0, with a gradient where it was chosen.

    Arguments are those of `select`. Groups that drop nothing have no gradient: nothing was chosen
    there.
    """
    gates = gate(scores, caps, temperature=temperature)
    contested = jnp.sum(scores > -jnp.inf, axis=1, keepdims=True) > caps[:, None]
    weight = jnp.sum(jnp.where(contested, gates, jax.lax.stop_gradient(gates)), axis=0)
    return jnp.log(jnp.where(weight > 0.5, weight, 1.0))

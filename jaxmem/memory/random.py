"""`random`: a uniform random sample of everything seen so far."""

from __future__ import annotations

import jax

from jaxmem.memory.base import Memory, Spec
from jaxmem.memory.parts import units as frames
from jaxmem.memory.parts.positions import Rule
from jaxmem.memory.parts.prioritized import keep
from jaxmem.typing import Array, PyTree, UInt


def random(
    budget: int,
    key: Array,
    *,
    unit: frames.UnitName = "token",
    tokens_per_frame: int | None = None,
    per_layer: bool = False,
    positions: Rule = "keep",
) -> Memory:
    """Return the memory that holds a uniform random sample of the stream (a reservoir).

    Each number draws 32 random bits from `key` folded with that number, and the smallest are held:
    every subset of the stream is equally likely at every length (up to ties of 32-bit draws). The
    draw depends on the arrival number alone, not on chunks or padding. The key is part of the
    state, so a state that is copied or restored goes on identically.

    Args:
      budget: S, slots of every layer.
      key: a JAX random key, `jax.random.key(0)`.
      unit: sample single tokens or whole frames.
      tokens_per_frame: vision tokens of a frame, see `jaxmem.memory.parts.units`.
      per_layer: draw independently in each layer instead of holding the same tokens in all.
      positions: "keep" the position of arrival, or renumber ("contiguous").

    Raises:
      ValueError: if the budget is not positive or the unit is unknown.
    """
    impl = jax.random.key_impl(key)

    def seed(spec: Spec) -> Array:
        own = jax.random.fold_in(key, spec.layer) if per_layer else key
        return jax.random.key_data(own)

    def priority(number: UInt[Array, "T"], data: PyTree) -> UInt[Array, "T"]:
        own = jax.random.wrap_key_data(data, impl=impl)
        draw = lambda i: jax.random.bits(jax.random.fold_in(own, i), dtype="uint32")
        return jax.vmap(draw)(number)

    chosen = frames.unit(unit, tokens_per_frame)
    return keep(budget, priority, unit=chosen, seed=seed, name="random", rule=positions)

"""Sampling of a token: softmax with a temperature, cut to its nucleus."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxmem.typing import Array, Bool, Float, Int

SMALLEST = float(jnp.finfo(jnp.float32).tiny)
"""Temperature below which float32 cannot divide by it."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; static, since the program differs with it.

    Attributes:
      temperature: logits are divided by it; 0 takes the likeliest token.
      top_p: probability that the kept tokens reach together; 1 keeps all of them.

    Raises:
      ValueError: if a number is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"the temperature must be at least 0, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be more than 0 and at most 1, got {self.top_p}.")


def nucleus(probabilities: Float[Array, "V"], top_p: float) -> Bool[Array, "V"]:
    """Return which tokens belong to the smallest set whose probability reaches `top_p`.

    Among equal probabilities the lower token id comes first. At least one token is kept.

    Source: Holtzman et al., The Curious Case of Neural Text Degeneration (1904.09751), section 3.1.
    """
    if top_p == 1:  # whatever the sum of all is rounded to
        return jnp.ones(probabilities.shape, bool)
    order = jnp.argsort(-probabilities, stable=True)
    reached = jnp.cumsum(probabilities[order])
    before = jnp.concatenate([jnp.zeros((1,), reached.dtype), reached[:-1]])
    return jnp.zeros(probabilities.shape, bool).at[order].set(before < top_p)


def sample(
    logits: Float[Array, "V"], key: Array, temperature: float, top_p: float = 1.0
) -> Int[Array, ""]:
    """Return a token drawn from the nucleus of softmax(logits / temperature).

    Args:
      logits: of the next token.
      key: JAX key; one token is drawn with it.
      temperature: static; below `SMALLEST` the likeliest token is returned.
      top_p: static; see `nucleus`.
    """
    if temperature < SMALLEST:
        return jnp.argmax(logits).astype(jnp.int32)
    exact = logits.astype(jnp.float32)
    # Relative to the largest logit nothing overflows, however small the temperature.
    scaled = (exact - jnp.max(exact)) / temperature
    kept = nucleus(jax.nn.softmax(scaled), top_p)
    return jax.random.categorical(key, jnp.where(kept, scaled, -jnp.inf)).astype(jnp.int32)

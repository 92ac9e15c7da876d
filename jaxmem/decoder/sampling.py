"""Sampling of a token: a penalty of repetition, a temperature, the k likeliest, the nucleus.

In this order, and with the meaning that each has in transformers' `generate`.
"""

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
      top_k: number of the likeliest tokens that are kept; 0 keeps all of them.
      repetition_penalty: of tokens that stand in the prompt's text or were written; 1 is none.

    Raises:
      ValueError: if a number is outside its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"the temperature must be at least 0, got {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be more than 0 and at most 1, got {self.top_p}.")
        if self.top_k < 0 or self.top_k != int(self.top_k):
            raise ValueError(f"top-k must be a whole number of at least 0, got {self.top_k}.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"the repetition penalty must be more than 0, got {self.repetition_penalty}."
            )

    @property
    def greedy(self) -> bool:
        """Return whether the likeliest token is taken: no key is needed."""
        return self.temperature < SMALLEST

    @property
    def penalises(self) -> bool:
        """Return whether tokens that were used before are treated differently."""
        return self.repetition_penalty != 1


def penalised(
    logits: Float[Array, "V"], repeated: Bool[Array, "V"], penalty: float
) -> Float[Array, "V"]:
    """Return logits, those of `repeated` tokens divided by the penalty (multiplied if negative).

    Source: Keskar et al., CTRL (1909.05858), section 4.1; for negative logits, transformers.
    """
    less = jnp.where(logits < 0, logits * penalty, logits / penalty)
    return jnp.where(repeated, less, logits)


def likeliest(logits: Float[Array, "V"], top_k: int) -> Bool[Array, "V"]:
    """Return which tokens have at least the k-th largest logit; all of them if `top_k` is 0.

    Ties with the k-th are kept, so these can be more than k.

    Source: Fan et al., Hierarchical Neural Story Generation (1805.04833), section 5.4.
    """
    if top_k == 0:
        return jnp.ones(logits.shape, bool)
    return logits >= jax.lax.top_k(logits, min(top_k, len(logits)))[0][-1]


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


def candidates(
    logits: Float[Array, "V"], temperature: float, top_p: float = 1.0, top_k: int = 0
) -> Float[Array, "V"]:
    """Return logits / temperature relative to the largest, -inf for tokens that are not drawn.

    Args:
      logits: of the next token.
      temperature: static, at least `SMALLEST`.
      top_p: static; see `nucleus`, of softmax(logits / temperature) of the k likeliest.
      top_k: static; see `likeliest`.
    """
    exact = logits.astype(jnp.float32)
    # Relative to the largest logit nothing overflows, however small the temperature.
    scaled = (exact - jnp.max(exact)) / temperature
    scaled = jnp.where(likeliest(scaled, top_k), scaled, -jnp.inf)
    return jnp.where(nucleus(jax.nn.softmax(scaled), top_p), scaled, -jnp.inf)


def sample(
    logits: Float[Array, "V"], key: Array, temperature: float, top_p: float = 1.0, top_k: int = 0
) -> Int[Array, ""]:
    """Return a token drawn from the softmax of `candidates`.

    Args:
      logits: of the next token.
      key: JAX key; one token is drawn with it.
      temperature: static; below `SMALLEST` the likeliest token is returned.
      top_p: static; see `nucleus`.
      top_k: static; see `likeliest`.
    """
    if temperature < SMALLEST:
        return jnp.argmax(logits).astype(jnp.int32)
    found = candidates(logits, temperature, top_p, top_k)
    return jax.random.categorical(key, found).astype(jnp.int32)

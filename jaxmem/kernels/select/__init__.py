"""Which entries of a pool are kept: the best of each group, in the order of the stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxmem.kernels import dispatch
from jaxmem.kernels.blocks import wide
from jaxmem.kernels.select import ref
from jaxmem.typing import Array, Bool, Float, Int

_MODULE = "jaxmem.kernels.select.pallas"
_SELECT = {"xla": ref.select, **dispatch.pallas(_MODULE, "select")}
_TOP_MASK = {"xla": ref.top_mask, **dispatch.pallas(_MODULE, "top_mask")}
KEPT = "kept"
"""Name of what `select` returns, for `jax.checkpoint`: a gradient needs no scores to have it."""


def select(
    scores: Float[Array, "C N"],
    caps: Int[Array, "C"],
    *,
    slots: int,
    most: int | None = None,
    implementation: str | None = None,
) -> tuple[Int[Array, "slots"], Bool[Array, "slots"]]:
    """Return the pool indices of the `caps[c]` best scores of every group c, oldest first.

    A score of -inf or NaN is never chosen. Equal scores (0.0 and -0.0 are equal) go to the newer
    entry, the one with the larger index. An entry chosen by several groups counts once. If the
    groups choose more than `slots` entries together, the oldest of them are left out. `caps` are
    data and may be traced; below 0 they count as 0. `slots` is the static size of the result,
    `most` a static bound of the caps, if one is known: larger caps count as this, and where it is
    small beside N, a faster way to the same result is taken.

    Returns:
      `index`, the chosen entries in ascending order, then anything in [0, N); and `keep`, which
      of them were chosen. Feed both to `jaxmem.kv`.

    Raises:
      ValueError: if shapes do not fit, or there is no such implementation.
    """
    _check(scores, caps)
    if slots < 0:
        raise ValueError(f"slots must not be negative, got {slots}.")
    caps = _bounded(caps, most)
    how = {"slots": slots, "most": most, "on_gpu": ("pallas",)}
    chosen = dispatch.call(_SELECT, implementation, scores, caps, **how)
    return checkpoint_name(chosen, KEPT)


def top_mask(
    scores: Float[Array, "C N"],
    caps: Int[Array, "C"],
    *,
    most: int | None = None,
    implementation: str | None = None,
) -> Bool[Array, "C N"]:
    """Return which entries are among the `caps[c]` best of their group, by the rules of `select`.

    Raises:
      ValueError: if shapes do not fit, or there is no such implementation.
    """
    _check(scores, caps)
    caps = _bounded(caps, most)
    how = {"most": most, "on_gpu": ("pallas",)}
    return dispatch.call(_TOP_MASK, implementation, scores, caps, **how)


def gate(
    scores: Float[Array, "C N"],
    caps: Int[Array, "C"],
    *,
    temperature: float = 1.0,
    implementation: str | None = None,
) -> Float[Array, "C N"]:
    """Return 1 for chosen entries and 0 for others, with a gradient: selection for training.

    `select` and `top_mask` carry no gradient. Here the choice is made in the forward pass and the
    backward pass takes it for sigmoid((score - t) / temperature), t being the lowest chosen score,
    held constant (straight-through estimator, Bengio et al. 2013, arXiv 1308.3432). Multiply what
    an entry contributes with its gate, or add the gate's logarithm to its logits. `temperature` is
    the width of the sigmoid, in units of the scores.

    Returns:
      float32 (float64 for such scores); the gradient of entries that can never be chosen (-inf,
      NaN), and of groups that choose nothing, is 0.

    Raises:
      ValueError: if shapes do not fit, the temperature is not positive, or there is no such
        implementation.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    chosen = top_mask(lax.stop_gradient(scores), caps, implementation=implementation)
    numbers = scores.astype(wide(scores))
    lowest = jnp.min(jnp.where(chosen, numbers, jnp.inf), axis=-1, keepdims=True)
    lowest = lax.stop_gradient(lowest)
    able = jnp.isfinite(numbers) & jnp.isfinite(lowest)
    # The inner choices keep infinities out of the gradient of the branch that is not taken.
    away = jnp.where(able, numbers, 0.0) - jnp.where(jnp.isfinite(lowest), lowest, 0.0)
    soft = jnp.where(able, jax.nn.sigmoid(away / temperature), 0.0)
    return chosen.astype(soft.dtype) + (soft - lax.stop_gradient(soft))


def _check(scores: Array, caps: Array) -> None:
    if scores.ndim != 2 or scores.shape[1] == 0 or caps.shape != scores.shape[:1]:
        raise ValueError(
            f"scores must be [C, N] with N > 0 and caps [C], got {scores.shape} and {caps.shape}; "
            "vmap over more axes."
        )


def _bounded(caps: Int[Array, "C"], most: int | None) -> Int[Array, "C"]:
    """Return the caps, or what of them the bound allows."""
    if most is None:
        return caps
    if most < 0:
        raise ValueError(f"most must not be negative, got {most}.")
    return jnp.minimum(caps, most)

"""What mixers share: checks, initial weights, a norm, and the causal convolution of rows."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.typing import Array, Bool, Float, Params


def check_sizes(mixer: str, **sizes: Any) -> None:
    """Raise ValueError where sizes of a mixer are no whole numbers."""
    for name, size in sizes.items():
        if not isinstance(size, Integral) or isinstance(size, bool):
            raise ValueError(
                f"{mixer} needs whole numbers for its sizes, got {name}={size!r}: set {name} to a "
                "whole number of at least 1."
            )


def check_numbers(mixer: str, **numbers: Any) -> None:
    """Raise ValueError where numbers of a mixer are not positive and finite."""
    for name, number in numbers.items():
        known = isinstance(number, Real) and not isinstance(number, bool)
        if not known or not 0 < float(number) < math.inf:
            raise ValueError(
                f"{mixer} needs a positive {name}, got {name}={number!r}: set {name} to a finite "
                "number above 0."
            )


def check_rows(x: Float[Array, "T E"]) -> None:
    """Raise ValueError where a chunk has no rows."""
    if not len(x):
        raise ValueError("a chunk has no rows: leave it out, or give rows of padding.")


def causal_conv(
    x: Float[Array, "T C"],
    tail: Float[Array, "K-1 C"],
    weight: Float[Array, "K C"],
    real: Bool[Array, "T"],
    bias: Float[Array, "C"] | None = None,
) -> tuple[Float[Array, "T C"], Float[Array, "K-1 C"]]:
    """Return a depthwise convolution over the last K rows, and the new tail.

    Any cut of a stream gives the same, also chunks shorter than K - 1 and chunks of padding alone.

    Args:
      x: the chunk's rows, those that are not real last.
      tail: the K - 1 real rows before it; zeros before a stream.
      weight: of each channel, that of the newest row last.
      real: which rows are tokens.
      bias: of each channel.

    Returns:
      The outputs, in x's dtype or that of the tail if it is wider; and the last K - 1 real rows of
      tail and chunk, in the tail's dtype.
    """
    rows, size = x.shape[0], weight.shape[0]
    both = jnp.concatenate([tail, x.astype(jnp.promote_types(x.dtype, tail.dtype))])
    weight = weight.astype(both.dtype)
    y = jnp.zeros((), both.dtype) if bias is None else bias.astype(both.dtype)[None]
    y = sum((both[i : i + rows] * weight[i : i + 1] for i in range(size)), start=y)
    count = jnp.sum(real, dtype=jnp.int32)
    return y, lax.dynamic_slice_in_dim(both, count, size - 1).astype(tail.dtype)


def dense(key: Array, fan_in: int, fan_out: int, bias: bool = False) -> Params:
    """Return the weights of a projection, with variance 1 / fan_in."""
    kernel = jax.random.truncated_normal(key, -2, 2, (fan_in, fan_out)) / 0.87962566 / fan_in**0.5
    return {"kernel": kernel} | ({"bias": jnp.zeros(fan_out, jnp.float32)} if bias else {})


def conv_weights(key: Array, kernel: int, channels: int) -> Params:
    """Return the initial weights of a causal convolution, uniform up to 1 / sqrt(kernel)."""
    end = kernel**-0.5
    return {"kernel": jax.random.uniform(key, (kernel, channels), minval=-end, maxval=end)}


def forgetting(rate: Array, step: Array, heads: int, low: float = 1e-3) -> Params:
    """Return the initial weights of what heads forget: rates of `low` to 16, and `step_bias`.

    Args:
      rate: key of the rates.
      step: key of the steps.
      heads: how many there are.
      low: the smallest rate.
    """
    rates = jax.random.uniform(rate, (heads,), minval=low, maxval=16.0)
    return {"dt_bias": step_bias(step, heads), "a_log": jnp.log(rates)}


def normed(x: Float[Array, "*T D"], eps: float) -> Float[Array, "*T D"]:
    """Return rows of mean square 1."""
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def step_bias(key: Array, heads: int, low: float = 1e-3, high: float = 1e-1) -> Float[Array, "H"]:
    """Return the initial bias of steps softplus(x w + bias): log-uniform between both, for x = 0.

    With rates of 1 to 16 a state then forgets within tens to hundreds of rows (arXiv 2312.00752).
    """
    spread = jax.random.uniform(key, (heads,), jnp.float32) * math.log(high / low)
    step = jnp.exp(spread + math.log(low))
    return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus

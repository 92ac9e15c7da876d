"""The causal convolution in front of a state, with the end of the stream carried along."""

import jax.numpy as jnp
from jax import lax

from jaxmem.typing import Array, Bool, Float


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
    y = jnp.zeros((), both.dtype) if bias is None else bias.astype(both.dtype)
    y = sum((both[i : i + rows] * weight[i] for i in range(size)), start=y)
    count = jnp.sum(real, dtype=jnp.int32)
    return y, lax.dynamic_slice_in_dim(both, count, size - 1).astype(tail.dtype)

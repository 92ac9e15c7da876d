"""Dense products of rows with weights, as every layer takes them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmem.typing import Array, Float, Params


def linear(x: Float[Array, "*T E"], weight: Params) -> Float[Array, "*T F"]:
    """Return x @ kernel (+ bias) (+ (x @ a) @ b, where the weight has a low-rank addition)."""
    y = product(x, weight["kernel"])
    if "a" in weight:
        y = y + product(product(x, weight["a"]).astype(x.dtype), weight["b"]).astype(y.dtype)
    if "bias" in weight:
        y = y + weight["bias"].reshape((1,) * (y.ndim - 1) + (-1,))
    return y.astype(jnp.result_type(x, weight["kernel"]))


def product(x: Float[Array, "*T E"], kernel: Float[Array, "E F"]) -> Float[Array, "*T F"]:
    """Return x @ kernel; of bfloat16 on a CPU in float32.

    XLA's CPU multiplies bfloat16 as it is where a float32 result is asked for; otherwise it
    converts the weights first. Other devices sum in float32 all the same.
    """
    wide = jnp.result_type(x, kernel) == jnp.bfloat16 and jax.default_backend() == "cpu"
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32 if wide else None)

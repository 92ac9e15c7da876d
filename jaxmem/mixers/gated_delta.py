"""Gated DeltaNet (arXiv 2412.06464): a state that corrects what it says of a key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.kernels.delta import delta
from jaxmem.kernels.dense import linear
from jaxmem.mixers.base import Mixer
from jaxmem.mixers.parts import (
    causal_conv,
    check_numbers,
    check_rows,
    check_sizes,
    conv_weights,
    dense,
    forgetting,
    normed,
)
from jaxmem.typing import Array, Bool, Float, Params

UNIT = 1e-6
"""Added to the squared length of queries and keys inside the root."""


class GatedDeltaState(NamedTuple):
    """What one layer knows of its stream."""

    tail: Float[Array, "K-1 C"]  # last inputs of the convolution
    memory: Float[Array, "H K V"]


@dataclass(frozen=True)
class GatedDelta(Mixer):
    """Gated DeltaNet: S <- a S, then S <- S + k (beta (v - S^T k))^T, read along q.

    q, k and v pass a short causal convolution without bias and silu; q and k get length 1. Every
    value head's output is normalised, and then gated by silu(z).

    Attributes:
      heads: H, value heads.
      key_heads: of q and k; must divide `heads`. None: as many.
      key_dim: K.
      value_dim: V. None: as K.
      kernel: inputs of the convolution.
      eps: of the norm.
      block: rows that are computed at once, see `kernels.delta`.
      implementation: of `kernels.delta`.

    Raises:
      ValueError: if a size is no positive whole number, `key_heads` does not divide `heads`, or
        `eps` is not positive.
    """

    heads: int
    key_heads: int | None = None
    key_dim: int = 128
    value_dim: int | None = None
    kernel: int = 4
    eps: float = 1e-6
    block: int = 64
    implementation: str | None = None

    def __post_init__(self):
        sizes = {"heads": self.heads, "key_heads": self.groups, "key_dim": self.key_dim}
        sizes |= {"value_dim": self.width, "block": self.block}
        check_sizes(self.name, **sizes, kernel=self.kernel)
        if min(sizes.values()) < 1 or self.kernel < 2 or self.heads % self.groups:
            raise ValueError(
                "GatedDelta needs positive sizes, a kernel of at least 2 and key_heads that divide "
                f"heads, got {sizes | {'kernel': self.kernel}}: raise what is too small, and set "
                "key_heads to a divisor of heads, or to None for as many."
            )
        check_numbers(self.name, eps=self.eps)

    @property
    def groups(self) -> int:
        """Key heads."""
        return self.heads if self.key_heads is None else self.key_heads

    @property
    def width(self) -> int:
        """V."""
        return self.key_dim if self.value_dim is None else self.value_dim

    @property
    def channels(self) -> int:
        """C, those of the convolution: q, k and v."""
        return 2 * self.groups * self.key_dim + self.heads * self.width

    def weights(self, width: int, key: Array) -> Params:
        """Return initial weights: rates 0 to -16, and steps of 0.001 to 0.1."""
        keys, inner = jax.random.split(key, 8), self.heads * self.width
        return forgetting(keys[6], keys[7], self.heads) | {
            "qkv": dense(keys[0], width, self.channels),
            "z": dense(keys[1], width, inner),
            "a": dense(keys[2], width, self.heads),
            "b": dense(keys[3], width, self.heads),
            "conv": conv_weights(keys[4], self.kernel, self.channels),
            "norm": {"scale": jnp.ones(self.width, jnp.float32)},
            "out": dense(keys[5], inner, width),
        }

    def init(self, width: int) -> GatedDeltaState:
        """See `Mixer.init`."""
        del width
        memory = jnp.zeros((self.heads, self.key_dim, self.width), jnp.float32)
        return GatedDeltaState(jnp.zeros((self.kernel - 1, self.channels), jnp.float32), memory)

    def chunk(
        self,
        weights: Params,
        state: GatedDeltaState,
        x: Float[Array, "T E"],
        real: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T E"], GatedDeltaState]:
        """See `Mixer.chunk`."""
        check_rows(x)
        wide = jnp.result_type(jnp.float32, x, state.memory)
        mixed = linear(x, weights["qkv"])
        mixed, tail = causal_conv(mixed, state.tail, weights["conv"]["kernel"], real)
        keys = self.groups * self.key_dim
        q, k, v = jnp.split(jax.nn.silu(mixed), np.cumsum([keys, keys]), axis=-1)
        q, k = (unit(y.reshape(-1, self.groups, self.key_dim).astype(wide)) for y in (q, k))
        v = v.reshape(-1, self.heads, self.width)
        step = linear(x, weights["a"]).astype(wide) + weights["dt_bias"].astype(wide)[None]
        g = -jnp.exp(weights["a_log"].astype(wide))[None] * jax.nn.softplus(step)
        beta = jax.nn.sigmoid(linear(x, weights["b"]).astype(wide))
        g, beta = (jnp.where(real[:, None], y, 0) for y in (g, beta))
        more = {"block": self.block, "implementation": self.implementation}
        y, memory = delta(q, k, v, g, beta, state.memory, **more)
        y = normed(y, self.eps) * weights["norm"]["scale"].astype(wide)[None, None]
        y = y.reshape(len(x), -1) * jax.nn.silu(linear(x, weights["z"]).astype(wide))
        return linear(y.astype(x.dtype), weights["out"]), GatedDeltaState(tail, memory)


def unit(x: Float[Array, "*T K"]) -> Float[Array, "*T K"]:
    """Return rows of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + UNIT)

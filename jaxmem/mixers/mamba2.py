"""Mamba-2 (arXiv 2405.21060): a state of H matrices that decay at rates of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.kernels.dense import linear
from jaxmem.kernels.ssd import ssd
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


class Mamba2State(NamedTuple):
    """What one layer knows of its stream."""

    tail: Float[Array, "K-1 C"]  # last inputs of the convolution
    ssm: Float[Array, "H P N"]


@dataclass(frozen=True)
class Mamba2(Mixer):
    """Mamba-2: h <- exp(dt a) h + dt x b^T, y = h c + d x, with dt, x, b and c of the token.

    The inner width is `heads` times `head_dim`. x, b and c pass a short causal convolution; y is
    gated by silu(z), and then normalised in each of the `groups` by itself.

    Attributes:
      heads: H.
      head_dim: P.
      size: N, numbers of the state for each channel.
      groups: of b and c; must divide `heads`.
      kernel: K, inputs of the convolution.
      limit: smallest and largest step dt.
      eps: of the norm.
      bias: on the projections.
      conv_bias: on the convolution.
      block: rows that are computed at once, see `kernels.ssd`.
      implementation: of `kernels.ssd`.

    Raises:
      ValueError: if a size is no positive whole number, `groups` does not divide `heads`, `limit`
        is no pair of steps from 0 on with the smaller one, which is finite, first, or `eps` is not
        positive.
    """

    heads: int
    head_dim: int = 64
    size: int = 128
    groups: int = 1
    kernel: int = 4
    limit: tuple[float, float] = (0.0, math.inf)
    eps: float = 1e-5
    bias: bool = False
    conv_bias: bool = True
    block: int = 64
    implementation: str | None = None

    def __post_init__(self):
        sizes = {n: getattr(self, n) for n in ("heads", "head_dim", "size", "groups", "block")}
        check_sizes(self.name, **sizes, kernel=self.kernel)
        if min(sizes.values()) < 1 or self.kernel < 2 or self.heads % self.groups:
            raise ValueError(
                "Mamba2 needs positive sizes, a kernel of at least 2 and groups that divide the "
                f"heads, got {sizes | {'kernel': self.kernel}}: raise what is too small, and set "
                "groups to 1 or to another divisor of heads."
            )
        if not self._is_limited():
            raise ValueError(
                "limit is a tuple of the smallest step, which is finite and not below 0, and the "
                f"largest, got {self.limit}: set the smaller one first, or limit=(0.0, math.inf) "
                "for no limits."
            )
        check_numbers(self.name, eps=self.eps)

    def _is_limited(self) -> bool:
        """Return whether `limit` is what it should be."""
        pair = self.limit
        if not isinstance(pair, tuple) or [isinstance(x, Real) for x in pair] != [True, True]:
            return False
        return 0 <= pair[0] <= pair[1] and pair[0] < math.inf

    @property
    def inner(self) -> int:
        """Width of x, y and z: H P."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """C, those of the convolution: x, b and c."""
        return self.inner + 2 * self.groups * self.size

    def weights(self, width: int, key: Array) -> Params:
        """Return initial weights: rates -1 to -16, and steps of 0.001 to 0.1."""
        into, out, conv, rate, step = jax.random.split(key, 5)
        found: Params = forgetting(rate, step, self.heads, low=1.0) | {
            "in": dense(into, width, self.inner + self.channels + self.heads, self.bias),
            "conv": conv_weights(conv, self.kernel, self.channels),
            "d": jnp.ones(self.heads, jnp.float32),
            "norm": {"scale": jnp.ones(self.inner, jnp.float32)},
            "out": dense(out, self.inner, width, self.bias),
        }
        if self.conv_bias:
            found["conv"]["bias"] = jnp.zeros(self.channels, jnp.float32)
        return found

    def init(self, width: int) -> Mamba2State:
        """See `Mixer.init`."""
        del width
        ssm = jnp.zeros((self.heads, self.head_dim, self.size), jnp.float32)
        return Mamba2State(jnp.zeros((self.kernel - 1, self.channels), jnp.float32), ssm)

    def chunk(
        self,
        weights: Params,
        state: Mamba2State,
        x: Float[Array, "T E"],
        real: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T E"], Mamba2State]:
        """See `Mixer.chunk`."""
        check_rows(x)
        wide = jnp.result_type(jnp.float32, x, state.ssm)
        z, conv, dt = jnp.split(
            linear(x, weights["in"]), np.cumsum([self.inner, self.channels]), axis=-1
        )
        bias = weights["conv"].get("bias")
        conv, tail = causal_conv(conv, state.tail, weights["conv"]["kernel"], real, bias)
        inner, b, c = jnp.split(
            jax.nn.silu(conv), np.cumsum([self.inner, self.groups * self.size]), axis=-1
        )
        inner = inner.reshape(-1, self.heads, self.head_dim)
        b, c = (v.reshape(-1, self.groups, self.size) for v in (b, c))
        dt = jax.nn.softplus(dt.astype(wide) + weights["dt_bias"].astype(wide)[None])
        dt = jnp.where(real[:, None], jnp.clip(dt, *self.limit), 0)
        rates = -jnp.exp(weights["a_log"].astype(wide))
        more = {"block": self.block, "implementation": self.implementation}
        y, ssm = ssd(inner, dt, rates, b, c, state.ssm, **more)
        y = y + weights["d"].astype(wide)[None, :, None] * inner
        y = self._gated(y.reshape(-1, self.inner), z.astype(wide), weights["norm"])
        return linear(y.astype(x.dtype), weights["out"]), Mamba2State(tail, ssm)

    def _gated(self, y: Array, z: Array, norm: Params) -> Float[Array, "T I"]:
        """Return the output gated, then normalised in every group."""
        y = (y * jax.nn.silu(z)).reshape(-1, self.groups, self.inner // self.groups)
        return normed(y, self.eps).reshape(-1, self.inner) * norm["scale"].astype(y.dtype)[None]

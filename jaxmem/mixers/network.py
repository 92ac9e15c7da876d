"""The small network that Titans trains as the stream passes, of one head."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.kernels.blocks import decays, times
from jaxmem.typing import Array, Float

NORM = 1e-5
"""Added to the variance in the network's norm."""


class Items(NamedTuple):
    """What C rows give a network; also of several heads and chunks, whose axes are in front."""

    q: Float[Array, "*B C D"]
    k: Float[Array, "*B C D"]
    v: Float[Array, "*B C D"]
    theta: Float[Array, "*B C"]
    hold: Float[Array, "*B C"]  # logits of eta; one where a chunk has one
    forget: Float[Array, "*B C"]  # of alpha, likewise

    def at(self, index: int | slice) -> Items:
        """Return some of the chunks."""
        return Items(*(leaf[index] for leaf in self))


@dataclass(frozen=True)
class Network:
    """f(x) = LN(MLP(x)) (gamma + 1) + x, its weights one row of n numbers.

    It learns that f(k) is v from C rows: `step` by one step for all of them, `steps` by one for
    each. See `jaxmem.mixers.titans.Titans`.

    Attributes:
      head_dim: D.
      depth: matrices of the MLP, (D, 2D, ..., D) with GELU between them.
      max_grad_norm: gradients are scaled down to this length; None: they are not.
    """

    head_dim: int
    depth: int = 1
    max_grad_norm: float | None = None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those of gamma and of the matrices."""
        widths = [self.head_dim, *[2 * self.head_dim] * (self.depth - 1), self.head_dim]
        return [(self.head_dim,), *pairwise(widths)]

    @property
    def size(self) -> int:
        """Numbers of its weights, n."""
        return sum(map(math.prod, self.shapes))

    def read(self, flat: Float[Array, "n"], x: Float[Array, "C D"]) -> Float[Array, "C D"]:
        """Return f(x) of one head's weights."""
        gain, *matrices = self._parts(flat)
        return self._of(x, gain[None], lambda i, y: times(y, matrices[i]))

    def step(
        self, before: Float[Array, "n"], momentum: Float[Array, "n"], item: Items
    ) -> tuple[Array, Array, Array]:
        """Return what rows read of the weights before a head's step, weights and momentum after."""
        q, k, v, theta, hold, forget = item

        def loss(flat: Array) -> Array:
            return jnp.sum(theta * jnp.mean(jnp.square(self.read(flat, k) - v), axis=-1))

        grad = jax.grad(loss)(before)
        grad = grad * self._shorter(jnp.sum(jnp.square(grad)))
        fast = jax.nn.sigmoid(hold) * momentum - grad
        return self.read(before, q), jax.nn.sigmoid(-forget) * before + fast, fast

    def steps(
        self, before: Float[Array, "n"], momentum: Float[Array, "n"], item: Items
    ) -> tuple[Array, Array, Array]:
        """Return what rows read after their own steps, a head's weights and momentum at the end.

        No weights of a row are made: with G_i = a_i d_i^T of a matrix, a its input and d the slope
        of its output,

            y W_t = A_t (y W_0) + M_t (y S_0) - sum_{i <= t} c_ti (y . a_i) d_i
        """
        q, k, v, theta, hold, forget = item
        (gain, *matrices), (fast_gain, *fasts) = self._parts(before), self._parts(momentum)

        def loss(gain: Array, nudges: list[Array]) -> tuple[Array, list[Array]]:
            seen: list[Array] = []

            def product(i: int, y: Array) -> Array:
                seen.append(y)
                return times(y, matrices[i]) + nudges[i]

            error = jnp.mean(jnp.square(self._of(k, gain, product) - v), axis=-1)
            return jnp.sum(theta * error), seen

        # The gradient of row i is a_i d_i^T of every matrix, and `gains` of gamma.
        none = [jnp.zeros((len(k), m.shape[1]), k.dtype) for m in matrices]
        gains = jnp.broadcast_to(gain[None], k.shape)
        (gains, slopes), inputs = jax.grad(loss, (0, 1), has_aux=True)(gains, none)
        squares = [_square(a) * _square(d) for a, d in zip(inputs, slopes, strict=True)]
        shorter = self._shorter(sum(squares, start=_square(gains)))
        gains, *slopes = (d * shorter for d in (gains, *slopes))
        # S_t = g_t S_0 - sum g_ti G_i and W_t = A_t W_0 + M_t S_0 - sum c_ti G_i, i <= t.
        kept = jnp.cumsum(jax.nn.log_sigmoid(-forget))
        held = jnp.cumsum(jax.nn.log_sigmoid(hold))
        spans, grown = decays(kept), decays(held)
        first, faded = jnp.exp(kept)[:, None], jnp.exp(held)[:, None]
        taken, carried = times(spans, grown), times(spans, faded)

        def product(i: int, y: Array) -> Array:
            taught = times(taken * times(y, inputs[i].T), slopes[i])
            return first * times(y, matrices[i]) + carried * times(y, fasts[i]) - taught

        gain_at = first * gain[None] + carried * fast_gain[None] - times(taken, gains)
        y = self._of(q, gain_at, product)

        def learned(share: Float[Array, "C"]) -> Float[Array, "n"]:
            each = [times((share[:, None] * a).T, d) for a, d in zip(inputs, slopes, strict=True)]
            return jnp.concatenate([times(share, gains), *(g.ravel() for g in each)])

        fast = faded[-1] * momentum - learned(grown[-1])
        return y, first[-1] * before + carried[-1] * momentum - learned(taken[-1]), fast

    def _shorter(self, square: Float[Array, "*C"]) -> Float[Array, "*C 1"]:
        """Return what scales gradients of these squared lengths down to `max_grad_norm`."""
        if self.max_grad_norm is None:
            return jnp.ones((*square.shape, 1), square.dtype)
        limit = self.max_grad_norm
        return (limit * jax.lax.rsqrt(jnp.maximum(square, limit**2)))[..., None]

    def _parts(self, flat: Float[Array, "n"]) -> list[Array]:
        """Return gamma and the matrices of one head's weights."""
        ends = np.cumsum([math.prod(s) for s in self.shapes])[:-1]
        parts = zip(jnp.split(flat, ends), self.shapes, strict=True)
        return [part.reshape(shape) for part, shape in parts]

    def _of(
        self, x: Float[Array, "C D"], gain: Array, product: Callable[[int, Array], Array]
    ) -> Float[Array, "C D"]:
        """Return f(x), `product` being that of its input with the i-th matrix."""
        y = x
        for i in range(self.depth):
            y = product(i, jax.nn.gelu(y, approximate=False) if i else y)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + NORM)
        return y * (gain + 1) + x


def _square(rows: Float[Array, "C D"]) -> Float[Array, "C"]:
    """Return squared lengths of rows."""
    return jnp.sum(jnp.square(rows), axis=-1)

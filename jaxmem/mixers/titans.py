"""Titans' neural memory (arXiv 2501.00663): a small network that learns the stream as it passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.kernels.dense import linear
from jaxmem.mixers.base import Mixer
from jaxmem.mixers.parts import dense
from jaxmem.typing import Array, Bool, Float, Params, PyTree

NORM = 1e-5
"""Added to the variance in the network's norm."""
FORGET, MOMENTUM = -4.0, 1.0
"""Biases of initial weights: of the share that is forgotten with a chunk, and of momentum kept."""


class TitansState(NamedTuple):
    """What one layer knows of its stream; n numbers in a network."""

    memory: Float[Array, "H n"]  # the networks' weights, less those that they begin with
    momentum: Float[Array, "H n"]
    waiting: Float[Array, "C-1 E+1"]  # rows for the next chunk, and 1 for each


@dataclass(frozen=True)
class Titans(Mixer):
    """Titans: f(x) = LN(MLP(x)) (gamma + 1) + x is trained on keys and values of every chunk.

    Of C rows u, normalised: k, v and a step theta = rate sigmoid(u w); of their mean the momentum
    kept eta and the share forgotten alpha. With the gradient G of sum theta mean (f(k) - v)^2 at
    the weights where the chunk begins: S <- eta S - G, W <- (1 - alpha) W + S. A row reads f(q).
    Every head has a network; a row's chunk is counted from the stream's beginning, so any cut of a
    stream is the same.

    Attributes:
      heads: H.
      head_dim: D.
      depth: matrices of the MLP, (D, 2D, ..., D) with GELU between them.
      rows: C, rows of a chunk of training.
      read: the weights that a row reads: where its chunk begins ("before"), or after all chunks
        that are whole with it, so that the last row of a chunk has learned it ("released").
      rate: the largest step. Without `max_grad_norm` an hour diverged at 1.0, and not at 0.3.
      max_grad_norm: gradients of a head are scaled down to this length; None: they are not.
      eps: of the norm of rows.

    Raises:
      ValueError: if a size or rate is not positive, or `read` is unknown.
    """

    heads: int
    head_dim: int = 64
    depth: int = 1
    rows: int = 16
    read: Literal["before", "released"] = "before"
    rate: float = 0.1
    max_grad_norm: float | None = None
    eps: float = 1e-6

    def __post_init__(self):
        sizes = {n: getattr(self, n) for n in ("heads", "head_dim", "depth", "rows", "rate")}
        if not min(*sizes.values(), self.max_grad_norm or 1) > 0:
            raise ValueError(
                f"Titans needs positive sizes and rates, got {sizes} and "
                f"max_grad_norm={self.max_grad_norm}."
            )
        if self.read not in ("before", "released"):
            raise ValueError(f"read is 'before' or 'released', got {self.read!r}.")

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Those of a network's weights: gamma, and the matrices."""
        widths = [self.head_dim, *[2 * self.head_dim] * (self.depth - 1), self.head_dim]
        return [(self.head_dim,), *pairwise(widths)]

    def weights(self, width: int, key: Array) -> Params:
        """Return initial weights; `memory` are those that the networks begin with, [H, n]."""
        inner, keys = self.heads * self.head_dim, jax.random.split(key, 8)
        found: Params = {n: dense(k, width, inner) for n, k in zip("qkv", keys, strict=False)}
        names = ("step", "momentum", "forget")
        found |= {
            n: dense(k, width, self.heads, True) for n, k in zip(names, keys[3:], strict=False)
        }
        found["momentum"]["bias"] += MOMENTUM
        found["forget"]["bias"] += FORGET
        parts = [jnp.zeros((self.heads, self.head_dim), jnp.float32)]
        for shape, k in zip(self.shapes[1:], jax.random.split(keys[6], self.depth), strict=True):
            each = jax.vmap(lambda k, s=shape: dense(k, *s)["kernel"].ravel())
            parts.append(each(jax.random.split(k, self.heads)))
        found["memory"] = {"kernel": jnp.concatenate(parts, axis=1)}
        return found | {"out": dense(keys[7], inner, width)}

    def init(self, width: int) -> TitansState:
        """See `Mixer.init`."""
        none = jnp.zeros((self.heads, sum(map(math.prod, self.shapes))), jnp.float32)
        return TitansState(none, none, jnp.zeros((self.rows - 1, width + 1), jnp.float32))

    def chunk(
        self,
        weights: Params,
        state: TitansState,
        x: Float[Array, "T E"],
        real: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T E"], TitansState]:
        """See `Mixer.chunk`."""
        wide = jnp.result_type(jnp.float32, x, state.memory)
        size, fresh = self.rows, jnp.sum(real, dtype=jnp.int32)
        blocks = (size - 1 + len(x)) // size + 1
        # The rows that wait, then those of this chunk, in whole chunks and one that is not.
        waited = jnp.sum(state.waiting[:, -1] > 0, dtype=jnp.int32)
        flagged = jnp.pad(x.astype(wide), ((0, 0), (0, 1)), constant_values=1)
        flagged = jnp.where(real[:, None], flagged, 0)
        rows = jnp.zeros((blocks * size + len(x), x.shape[1] + 1), wide)
        rows = rows.at[: size - 1].set(state.waiting.astype(wide))
        rows = jax.lax.dynamic_update_slice_in_dim(rows, flagged, waited, 0)
        whole = (waited + fresh) // size

        @jax.checkpoint
        def step(held: tuple[Array, Array], item: tuple[Array, Array]) -> tuple[PyTree, Array]:
            return self._trained(weights, *held, *item)

        each = rows[: blocks * size].reshape(blocks, size, -1)
        now = (state.memory.astype(wide), state.momentum.astype(wide))
        now, y = jax.lax.scan(step, now, (each, jnp.arange(blocks, dtype=jnp.int32) < whole))
        y = y.reshape(blocks * size, -1)
        y = jax.lax.dynamic_slice_in_dim(y, waited, len(x))
        waiting = jax.lax.dynamic_slice_in_dim(rows, whole * size, size - 1)
        memory, momentum, waiting = (
            a.astype(b.dtype) for a, b in zip((*now, waiting), state, strict=True)
        )
        out = linear(y.astype(x.dtype), weights["out"])
        return out, TitansState(memory, momentum, waiting)

    def _trained(
        self, weights: Params, memory: Array, momentum: Array, rows: Array, whole: Array
    ) -> tuple[tuple[Array, Array], Float[Array, "C HD"]]:
        """Return the networks after C rows, if they are all there, and what the rows read."""
        x, flag = rows[:, :-1], rows[:, -1]
        wide, size = x.dtype, len(x)
        u = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        split = lambda name: linear(u, weights[name]).astype(wide).reshape(size, self.heads, -1)
        q, k, v = (split(name).transpose(1, 0, 2) for name in "qkv")  # [H, C, D]
        theta = self.rate * jax.nn.sigmoid(split("step")[..., 0].T) * flag[None]
        mean = jnp.mean(u, axis=0)[None]
        eta, alpha = (
            jax.nn.sigmoid(linear(mean, weights[name]).astype(wide))[0][:, None]
            for name in ("momentum", "forget")
        )
        first = weights["memory"]["kernel"].astype(wide)

        def loss(memory: Array, k: Array, v: Array, theta: Array) -> Array:
            return jnp.sum(theta * jnp.mean(jnp.square(self._network(memory, k) - v), axis=-1))

        before = first + memory
        grad = jax.vmap(jax.grad(loss))(before, k, v, theta)
        if self.max_grad_norm is not None:
            square = jnp.sum(jnp.square(grad), axis=1, keepdims=True)
            grad = grad * self.max_grad_norm
            grad = grad * jax.lax.rsqrt(jnp.maximum(square, self.max_grad_norm**2))
        fast = eta * momentum - grad
        after = (1 - alpha) * before + fast
        network = jax.vmap(self._network)
        y = network(before, q)
        if self.read == "released":
            y = jnp.where(whole, y.at[:, -1:].set(network(after, q[:, -1:])), y)
        new = jnp.where(whole, after - first, memory), jnp.where(whole, fast, momentum)
        return new, y.transpose(1, 0, 2).reshape(size, -1)

    def _network(self, flat: Float[Array, "n"], x: Float[Array, "C D"]) -> Float[Array, "C D"]:
        """Return f(x) of one head's weights."""
        ends = np.cumsum([math.prod(s) for s in self.shapes])[:-1]
        parts = zip(jnp.split(flat, ends), self.shapes, strict=True)
        gamma, *matrices = (part.reshape(shape) for part, shape in parts)
        y = x
        for i, matrix in enumerate(matrices):
            y = jax.nn.gelu(y, approximate=False) if i else y
            y = jnp.matmul(y, matrix, precision=jax.lax.Precision.HIGHEST)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + NORM)
        return y * (gamma + 1)[None] + x

"""Titans' neural memory (arXiv 2501.00663): a small network that learns the stream as it passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

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


Read = Literal["before", "released", "each"]


@dataclass(frozen=True)
class Titans(Mixer):
    """Titans: f(x) = LN(MLP(x)) (gamma + 1) + x is trained on keys and values of every chunk.

    Of C rows u, normalised: k, v and a step theta = rate sigmoid(u w); of their mean the momentum
    kept eta and the share forgotten alpha. With the gradient G of sum theta mean (f(k) - v)^2 at
    the weights where the chunk begins: S <- eta S - G, W <- (1 - alpha) W + S. A row reads f(q).
    Every head has a network; a row's chunk is counted from the stream's beginning, so any cut of a
    stream is the same.

    With `read="each"` every row has an eta and an alpha and takes a step of its own, with its own
    gradient at the weights where the chunk begins, and reads the weights after it (eq. 13 to 18 of
    the paper). No weights of a row are made: with G_i = a_i d_i^T of a matrix, a its input and d
    the slope of its output,

        y W_t = A_t (y W_0) + M_t (y S_0) - sum_{i <= t} c_ti (y . a_i) d_i

    Attributes:
      heads: H.
      head_dim: D.
      depth: matrices of the MLP, (D, 2D, ..., D) with GELU between them.
      rows: C, rows of a chunk of training.
      read: the weights that a row reads: where its chunk begins ("before"); after all chunks that
        are whole with it, so that the last row of a chunk has learned it ("released"); or after its
        own step ("each"). Only with the last do rows of a chunk see each other: a decoder of such
        layers alone cannot read a question that is shorter than a chunk without it.
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
    read: Read = "before"
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
        if self.read not in get_args(Read):
            raise ValueError(f"read is one of {', '.join(get_args(Read))}, got {self.read!r}.")

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
        # A chunk's rows forget together what a chunk does that forgets once.
        found["forget"]["bias"] += FORGET - math.log(self.rows if self.read == "each" else 1)
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
        split = lambda name, u=u: (
            linear(u, weights[name]).astype(wide).reshape(len(u), self.heads, -1).swapaxes(0, 1)
        )
        q, k, v = (split(name) for name in "qkv")  # [H, C, D]
        theta = self.rate * jax.nn.sigmoid(split("step")[..., 0]) * flag[None]
        # Logits of eta and alpha: of a row, or of the chunk.
        signal = u if self.read == "each" else jnp.mean(u, axis=0, keepdims=True)
        hold, forget = (split(name, signal)[..., 0] for name in ("momentum", "forget"))
        first = weights["memory"]["kernel"].astype(wide)
        step = jax.vmap(self._steps if self.read == "each" else self._step)
        y, after, fast = step(first + memory, momentum, q, k, v, theta, hold, forget)
        if self.read == "released":
            y = jnp.where(whole, y.at[:, -1:].set(jax.vmap(self._read)(after, q[:, -1:])), y)
        new = jnp.where(whole, after - first, memory), jnp.where(whole, fast, momentum)
        return new, y.swapaxes(0, 1).reshape(size, -1)

    def _step(
        self,
        before: Float[Array, "n"],
        momentum: Float[Array, "n"],
        q: Float[Array, "C D"],
        k: Float[Array, "C D"],
        v: Float[Array, "C D"],
        theta: Float[Array, "C"],
        hold: Float[Array, "1"],
        forget: Float[Array, "1"],
    ) -> tuple[Array, Array, Array]:
        """Return what rows read of the weights before a head's step, weights and momentum after."""

        def loss(flat: Array) -> Array:
            return jnp.sum(theta * jnp.mean(jnp.square(self._read(flat, k) - v), axis=-1))

        grad = jax.grad(loss)(before)
        grad = grad * self._shorter(jnp.sum(jnp.square(grad)))
        fast = jax.nn.sigmoid(hold) * momentum - grad
        return self._read(before, q), jax.nn.sigmoid(-forget) * before + fast, fast

    def _steps(
        self,
        before: Float[Array, "n"],
        momentum: Float[Array, "n"],
        q: Float[Array, "C D"],
        k: Float[Array, "C D"],
        v: Float[Array, "C D"],
        theta: Float[Array, "C"],
        hold: Float[Array, "C"],
        forget: Float[Array, "C"],
    ) -> tuple[Array, Array, Array]:
        """Return what rows read after their own steps, a head's weights and momentum at the end."""
        (gain, *matrices), (fast_gain, *fasts) = self._parts(before), self._parts(momentum)

        def loss(gain: Array, nudges: list[Array]) -> tuple[Array, list[Array]]:
            seen: list[Array] = []

            def product(i: int, y: Array) -> Array:
                seen.append(y)
                return _product(y, matrices[i]) + nudges[i]

            error = jnp.mean(jnp.square(self._network(k, gain, product) - v), axis=-1)
            return jnp.sum(theta * error), seen

        # The gradient of row i is a_i d_i^T of every matrix, and `gains` of gamma.
        none = [jnp.zeros((len(k), m.shape[1]), k.dtype) for m in matrices]
        gains = jnp.broadcast_to(gain[None], k.shape)
        (gains, slopes), inputs = jax.grad(loss, (0, 1), has_aux=True)(gains, none)
        squares = [_square(a) * _square(d) for a, d in zip(inputs, slopes, strict=True)]
        shorter = self._shorter(sum(squares, start=_square(gains)))
        gains, *slopes = (d * shorter for d in (gains, *slopes))
        # S_t = g_t S_0 - sum g_ti G_i and W_t = A_t W_0 + M_t S_0 - sum c_ti G_i, i <= t.
        kept, held = jax.nn.log_sigmoid(-forget), jax.nn.log_sigmoid(hold)
        spans, grown = _spans(kept), _spans(held)
        first, faded = jnp.exp(jnp.cumsum(kept))[:, None], jnp.exp(jnp.cumsum(held))[:, None]
        taken, carried = _product(spans, grown), _product(spans, faded)

        def product(i: int, y: Array) -> Array:
            taught = _product(taken * _product(y, inputs[i].T), slopes[i])
            return first * _product(y, matrices[i]) + carried * _product(y, fasts[i]) - taught

        gain_at = first * gain[None] + carried * fast_gain[None] - _product(taken, gains)
        y = self._network(q, gain_at, product)

        def learned(share: Float[Array, "C"]) -> Float[Array, "n"]:
            each = [
                _product((share[:, None] * a).T, d) for a, d in zip(inputs, slopes, strict=True)
            ]
            return jnp.concatenate([share @ gains, *(g.ravel() for g in each)])

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

    def _read(self, flat: Float[Array, "n"], x: Float[Array, "C D"]) -> Float[Array, "C D"]:
        """Return f(x) of one head's weights."""
        gain, *matrices = self._parts(flat)
        return self._network(x, gain[None], lambda i, y: _product(y, matrices[i]))

    def _network(
        self, x: Float[Array, "C D"], gain: Array, product: Callable[[int, Array], Array]
    ) -> Float[Array, "C D"]:
        """Return f(x), `product` being that of its input with the i-th matrix."""
        y = x
        for i in range(self.depth):
            y = product(i, jax.nn.gelu(y, approximate=False) if i else y)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + NORM)
        return y * (gain + 1) + x


def _product(a: Array, b: Array) -> Array:
    """Return a b in full precision: a state adds up what products round."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _square(rows: Float[Array, "C D"]) -> Float[Array, "C"]:
    """Return squared lengths of rows."""
    return jnp.sum(jnp.square(rows), axis=-1)


def _spans(logs: Float[Array, "C"]) -> Float[Array, "C C"]:
    """Return at (t, i) the product of factors i + 1 to t, of their logarithms; 0 for i > t."""
    total = jnp.cumsum(logs)
    below = jnp.tril(jnp.ones((len(logs), len(logs)), bool))
    return jnp.where(below, jnp.exp(jnp.where(below, total[:, None] - total[None], 0)), 0)

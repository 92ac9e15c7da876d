"""Titans' neural memory (arXiv 2501.00663): a small network that learns the stream as it passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from jaxmem.kernels.dense import linear
from jaxmem.mixers.base import Mixer
from jaxmem.mixers.network import Items, Network
from jaxmem.mixers.parts import check_numbers, check_rows, check_sizes, dense
from jaxmem.typing import Array, Bool, Float, Params, PyTree

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
    the paper).

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
      ValueError: if a size is no positive whole number, `rate`, `max_grad_norm` or `eps` is not
        positive, or `read` is unknown.
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
        sizes = {n: getattr(self, n) for n in ("heads", "head_dim", "depth", "rows")}
        check_sizes(self.name, **sizes)
        if min(sizes.values()) < 1:
            raise ValueError(
                f"Titans needs positive sizes, got {sizes}: raise what is too small above 0."
            )
        check_numbers(self.name, rate=self.rate, eps=self.eps)
        if self.max_grad_norm is not None:  # no limit
            check_numbers(self.name, max_grad_norm=self.max_grad_norm)
        if self.read not in get_args(Read):
            raise ValueError(
                f"read is one of {', '.join(get_args(Read))}, got {self.read!r}: set read='before' "
                "for the weights where a chunk begins."
            )

    @property
    def network(self) -> Network:
        """That of a head."""
        return Network(self.head_dim, self.depth, self.max_grad_norm)

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
        shapes, each_key = self.network.shapes[1:], jax.random.split(keys[6], self.depth)
        for shape, k in zip(shapes, each_key, strict=True):
            each = jax.vmap(lambda k, s=shape: dense(k, *s)["kernel"].ravel())
            parts.append(each(jax.random.split(k, self.heads)))
        found["memory"] = {"kernel": jnp.concatenate(parts, axis=1)}
        return found | {"out": dense(keys[7], inner, width)}

    def init(self, width: int) -> TitansState:
        """See `Mixer.init`."""
        none = jnp.zeros((self.heads, self.network.size), jnp.float32)
        return TitansState(none, none, jnp.zeros((self.rows - 1, width + 1), jnp.float32))

    def chunk(
        self,
        weights: Params,
        state: TitansState,
        x: Float[Array, "T E"],
        real: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T E"], TitansState]:
        """See `Mixer.chunk`."""
        check_rows(x)
        wide = jnp.result_type(jnp.float32, x, state.memory)
        size, fresh = self.rows, jnp.sum(real, dtype=jnp.int32)
        blocks = (size - 1 + len(x)) // size  # that may be whole; one more is not
        # The rows that wait, then those of this chunk.
        waited = jnp.sum(state.waiting[:, -1] > 0, dtype=jnp.int32)
        flagged = jnp.pad(x.astype(wide), ((0, 0), (0, 1)), constant_values=1)
        flagged = jnp.where(real[:, None], flagged, 0)
        rows = jnp.zeros(((blocks + 1) * size + len(x), x.shape[1] + 1), wide)
        rows = rows.at[: size - 1].set(state.waiting.astype(wide))
        rows = jax.lax.dynamic_update_slice_in_dim(rows, flagged, waited, 0)
        whole = (waited + fresh) // size
        first = weights["memory"]["kernel"].astype(wide)
        items = self._items(weights, rows[: (blocks + 1) * size])

        @jax.checkpoint
        def step(held: tuple[Array, Array], item: tuple[Array, Items]) -> tuple[PyTree, Array]:
            y, after = self._trained(first, held, item[1])
            if self.read == "released":
                last = jax.vmap(self.network.read)(first + after[0], item[1].q[:, -1:])
                y = jnp.where(item[0], y.at[:, -1:].set(last), y)
            return jax.tree.map(lambda a, b: jnp.where(item[0], a, b), after, held), y

        now = (state.memory.astype(wide), state.momentum.astype(wide))
        learned = (jnp.arange(blocks, dtype=jnp.int32) < whole, items.at(slice(blocks)))
        now, y = jax.lax.scan(step, now, learned)
        rest, _ = jax.checkpoint(self._trained)(first, now, items.at(blocks))
        y = jnp.concatenate([y, rest[None]]).swapaxes(1, 2).reshape((blocks + 1) * size, -1)
        y = jax.lax.dynamic_slice_in_dim(y, waited, len(x))
        waiting = jax.lax.dynamic_slice_in_dim(rows, whole * size, size - 1)
        memory, momentum, waiting = (
            a.astype(b.dtype) for a, b in zip((*now, waiting), state, strict=True)
        )
        out = linear(y.astype(x.dtype), weights["out"])
        return out, TitansState(memory, momentum, waiting)

    def _items(self, weights: Params, rows: Float[Array, "BC E+1"]) -> Items:
        """Return what the networks are given of rows, and their steps."""
        x, flag = rows[:, :-1], rows[:, -1]
        u = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.eps)
        blocks = lambda y: y.reshape(-1, self.rows, *y.shape[1:])

        def split(name: str, u: Array) -> Float[Array, "B H C D"]:
            y = linear(u, weights[name]).astype(x.dtype)
            return y.reshape(*u.shape[:-1], self.heads, -1).swapaxes(1, 2)

        u, flag = blocks(u), blocks(flag)
        q, k, v = (split(name, u) for name in "qkv")
        theta = self.rate * jax.nn.sigmoid(split("step", u)[..., 0]) * flag[:, None]
        # Logits of eta and alpha: of a row, or of the chunk.
        signal = u if self.read == "each" else jnp.mean(u, axis=1, keepdims=True)
        hold, forget = (split(name, signal)[..., 0] for name in ("momentum", "forget"))
        return Items(q, k, v, theta, hold, forget)

    def _trained(
        self, first: Float[Array, "H n"], held: tuple[Array, Array], item: Items
    ) -> tuple[Float[Array, "H C D"], tuple[Array, Array]]:
        """Return what the C rows of a chunk read, and the networks after it."""
        network = self.network
        step = jax.vmap(network.steps if self.read == "each" else network.step)
        y, after, fast = step(first + held[0], held[1], item)
        return y, (after - first, fast)

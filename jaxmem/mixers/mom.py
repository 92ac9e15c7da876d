"""Mixture of memories (MoM, arXiv 2502.13685): several states, of which a token writes a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kernels.blocks import sums
from jaxmem.kernels.delta import delta
from jaxmem.kernels.dense import linear, product
from jaxmem.mixers.base import Mixer
from jaxmem.mixers.gated_delta import unit
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


class MoMState(NamedTuple):
    """What one layer knows of its stream; M counts the shared memory, if there is one, last."""

    tail: Float[Array, "M K-1 C"]  # last inputs of each memory's convolutions
    memory: Float[Array, "M H K V"]


@dataclass(frozen=True)
class MoM(Mixer):
    """Mixture of memories: a router sends each token to `chosen` of `memories` gated delta rules.

    A memory has projections of its own for keys, values, decay and share; the query's, the rates,
    the convolutions' weights and the output are common. A token joins the subsequence of each
    memory that it is sent to: the convolutions run over that, and other memories neither decay nor
    move. Outputs are added up, weighted by the router's softmax over the chosen; those of a shared
    memory, which sees every token, are added to them. Then they are normalised per head, and gated
    by silu(z).

    Attributes:
      heads: H.
      head_dim: K and V.
      memories: how many there are.
      chosen: how many a token is sent to.
      shared: one more memory, for every token.
      kernel: inputs of the convolutions.
      eps: of the norm.
      block: rows that are computed at once, see `kernels.delta`.
      implementation: of `kernels.delta`.

    Raises:
      ValueError: if a size is no positive whole number, more memories are chosen than there are,
        or `eps` is not positive.
    """

    heads: int
    head_dim: int = 64
    memories: int = 4
    chosen: int = 2
    shared: bool = True
    kernel: int = 4
    eps: float = 1e-5
    block: int = 64
    implementation: str | None = None

    def __post_init__(self):
        sizes = {n: getattr(self, n) for n in ("heads", "head_dim", "memories", "chosen", "block")}
        check_sizes(self.name, **sizes, kernel=self.kernel)
        if min(sizes.values()) < 1 or self.kernel < 2 or self.chosen > self.memories:
            raise ValueError(
                "MoM needs positive sizes, a kernel of at least 2 and at most as many chosen as "
                f"memories, got {sizes | {'kernel': self.kernel}}: raise what is too small, and "
                "set chosen to at most memories."
            )
        check_numbers(self.name, eps=self.eps)

    @property
    def inner(self) -> int:
        """H K."""
        return self.heads * self.head_dim

    @property
    def count(self) -> int:
        """M, the memories with the shared one."""
        return self.memories + self.shared

    def weights(self, width: int, key: Array) -> Params:
        """Return initial weights; those of memories are stacked [M, ...]."""
        names = ("k", "v", "a", "b")
        parts = (*names, "q", "z", "out", "router", "conv", "rates", "steps")
        keys = dict(zip(parts, jax.random.split(key, len(parts)), strict=True))
        wide = {"k": self.inner, "v": self.inner, "a": self.heads, "b": self.heads}
        each = lambda n: jax.vmap(lambda k: dense(k, width, wide[n]))(
            jax.random.split(keys[n], self.count)
        )
        found = {n: each(n) for n in names} | forgetting(keys["rates"], keys["steps"], self.heads)
        return found | {
            "q": dense(keys["q"], width, self.inner),
            "z": dense(keys["z"], width, self.inner),
            "router": dense(keys["router"], width, self.memories),
            "conv": conv_weights(keys["conv"], self.kernel, 3 * self.inner),
            "norm": {"scale": jnp.ones(self.head_dim, jnp.float32)},
            "out": dense(keys["out"], self.inner, width),
        }

    def init(self, width: int) -> MoMState:
        """See `Mixer.init`."""
        del width
        memory = jnp.zeros((self.count, self.heads, self.head_dim, self.head_dim), jnp.float32)
        tail = jnp.zeros((self.count, self.kernel - 1, 3 * self.inner), jnp.float32)
        return MoMState(tail, memory)

    def shares(self, weights: Params, x: Float[Array, "T E"]) -> Float[Array, "T M"]:
        """Return the weight of every memory for every token; 0 where it is not chosen.

        The weights of the chosen add up to 1; a shared memory has 1 besides.
        """
        wide = jnp.result_type(jnp.float32, x)
        p = jax.nn.softmax(linear(x, weights["router"]).astype(wide), axis=-1)
        best, which = jax.lax.top_k(p, self.chosen)
        best = best / jnp.sum(best, axis=-1, keepdims=True)
        found = jnp.sum(jax.nn.one_hot(which, self.memories, dtype=wide) * best[..., None], axis=1)
        return jnp.pad(found, ((0, 0), (0, int(self.shared))), constant_values=1)

    def chunk(
        self,
        weights: Params,
        state: MoMState,
        x: Float[Array, "T E"],
        real: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T E"], MoMState]:
        """See `Mixer.chunk`."""
        check_rows(x)
        wide = jnp.result_type(jnp.float32, x, state.memory)
        share, q = self.shares(weights, x).astype(wide), linear(x, weights["q"])
        # Kernels alone: in a loop over layers there is the whole stack beside each.
        own = {n: {"kernel": weights[n]["kernel"]} for n in ("k", "v", "a", "b")}
        one = lambda *of: self._memory(weights, q, x, *of)
        sent = (share > 0) & real[:, None]
        y, state = jax.vmap(one)(own, state, sent.T)
        y = sums("mthv,tm->thv", y, share)
        y = normed(y, self.eps) * weights["norm"]["scale"].astype(wide)[None, None]
        y = y.reshape(len(x), -1) * jax.nn.silu(linear(x, weights["z"]).astype(wide))
        return linear(y.astype(x.dtype), weights["out"]), state

    def _memory(
        self, weights: Params, q: Array, x: Array, own: Params, state: MoMState, sent: Array
    ) -> tuple[Float[Array, "T H V"], MoMState]:
        """Return what one memory says to the rows that are sent to it, and its state."""
        wide = jnp.result_type(jnp.float32, x, state.memory)
        rows = len(x)
        # Its rows come first, in order: a subsequence is then a chunk like any other.
        place = jnp.where(sent, jnp.cumsum(sent, dtype=jnp.int32) - 1, rows)
        first = lambda y: jnp.zeros_like(y).at[place].set(y, mode="drop")
        real = jnp.arange(rows, dtype=jnp.int32) < jnp.sum(sent, dtype=jnp.int32)
        mixed = jnp.concatenate([q, *(product(x, own[n]["kernel"]) for n in "kv")], axis=-1)
        mixed, tail = causal_conv(first(mixed), state.tail, weights["conv"]["kernel"], real)
        split = lambda y: y.reshape(rows, self.heads, self.head_dim).astype(wide)
        q, k, v = (split(y) for y in jnp.split(jax.nn.silu(mixed), 3, axis=-1))
        step = first(product(x, own["a"]["kernel"])).astype(wide)
        step = jax.nn.softplus(step + weights["dt_bias"].astype(wide)[None])
        g = -jnp.exp(weights["a_log"].astype(wide))[None] * step
        beta = jax.nn.sigmoid(first(product(x, own["b"]["kernel"])).astype(wide))
        g, beta = (jnp.where(real[:, None], y, 0) for y in (g, beta))
        more = {"block": self.block, "implementation": self.implementation}
        y, memory = delta(unit(q), unit(k), v, g, beta, state.memory, **more)
        back = y.at[place].get(mode="fill", fill_value=0)
        return back, MoMState(tail, memory)

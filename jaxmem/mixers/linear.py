"""Linear attention with a sum for a state (SANA-Video, arXiv 2509.24695): nothing is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kernels.blocks import sums
from jaxmem.kernels.dense import linear
from jaxmem.kernels.ssd import ssd
from jaxmem.mixers.base import Mixer
from jaxmem.mixers.parts import check_numbers, check_rows, check_sizes, dense, normed
from jaxmem.typing import Array, Bool, Float, Params

Within = Literal["causal", "block"]


class LinearState(NamedTuple):
    """What one layer knows of its stream."""

    memory: Float[Array, "H D D"]  # values by keys, these rotated to where the next chunk begins
    total: Float[Array, "H D"]  # sum of the keys, not rotated


@dataclass(frozen=True)
class LinearAttention(Mixer):
    """Linear attention: S <- S + v (R k)^T and z <- z + k, o = S (R q) / (z . q + eps).

    q and k are normalised per head and pass a ReLU; R rotates to the token's position, its number
    in the stream. Sums keep no positions, so they cannot be renumbered; but moving where positions
    are counted from is one rotation of the state, which every chunk ends with: angles never exceed
    those of a chunk. The denominator is of vectors that are not rotated, as published.

    Attributes:
      heads: H.
      head_dim: D, even.
      within: what a token sees of its own chunk: those before it and itself ("causal"), or all of
        it ("block", as published for frames that are generated together; then outputs depend on
        how a stream is cut).
      base: of the rotary frequencies.
      eps: of the norm.
      block: rows that are computed at once, see `kernels.ssd`.
      implementation: of `kernels.ssd`.

    Raises:
      ValueError: if a size is no positive whole number, `head_dim` is odd, `within` is unknown, or
        `base` or `eps` is not positive.
    """

    heads: int
    head_dim: int = 64
    within: Within = "causal"
    base: float = 10_000.0
    eps: float = 1e-6
    block: int = 64
    implementation: str | None = None

    def __post_init__(self):
        check_sizes(self.name, heads=self.heads, head_dim=self.head_dim, block=self.block)
        check_numbers(self.name, base=self.base, eps=self.eps)
        if min(self.heads, self.head_dim, self.block) < 1 or self.head_dim % 2:
            raise ValueError(
                "LinearAttention needs positive sizes and an even head_dim, got "
                f"heads={self.heads}, head_dim={self.head_dim}, block={self.block}: raise what is "
                "too small, and set head_dim to an even number."
            )
        if self.within not in ("causal", "block"):
            raise ValueError(
                f"within is 'causal' or 'block', got {self.within!r}: set within='causal' for a "
                "token to see those before it and itself."
            )

    def weights(self, width: int, key: Array) -> Params:
        """Return initial weights."""
        keys, inner = jax.random.split(key, 4), self.heads * self.head_dim
        found: Params = {n: dense(k, width, inner) for n, k in zip("qkv", keys, strict=False)}
        norms = {f"{n}_norm": {"scale": jnp.ones(self.head_dim, jnp.float32)} for n in "qk"}
        return found | norms | {"out": dense(keys[3], inner, width)}

    def init(self, width: int) -> LinearState:
        """See `Mixer.init`."""
        del width
        shape = (self.heads, self.head_dim, self.head_dim)
        return LinearState(jnp.zeros(shape, jnp.float32), jnp.zeros(shape[:2], jnp.float32))

    def chunk(
        self,
        weights: Params,
        state: LinearState,
        x: Float[Array, "T E"],
        real: Bool[Array, "T"],
    ) -> tuple[Float[Array, "T E"], LinearState]:
        """See `Mixer.chunk`."""
        check_rows(x)
        wide = jnp.result_type(jnp.float32, x, state.memory)
        split = lambda y: y.reshape(-1, self.heads, self.head_dim).astype(wide)
        q, k, v = (split(linear(x, weights[name])) for name in "qkv")
        q, k = (jax.nn.relu(self._normal(y, weights[f"{n}_norm"])) for y, n in ((q, "q"), (k, "k")))
        place = jnp.arange(len(x)).astype(wide)
        inner = {"block": self.block, "implementation": self.implementation}
        y, state = attend(q, k, v, real, state, self._angles(place), within=self.within, **inner)
        moved = self._angles(-jnp.sum(real)[None].astype(wide))[None]
        memory = turned(state.memory, moved).astype(state.memory.dtype)
        state = state._replace(memory=memory)
        return linear(y.reshape(len(x), -1).astype(x.dtype), weights["out"]), state

    def _angles(self, place: Float[Array, "T"]) -> Float[Array, "T D/2"]:
        """Return the angles of positions."""
        half = self.head_dim // 2
        rates = self.base ** (-jnp.arange(half, dtype=place.dtype) / half)
        return place[:, None] * rates[None]

    def _normal(self, y: Array, norm: Params) -> Float[Array, "T H D"]:
        """Return rows of mean square 1 times the scale."""
        return normed(y, self.eps) * norm["scale"].astype(y.dtype)[None, None]


TINY = 1e-15
"""Added to the denominator."""


def attend(
    q: Float[Array, "T H D"],
    k: Float[Array, "T H D"],
    v: Float[Array, "T H D"],
    real: Bool[Array, "T"],
    state: LinearState,
    angles: Float[Array, "T D/2"],
    *,
    within: Within = "causal",
    block: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, "T H D"], LinearState]:
    """Return what linear attention gives for a chunk, and the state after it.

    Args:
      q: not negative, not rotated.
      k: likewise.
      v: values.
      real: which rows are tokens.
      state: before the chunk, its keys rotated to the positions that `angles` count from.
      angles: of the rows' positions; pairs are channels i and i + D/2.
      within: see `LinearAttention`.
      block: see `kernels.ssd`.
      implementation: of `kernels.ssd`.
    """
    turned_q, turned_k = (turned(y, angles[:, None]) for y in (q, k))
    ones, total = jnp.ones((*k.shape[:2], 1), k.dtype), state.total[:, None]
    if within == "block":
        seen = jnp.where(real[:, None, None], 1, 0).astype(k.dtype)
        memory = state.memory + sums("thv,thk->hvk", v * seen, turned_k)
        total = total + jnp.sum(k * seen, axis=0)[:, None]
        top, below = (sums("hvk,thk->thv", s, y) for s, y in ((memory, turned_q), (total, q)))
    else:
        step = jnp.broadcast_to(real[:, None], k.shape[:2]).astype(k.dtype)
        still = jnp.zeros(k.shape[1], k.dtype)
        more = {"block": block, "implementation": implementation}
        top, memory = ssd(v, step, still, turned_k, turned_q, state.memory, **more)
        below, total = ssd(ones, step, still, k, q, total, **more)
    return top / (below + TINY), LinearState(memory, total[:, 0])


def turned(x: Float[Array, "*T D"], angles: Float[Array, "*T D/2"]) -> Float[Array, "*T D"]:
    """Return x with its pairs, channels i and i + D/2, rotated."""
    a, b = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

"""The gradient of attention by recomputation, for back ends that give output and log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp

from jaxmem.kernels.segment import Segment, rotated_queries
from jaxmem.kernels.tiles import fold_keys, logits, over_rows, tile_of
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float


def pull(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    lse: Float[Array, "Q H"],
    dout: Float[Array, "Q H D"],
    delta: Float[Array, "Q H"],
    rope: Rope,
) -> Float[Array, ""]:
    """Return a number whose gradient is that of attention, tile by tile.

    With P = exp(s - lse) and lse held constant, sum P (dout . v - delta) has the derivatives
    dV = P^T dout and dS = P (dout v^T - delta) (FlashAttention, algorithm 4).
    """
    tile = tile_of(q.shape[0], q.shape[1])

    def of_rows(rows: tuple[Array, ...], segments: Sequence[Segment]) -> Array:
        q, lse, dout, delta = rows
        groups, dim = segments[0].k.shape[1:]

        def tiled(x: Array) -> Array:
            return x.T.reshape(groups, -1, x.shape[0])[..., None]  # [C, R, Q, 1]

        shift, delta = tiled(jnp.where(jnp.isfinite(lse), lse, 0.0)), tiled(delta)
        up = dout.reshape(q.shape[0], groups, -1, dim).transpose(1, 2, 0, 3)
        up = up.reshape(groups, -1, dim)

        def add(total: Array, block: Segment, turned: Array) -> Array:
            p = jnp.exp(logits(turned, block, rope) - shift)
            dp = jnp.einsum("cqd,ncd->cqn", up, block.v, preferred_element_type=jnp.float32)
            return total + jnp.sum(p * (dp.reshape(p.shape) - delta), axis=(0, 1, 3))

        total = jnp.zeros(q.shape[:1], jnp.float32)
        for s in segments:
            turned = rotated_queries(q, s, rope)
            total = fold_keys(partial(add, turned=turned), total, s, tile.keys)
        return total

    return jnp.sum(over_rows(of_rows, (q, lse, dout, delta), segments, tile.rows))

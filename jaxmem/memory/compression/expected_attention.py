"""Expected Attention (arXiv 2510.00636): the attention that queries still to come will give."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.base import Memory, Requires
from jaxmem.memory.parts import positions as places
from jaxmem.memory.parts import scored as evict
from jaxmem.memory.parts import scores
from jaxmem.rope import Rope, angles, rope
from jaxmem.typing import Array, Bool, Float

HIGHEST = jax.lax.Precision.HIGHEST


class Moments(NamedTuple):
    """Of queries before rotation, per query head, float32."""

    mean: Float[Array, "H D"]
    cov: Float[Array, "H D D"]


def expected_attention(
    budget: int,
    rotary: Rope,
    *,
    sinks: int = 4,
    future: int = 512,
    step: tuple[int, ...] | None = None,
    covariance: bool = True,
    value_norm: bool = True,
    eps: float = 0.0,
    per_kind: bool = True,
    audio_share: float = evict.AUDIO_SHARE,
    positions: places.Rule = "keep",
) -> Memory:
    """Return the memory that keeps what the next queries are expected to attend to.

    Queries are taken for normally distributed, with the moments of those of the chunk's rows; the
    published moments are those of a prompt, or of a buffer of recent rows while decoding. Every KV
    head keeps its own tokens.

    Args:
      budget: S, slots of every layer.
      rotary: the model's embedding.
      sinks: the oldest tokens, always kept; their queries and their keys do not count.
      future: rows to come, over whose positions the rotation is averaged.
      step: how far one of them advances each position axis; None: by one, as text does.
      covariance: use the second moment; False: the mean alone.
      value_norm: weigh by |v|, which scales what a token adds to the output.
      eps: added to the attention before it is weighed.
      per_kind: audio competes in its own part of the budget; False as published.
      audio_share: that part.
      positions: "keep" as published, or "contiguous".

    Raises:
      ValueError: if the budget has no slot, the sinks do not fit, or no row is to come.
    """
    if future < 1 or not 0 <= sinks <= budget:
        raise ValueError(
            "expected_attention needs future >= 1 and 0 <= sinks <= budget, got "
            f"future={future}, sinks={sinks}, budget={budget}."
        )

    def ranked(pool: evict.Pool) -> Float[Array, "G N"]:
        if positions == "contiguous":  # a key is compared where it is read
            tokens, _ = places.numbered(pool.tokens, jnp.zeros_like(pool.next_pos))
            pool = pool._replace(tokens=tokens, next_pos=jnp.full_like(pool.next_pos, pool.n))
        return score(pool, rotary, sinks, future, step, covariance, value_norm, eps)

    return evict.evict(
        budget,
        ranked,
        name="expected_attention",
        reads=Requires(queries=True),
        per_kind=per_kind,
        audio_share=audio_share,
        positions=positions,
    )


def oldest(pool: evict.Pool, count: int) -> Bool[Array, "Gm N"]:
    """Return which entries are the first `count` valid ones."""
    return pool.valid & (jnp.cumsum(pool.valid, axis=1, dtype=jnp.int32) <= count)


def moments(pool: evict.Pool, sinks: int) -> Moments:
    """Return mean and population covariance of the queries of a chunk's rows behind the sinks."""
    if pool.queries is None:
        raise ValueError(
            "Expected Attention needs Chunk.queries; the decoder step must honour requires.queries."
        )
    q = jax.lax.stop_gradient(pool.queries).astype(jnp.float32)
    row = jnp.arange(q.shape[0], dtype=jnp.int32)
    held = jnp.sum(pool.valid[0], dtype=jnp.int32) - pool.rows
    counted = ((row < pool.rows) & (held + row >= sinks)).astype(jnp.float32)
    share = (counted / jnp.maximum(jnp.sum(counted), 1.0))[:, None, None]
    mean = jnp.sum(share * q, axis=0)
    centred = jnp.where(share > 0, q - mean[None], 0.0)
    cov = jnp.einsum("thd,the->hde", share * centred, centred, precision=HIGHEST)
    return Moments(mean, cov)


def score(
    pool: evict.Pool,
    rotary: Rope,
    sinks: int = 4,
    future: int = 512,
    step: tuple[int, ...] | None = None,
    covariance: bool = True,
    value_norm: bool = True,
    eps: float = 0.0,
) -> Float[Array, "G N"]:
    """Return (mean_h softmax_n(z) + eps) |v|, the sinks first.

    z = log E[exp(q k / sqrt D)] = mu k / sqrt D + k Sigma k / 2D for normal q. The rotation of the
    rows to come, averaged over their positions, is taken back from the keys instead of done to mu
    and Sigma.
    """
    tokens, held = pool.tokens, pool.valid & ~oldest(pool, sinks)
    known = moments(pool, sinks)
    # Attention depends on differences of positions; those to the end of the stream are small.
    away = tokens.pos - pool.next_pos.astype(tokens.pos.dtype)[None, None]
    first, second = jnp.split(rope(tokens.k.astype(jnp.float32), away, rotary), 2, axis=-1)
    stride = jnp.asarray(step or (1,) * tokens.pos.shape[-1], jnp.float32)[None]
    turn = angles(rotary, jnp.arange(future, dtype=jnp.float32)[:, None] * stride)
    cos, sin = (jnp.mean(f(turn), axis=0)[None, None] for f in (jnp.cos, jnp.sin))
    keys = jnp.concatenate([cos * first + sin * second, cos * second - sin * first], axis=-1)

    groups, dim = keys.shape[1:]
    mean = known.mean.reshape(groups, -1, dim)
    cov = known.cov.reshape(groups, -1, dim, dim)

    def attention(item: tuple[Array, ...]) -> Float[Array, "N"]:
        k, mu, sigma, real = item  # of one KV head
        z = jnp.einsum("rd,nd->rn", mu, k, precision=HIGHEST) / dim**0.5
        if covariance:
            spread = jnp.einsum("nd,rde->rne", k, sigma, precision=HIGHEST)
            z = z + jnp.einsum("rne,ne->rn", spread, k, precision=HIGHEST) / (2 * dim)
        a = jax.nn.softmax(jnp.where(real[None], z, jnp.finfo(jnp.float32).min), axis=-1)
        return jnp.mean(a, axis=0)

    held = jnp.broadcast_to(held, (groups, held.shape[1]))
    expected = jax.lax.map(attention, (keys.swapaxes(0, 1), mean, cov, held)) + eps
    if value_norm:
        expected = expected * jnp.linalg.norm(tokens.v.astype(jnp.float32), axis=-1).T
    return scores.protect(expected, oldest(pool, sinks))

"""Attention over segments in plain XLA, one tile of logits at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.segment import Segment, prerotated, rotated_queries, windowed
from jaxmem.kernels.tiles import Tile, fold_keys, logits, over_rows, tile_of
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float


class Softmax(NamedTuple):
    """A softmax in progress, [C, R, Q] over [C, R, Q, N]."""

    top: Float[Array, "C R Q"]  # largest logit so far, -inf before the first
    total: Float[Array, "C R Q"]  # sum of exp(logit - top)
    out: Float[Array, "C R Q D"] | None  # sum of exp(logit - top) * value; None: only the sum


def _fold(carry: Softmax, block: Segment, *, q: Array, rope: Rope, joint: bool) -> Softmax:
    s = logits(q, block, rope, joint=joint)
    # The result does not depend on the shift, so it carries no gradient.
    top = lax.stop_gradient(jnp.maximum(carry.top, jnp.max(s, axis=-1)))
    shift = jnp.where(jnp.isfinite(top), top, 0.0)
    p = jnp.exp(s - shift[..., None])
    decay = jnp.exp(carry.top - shift)
    total = carry.total * decay + jnp.sum(p, axis=-1)
    if carry.out is None:
        return Softmax(top, total, None)
    c, r, rows, n = p.shape
    p = p.astype(block.v.dtype).reshape(c, r * rows, n)
    new = jnp.einsum("cqn,ncd->cqd", p, block.v, preferred_element_type=jnp.float32)
    return Softmax(top, total, carry.out * decay[..., None] + new.reshape(c, r, rows, -1))


def _log_total(done: Softmax) -> Float[Array, "C R Q"]:
    safe = jnp.where(done.total > 0, done.total, 1.0)
    shift = jnp.where(jnp.isfinite(done.top), done.top, 0.0)
    return jnp.where(done.total > 0, shift + jnp.log(safe), -jnp.inf)


def _all_keys(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    start: Softmax,
    rope: Rope,
    keys: int,
    joint: bool = False,
) -> Softmax:
    carry = start
    for segment in segments:
        turned = rotated_queries(q, segment, rope)
        carry = fold_keys(partial(_fold, q=turned, rope=rope, joint=joint), carry, segment, keys)
    return carry


def _attend_rows(
    q: Float[Array, "Q H D"], segments: Sequence[Segment], rope: Rope, keys: int
) -> tuple[Array, Array]:
    rows, heads, dim = q.shape
    groups = segments[0].k.shape[1]
    shape = (groups, heads // groups, rows)
    start = Softmax(jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, dim)))
    done = _all_keys(q, segments, start, rope, keys)
    assert done.out is not None
    out = done.out / jnp.where(done.total > 0, done.total, 1.0)[..., None]
    out = out.transpose(2, 0, 1, 3).reshape(rows, heads, dim).astype(q.dtype)
    return out, _log_total(done).transpose(2, 0, 1).reshape(rows, heads)


def attend(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    window: int | None = None,
    tile: Tile | None = None,
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"]]:
    """See `jaxmem.kernels.attend`. `tile` overrides the size of the tiles (for tests)."""
    tile = tile or tile_of(q.shape[0], q.shape[1])
    segments = [windowed(s, window) for s in segments]
    if q.shape[0] > tile.rows:
        segments = prerotated(segments, rope)
    rows = partial(_attend_rows, rope=rope, keys=tile.keys)
    return over_rows(rows, q, segments, tile.rows)


def lse(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    tile: Tile,
    joint: bool = False,
) -> Float[Array, "Q H"]:
    """Return the log-sum-exp of the logits over all segments, float32.

    `joint`: that of head-mean logits, [Q, 1]; `q` are head means [Q, G, D].
    """
    groups = segments[0].k.shape[1]
    heads = (1, 1) if joint else (groups, q.shape[1] // groups)

    def rows(q: Array, segments: Sequence[Segment]) -> Array:
        shape = (*heads, q.shape[0])
        start = Softmax(jnp.full(shape, -jnp.inf), jnp.zeros(shape), None)
        done = _all_keys(q, segments, start, rope, tile.keys, joint)
        return _log_total(done).transpose(2, 0, 1).reshape(q.shape[0], -1)

    return over_rows(rows, q, segments, tile.rows)

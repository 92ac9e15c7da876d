"""Column sums of attention in plain XLA, one tile of weights at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp

from jaxmem.kernels.attend import ref as attention
from jaxmem.kernels.segment import Segment, prerotated, rotated_queries, windowed
from jaxmem.kernels.tiles import (
    Tile,
    fold_keys,
    head_mean,
    logits,
    map_keys,
    over_rows,
    sum_rows,
    tile_of,
)
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float, Num

NARROW = 16  # rows of a tile below which all keys no longer fit into one
REST = 1e-3  # of a row's weight: with less beside a key, |o - v|^2 drowns in float32's rounding


def _weights(
    q: Array, lse: Float[Array, "Q H"], block: Segment, rope: Rope, joint: bool
) -> Float[Array, "C R Q N"]:
    """Return softmax weights, 0 where nothing is seen."""
    s = logits(q, block, rope, joint=joint)
    c, r, rows, _ = s.shape
    shift = jnp.where(jnp.isfinite(lse), lse, 0.0).T.reshape(c, r, rows)
    return jnp.exp(s - shift[..., None])


def _removal(a: Array, out: Float[Array, "Q H D"], block: Segment) -> Float[Array, "C R Q N"]:
    """Return |change of a row's output if key n alone is removed| (CAOTE, arXiv 2504.14051).

    A key with all the weight, or all but `REST`, takes its value with it: |v|, which is exact for
    the only key that a row sees. Float32 no longer tells the output from that value.
    """
    c, r, rows, _ = a.shape
    v = block.v.astype(jnp.float32)
    o = out.astype(jnp.float32).reshape(rows, c, r, -1).transpose(1, 2, 0, 3)
    cross = jnp.einsum("crqd,ncd->crqn", o, v)
    norms = jnp.sum(v * v, axis=-1).T[:, None, None]
    square = jnp.sum(o * o, axis=-1)[..., None] - 2.0 * cross + norms
    rest = 1.0 - a
    away = jnp.sqrt(jnp.maximum(square, 0.0)) / jnp.maximum(rest, REST)
    return a * jnp.where(rest < REST, jnp.sqrt(norms), away)


class _Rows(NamedTuple):
    """What a tile needs of its rows."""

    q: Float[Array, "Q H D"]
    lse: Float[Array, "Q H"] | None
    counted: Float[Array, "Q"]  # 1 for rows that count
    out: Float[Array, "Q H D"] | None


def _sum_of_rows(
    a: Float[Array, "C R Q N"], counted: Float[Array, "Q"], reduce: str
) -> Float[Array, "K N"]:
    """Return the sums over counted rows, and means over heads, as one product per kept head."""
    c, r, rows, n = a.shape
    kept = {"head": c * r, "kv_head": c, "head_mean": 1}[reduce]
    share = c * r // kept
    counts = jnp.broadcast_to(counted / share, (kept, share, rows)).reshape(kept, share * rows)
    return jnp.einsum("km,kmn->kn", counts, a.reshape(kept, share * rows, n))


def _columns(
    rows: _Rows, segments: Sequence[Segment], *, rope: Rope, joint: bool, weights: str, reduce: str
) -> Float[Array, "C N"]:
    """Return the column sums of one tile."""
    (block,) = segments
    assert rows.lse is not None
    a = _weights(rotated_queries(rows.q, block, rope), rows.lse, block, rope, joint)
    if weights == "A2v2":
        v = block.v.astype(jnp.float32)
        a = a * a * jnp.sum(v * v, axis=-1).T[:, None, None]
    elif weights == "caote":
        assert rows.out is not None
        a = _removal(a, rows.out, block)
    return _sum_of_rows(a, rows.counted, reduce)


def _all_columns(rows: _Rows, segments: Sequence[Segment], *, rope: Rope) -> Float[Array, "N"]:
    """Return the column sums of a tile of rows by all keys: head-mean logits are computed once."""
    logit = [logits(rotated_queries(rows.q, s, rope), s, rope, joint=True)[0, 0] for s in segments]
    s = jnp.concatenate(logit, axis=-1)
    top = jnp.max(s, axis=-1, keepdims=True)
    p = jnp.exp(s - jnp.where(jnp.isfinite(top), top, 0.0))
    total = jnp.sum(p, axis=-1)
    return jnp.einsum("q,qn->n", rows.counted / jnp.where(total > 0, total, 1.0), p)


def _split(x: Float[Array, "N"], segments: Sequence[Segment]) -> tuple[Float[Array, "1 N"], ...]:
    """Return the parts of x that belong to the segments."""
    sizes = [s.valid.shape[0] for s in segments]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(x[None, end - size : end] for size, end in zip(sizes, ends, strict=True))


def mass(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    lse: Float[Array, "Q H"] | None,
    *,
    rope: Rope,
    rows: Bool[Array, "Q"],
    form: str = "softmax",
    reduce: str = "head_mean",
    weights: str = "A",
    out: Float[Array, "Q H D"] | None = None,
    window: int | None = None,
    tile: Tile | None = None,
) -> tuple[Float[Array, "C N"], ...]:
    """See `jaxmem.kernels.received`. `tile` overrides the size of the tiles (for tests)."""
    count, heads, _ = q.shape
    joint = form == "mean_logit"
    tile = tile or tile_of(count, 1 if joint else heads)
    segments = [windowed(s, window) for s in segments]
    counted = rows.astype(jnp.float32)
    if joint:
        q, lse = head_mean(q, segments[0].k.shape[1]), None
        size = tile.rows * tile.keys // max(1, sum(s.valid.shape[0] for s in segments))
        if size >= min(count, NARROW):
            segments = prerotated(segments, rope)
            of_rows = partial(_all_columns, rope=rope)
            return _split(
                sum_rows(of_rows, _Rows(q, None, counted, None), segments, size), segments
            )
        lse = attention.lse(q, segments, rope=rope, tile=tile, joint=True)
    if count > tile.rows:
        segments = prerotated(segments, rope)
    columns = partial(_columns, rope=rope, joint=joint, weights=weights, reduce=reduce)

    def summed(block: Segment) -> Float[Array, "C N"]:
        return sum_rows(columns, _Rows(q, lse, counted, out), [block], tile.rows)

    return tuple(map_keys(summed, s, tile.keys) for s in segments)


def row_mass(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    lse: Float[Array, "Q H"],
    *,
    rope: Rope,
    segment: int,
    columns: Num[Array, "N"] | None = None,
    window: int | None = None,
    tile: Tile | None = None,
) -> Float[Array, "Q"]:
    """See `jaxmem.kernels.received`. `tile` overrides the size of the tiles (for tests)."""
    tile = tile or tile_of(q.shape[0], q.shape[1])
    chosen = windowed(segments[segment], window)
    if columns is not None:
        chosen = chosen._replace(valid=chosen.valid & (columns != 0)[:, None])

    def of_rows(rows: tuple[Array, Array], chosen: Sequence[Segment]) -> Array:
        q, lse = rows
        turned = rotated_queries(q, chosen[0], rope)

        def fold(total: Array, block: Segment) -> Array:
            a = _weights(turned, lse, block, rope, joint=False)
            return total + jnp.mean(jnp.sum(a, axis=-1), axis=(0, 1))

        return fold_keys(fold, jnp.zeros(q.shape[:1]), chosen[0], tile.keys)

    return over_rows(of_rows, (q, lse), [chosen], tile.rows)

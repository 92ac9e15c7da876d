"""Column sums of attention in plain XLA, one tile of weights at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.attend.ref import joint_lse
from jaxmem.kernels.segment import Segment, map_rows, rotated_queries, windowed
from jaxmem.kernels.tiles import (
    Tile,
    fold_keys,
    head_mean,
    logits,
    map_keys,
    over_rows,
    pad_rows,
    row_block,
    starts,
    tile_of,
)
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float, Num


def _weights(
    q: Array, lse: Float[Array, "Q H"], block: Segment, rope: Rope, joint: bool
) -> Float[Array, "C R Q N"]:
    """Return softmax weights, 0 where nothing is seen."""
    s = logits(q, block, rope, joint=joint)
    c, r, rows, _ = s.shape
    shift = jnp.where(jnp.isfinite(lse), lse, 0.0).T.reshape(c, r, rows)
    return jnp.exp(s - shift[..., None])


def _removal(a: Array, out: Float[Array, "Q H D"], block: Segment) -> Float[Array, "C R Q N"]:
    """Return |change of a row's output if key n alone is removed| (CAOTE, arXiv 2504.14051)."""
    c, r, rows, _ = a.shape
    v = block.v.astype(jnp.float32)
    o = out.astype(jnp.float32).reshape(rows, c, r, -1).transpose(1, 2, 0, 3)
    cross = jnp.einsum("crqd,ncd->crqn", o, v)
    norms = jnp.sum(v * v, axis=-1).T[:, None, None]
    square = jnp.sum(o * o, axis=-1)[..., None] - 2.0 * cross + norms
    # A key with all the weight leaves nothing to renormalise; float32 still tells 1 - a from 0.
    rest = jnp.maximum(1.0 - a, jnp.finfo(jnp.float32).eps)
    return a / rest * jnp.sqrt(jnp.maximum(square, 0.0))


class _Rows(NamedTuple):
    """What a tile needs of its rows."""

    q: Float[Array, "Q H D"]
    lse: Float[Array, "Q H"]
    counted: Float[Array, "Q"]  # 1 for rows that count
    out: Float[Array, "Q H D"] | None


def _columns(
    rows: _Rows, block: Segment, *, rope: Rope, joint: bool, weights: str, reduce: str
) -> Float[Array, "C N"]:
    """Return the column sums of one tile."""
    a = _weights(rotated_queries(rows.q, block, rope), rows.lse, block, rope, joint)
    if weights == "A2v2":
        v = block.v.astype(jnp.float32)
        a = a * a * jnp.sum(v * v, axis=-1).T[:, None, None]
    elif weights == "caote":
        assert rows.out is not None
        a = _removal(a, rows.out, block)
    per_head = jnp.einsum("crqn,q->crn", a, rows.counted)
    if reduce == "head":
        c, r, n = per_head.shape
        return per_head.reshape(c * r, n)
    if reduce == "kv_head":
        return jnp.mean(per_head, axis=1)
    return jnp.mean(per_head, axis=(0, 1))[None]


def _sum_rows(
    block: Segment, *, rows: _Rows, size: int, count: int, columns: Callable
) -> Float[Array, "C N"]:
    """Return `columns`, [count, N], summed over blocks of rows."""
    if rows.q.shape[0] <= size:
        return columns(rows, block)
    at = starts(rows.q.shape[0], size)
    rows = pad_rows(rows, size)  # padding counts 0
    block = map_rows(block, partial(pad_rows, size=size))

    def body(total: Array, start: Array) -> tuple[Array, None]:
        cut = partial(row_block, start=start, size=size)
        return total + columns(cut(rows), map_rows(block, cut)), None

    zero = jnp.zeros((count, block.valid.shape[0]), jnp.float32)
    return lax.scan(body, zero, at)[0]


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
    """See `jaxmem.kernels.mass`. `tile` overrides the size of the tiles (for tests)."""
    heads, groups = q.shape[1], segments[0].k.shape[1]
    joint = form == "mean_logit"
    tile = tile or tile_of(q.shape[0], 1 if joint else heads)
    segments = [windowed(s, window) for s in segments]
    if joint:
        q = head_mean(q, groups)
        lse = joint_lse(q, segments, rope=rope, tile=tile)
    assert lse is not None
    columns = partial(_columns, rope=rope, joint=joint, weights=weights, reduce=reduce)
    summed = partial(
        _sum_rows,
        rows=_Rows(q, lse, rows.astype(jnp.float32), out),
        size=tile.rows,
        count={"head": heads, "kv_head": groups, "head_mean": 1}[reduce],
        columns=columns,
    )
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
    """See `jaxmem.kernels.mass`. `tile` overrides the size of the tiles (for tests)."""
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

"""`Segment`: one stretch of keys and values that rows attend to, under a softmax they share.

Attention over [prefix | memory | chunk] takes the stretches as a list, so that they are never
concatenated and each may fix the position of its queries in its own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxmem.rope import Rope, angles, rotate, tables, turn
from jaxmem.typing import Array, Bool, Float, Int, Num


class Segment(NamedTuple):
    """Keys, values and who may see them. Positions are relative to the view's base."""

    k: Float[Array, "N G D"]
    v: Float[Array, "N G D"]
    valid: Bool[Array, "N Gm"]
    pos: Num[Array, "N Gm A"] | None = None  # None: the keys are already rotated
    q_pos: Num[Array, "Q A"] | None = None  # None: the queries are already rotated for it
    last: Int[Array, "Q"] | None = None  # row t sees index <= last[t]; None: every index
    first: Int[Array, "Q"] | None = None  # row t sees index >= first[t]; None: a window decides
    bias: Float[Array, "N Gm"] | None = None  # added to a key's logits, in float32
    until: Int[Array, "N Gm"] | None = None  # rows see a key if their `row` is below; None: all do
    row: Int[Array, "Q"] | None = None  # number of each row; goes with `until`


def rotated_keys(segment: Segment, rope: Rope) -> Float[Array, "N G D"]:
    """Return the segment's keys at their positions."""
    if segment.pos is None:
        return segment.k
    return turn(segment.k, *tables(rope, segment.pos))


def prerotated(segments: Sequence[Segment], rope: Rope) -> list[Segment]:
    """Return the segments with keys that are rotated already: a copy of the keys.

    For loops over tiles of rows, each of which would rotate all keys again.
    """
    return [s._replace(k=rotated_keys(s, rope), pos=None) for s in segments]


def rotated_queries(
    q: Float[Array, "Q H D"], segment: Segment, rope: Rope
) -> Float[Array, "Q H D"]:
    """Return the queries as this segment sees them."""
    if segment.q_pos is None:
        return q
    return rotate(q, angles(rope, segment.q_pos)[:, None])


def windowed(segment: Segment, window: int | None) -> Segment:
    """Return the segment with a sliding window written into `first`.

    Row t then sees the `window` entries that end at `last[t]`. A segment without `last` (a pinned
    prefix) or with a `first` of its own is outside the window's order and is returned as it is.
    """
    if window is None or segment.last is None or segment.first is not None:
        return segment
    return segment._replace(first=segment.last - (window - 1))


def visible(segment: Segment) -> Bool[Array, "Gm Q N"]:
    """Return which keys which rows may see; the axis Q has size 1 if all rows see the same."""
    n = segment.valid.shape[0]
    mask = segment.valid.T[:, None, :]
    index = jnp.arange(n, dtype=jnp.int32)[None, None, :]
    if segment.last is not None:
        mask = mask & (index <= segment.last[None, :, None])
    if segment.first is not None:
        mask = mask & (index >= segment.first[None, :, None])
    if segment.until is not None and segment.row is not None:
        mask = mask & (segment.row[None, :, None] < segment.until.T[:, None, :])
    return mask


def key_block(segment: Segment, start: Int[Array, ""], size: int) -> Segment:
    """Return `size` keys from `start` on, as a segment.

    The last block reaches back, so that blocks never overhang: entries before `start` are marked
    invalid there. `size` is at most N.
    """
    begin = jnp.minimum(start, segment.valid.shape[0] - size)

    def cut(x: Array) -> Array:
        return lax.dynamic_slice_in_dim(x, begin, size)

    fresh = begin + jnp.arange(size, dtype=jnp.int32) >= start
    return segment._replace(
        k=cut(segment.k),
        v=cut(segment.v),
        valid=cut(segment.valid) & fresh[:, None],
        pos=None if segment.pos is None else cut(segment.pos),
        bias=None if segment.bias is None else cut(segment.bias),
        until=None if segment.until is None else cut(segment.until),
        last=None if segment.last is None else segment.last - begin,
        first=None if segment.first is None else segment.first - begin,
    )


def map_rows(segment: Segment, function: Any) -> Segment:
    """Return the segment with `function` applied to every array that has an axis of rows."""
    return segment._replace(
        q_pos=None if segment.q_pos is None else function(segment.q_pos),
        last=None if segment.last is None else function(segment.last),
        first=None if segment.first is None else function(segment.first),
        row=None if segment.row is None else function(segment.row),
    )


def check(q: Float[Array, "Q H D"], segments: Sequence[Segment], rope: Rope) -> None:
    """Raise ValueError where the shapes of queries, segments and embedding do not fit together."""
    if q.ndim != 3:
        raise ValueError(f"queries must be [Q, H, D], got shape {q.shape}; vmap over streams.")
    rows, heads, dim = q.shape
    if not segments:
        raise ValueError("attention needs at least one segment.")
    if dim % 2 or rope.head_dim != dim:
        raise ValueError(f"queries have head width {dim}, the embedding rotates {rope.head_dim}.")
    groups = segments[0].k.shape[1]
    if heads % groups:
        raise ValueError(f"{heads} query heads cannot be shared by {groups} KV heads evenly.")
    for i, s in enumerate(segments):
        n = s.k.shape[0]
        if s.k.shape != (n, groups, dim) or s.v.shape != s.k.shape:
            raise ValueError(
                f"segment {i} has keys {s.k.shape} and values {s.v.shape}; expected both "
                f"{(n, groups, dim)} ([N, G, D])."
            )
        if s.valid.shape not in ((n, 1), (n, groups)):
            raise ValueError(
                f"segment {i} has valid {s.valid.shape}; expected {(n, 1)} or {(n, groups)}."
            )
        if s.pos is not None and (s.pos.ndim != 3 or s.pos.shape[1] not in (1, groups)):
            raise ValueError(
                f"segment {i} has positions {s.pos.shape}; expected [{n}, 1 or {groups}, A]."
            )
        for name in ("bias", "until"):
            x = getattr(s, name)
            if x is not None and x.shape not in ((n, 1), (n, groups)):
                raise ValueError(
                    f"segment {i} has {name} {x.shape}; expected {(n, 1)} or {(n, groups)}."
                )
        if (s.until is None) != (s.row is None):
            raise ValueError(f"segment {i} needs both `until` and `row`, or neither.")
        for name in ("q_pos", "last", "first", "row"):
            x = getattr(s, name)
            if x is not None and x.shape[0] != rows:
                raise ValueError(
                    f"segment {i} has {name} for {x.shape[0]} rows, but there are {rows} queries."
                )

"""Column sums of attention as a Pallas (Triton) kernel in two levels, without atomics.

A program owns a block of keys of one owner, rotates it once, walks every `splits`-th tile of rows
and writes its partial sums to a place of its own; XLA adds the partial sums. The order of the
additions is fixed, so the result is the same from run to run. For the weights "caote" it holds the
values of its keys too, and reads the outputs of the rows beside their queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxmem.kernels import pallas_body as pb
from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kernels.attend.pallas import joint_lse, segment_lse
from jaxmem.kernels.received.ref import REST
from jaxmem.kernels.segment import Segment, rotated_queries, windowed
from jaxmem.kernels.tiles import Tile, head_mean
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float, Int, Num

PROGRAMS = 264  # two for each multiprocessor of the largest GPUs
HELD = 2**15  # bytes of keys and values that a program holds: 128 keys of width 128 in 16 bits


def _tile(rows: int, width: int, query_size: int, key_size: int, *, values: bool) -> Tile:
    """Return the tile for so many rows.

    `width` is that of a query and a key over the heads of an owner, halves padded, and of the
    values; sizes are bytes of a number. `values`: these are held too, and outputs meet them in a
    product of their own.

    Raises:
      NotImplementedError: if fewer than 16 keys fit, the least that Triton multiplies.
    """
    keys, key_bytes = 64 if values else 128, width * key_size
    held = HELD // 2 if values and key_size == 4 else HELD
    while keys * key_bytes > held:
        keys //= 2
    if keys < 16:
        raise NotImplementedError(
            f"a key of {key_bytes} bytes over all KV heads is too wide for the kernel."
        )
    # Nothing spills from sm_80 to sm_90, and shared memory suffices (experiments/kernels_aot).
    most = 64 if query_size == 2 else 32
    while most > 16 and most * width * query_size > held:
        most //= 2
    return Tile(min(most, pt.power_of_two(rows)), keys)


def _removal(p: Array, out: Array, v: Array) -> Float[Array, "BQ BK"]:
    """Return how far each row's output moves without each key; see `ref.mass`."""
    wide_out, wide_v = out.astype(jnp.float32), v.astype(jnp.float32)
    norms = jnp.sum(wide_v * wide_v, axis=1)[None, :]
    square = jnp.sum(wide_out * wide_out, axis=1)[:, None] - 2.0 * pb.dot(out, v, 1) + norms
    rest = 1.0 - p
    away = jnp.sqrt(jnp.maximum(square, 0.0)) / jnp.maximum(rest, REST)
    return p * jnp.where(rest < REST, jnp.sqrt(norms), away)


def _kernel(tree: Any, partial_ref: Any, *, form: pt.Form, splits: int, weights: str):
    q_ref, shift_ref, out_ref, part, (begin, end) = tree
    block, split = pl.program_id(1), pl.program_id(2)
    index = block * form.tile.keys + lax.iota(jnp.int32, form.tile.keys)
    held = [pb.load_keys(part, index, form, j) for j in range(form.parts)]
    values = None if out_ref is None else pb.load_columns(part.v, index, 0, form.dim)

    def body(i: Array, total: Array) -> Array:
        start = (begin[block] + split + i * splits) * form.tile.rows
        queries = (pb.load_queries(q_ref, start, form, j) for j in range(form.parts))
        s, seen = pb.logits(zip(queries, held, strict=True), part, index, start, form)
        shift = shift_ref[pl.ds(start, form.tile.rows)]
        p = jnp.where(seen, jnp.exp2(s - shift[:, None]), 0.0)
        if weights == "A2v2":  # |v|^2 is a factor of the whole column
            p = p * p
        elif out_ref is not None and values is not None:
            p = _removal(p, out_ref[pl.ds(start, form.tile.rows), :], values)
        return total + jnp.sum(p, axis=0)

    turns = pl.cdiv(end[block] - begin[block] - split, splits)
    zero = jnp.zeros((form.tile.keys,), jnp.float32)
    partial_ref[...] = lax.fori_loop(0, turns, body, zero)


def _row_range(
    part: pt.Part, shift: Float[Array, "C M"], blocks: int, form: pt.Form
) -> tuple[Int[Array, "blocks"], Int[Array, "blocks"]]:
    """Return the tiles of rows [begin, end) outside of which no counted row sees a key block."""
    begin, end = pt.key_range(part, form)
    counted = jnp.any(jnp.isfinite(shift).reshape(form.owners, -1, form.tile.rows), axis=(0, 2))
    at = jnp.arange(blocks, dtype=jnp.int32)[:, None] * form.tile.keys
    sees = (end[None] > at) & (begin[None] < at + form.tile.keys) & counted[None]
    tiles = jnp.arange(form.row_blocks, dtype=jnp.int32)[None]
    first = jnp.min(jnp.where(sees, tiles, form.row_blocks), axis=1)
    return first, jnp.max(jnp.where(sees, tiles + 1, 0), axis=1)


def _columns(
    q: Float[Array, "Q H D"],
    shift: Float[Array, "C M"],
    out: Float[Array, "C M V"] | None,
    segment: Segment,
    *,
    rope: Rope,
    form: pt.Form,
    weights: str,
    interpret: bool,
) -> Float[Array, "C N"]:
    """Return the column sums of one segment for every owner."""
    n = segment.valid.shape[0]
    if n == 0:
        return jnp.zeros((form.owners, 0), jnp.float32)
    blocks = pl.cdiv(n, form.tile.keys)
    splits = min(form.row_blocks, pl.cdiv(PROGRAMS, form.owners * blocks))
    queries = pt.query_rows(rotated_queries(q, segment, rope), form)
    part = pt.part_of(segment, rope, form, values=out is not None)
    limits = _row_range(part, shift, blocks, form)
    sums = pt.call(
        partial(_kernel, form=form, splits=splits, weights=weights),
        (queries, shift, out, part, limits),
        (
            pt.of_owner(queries),
            pt.of_owner(shift),
            None if out is None else pt.of_owner(out),
            pt.part_specs(part, form),
            tuple(map(pt.whole, limits)),
        ),
        name="mass",
        grid=(form.owners, blocks, splits),
        out_shape=jax.ShapeDtypeStruct((splits, form.owners, blocks * form.tile.keys), jnp.float32),
        out_specs=pl.BlockSpec((None, None, form.tile.keys), lambda c, b, s: (s, c, b)),
        warps=8 if (q.dtype.itemsize == 4 and not form.joint) or out is not None else 4,
        stages=pt.stages(form),
        interpret=interpret,
    )
    sums = jnp.sum(sums, axis=0)[:, :n]
    if weights == "A2v2":
        square = jnp.sum(jnp.square(segment.v.astype(jnp.float32)), axis=-1).T
        sums *= jnp.repeat(square, form.owners // form.groups, axis=0)
    return sums


def _form(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    reduce: str,
    rope: Rope,
    *,
    joint: bool,
    values: bool,
    tile: Tile | None,
) -> pt.Form:
    """Return the sizes of the kernel; `q` are head means [Q, G, D] if `joint`."""
    rows, heads, dim = q.shape
    groups, heads = segments[0].k.shape[1], 1 if joint else heads
    owners = 1 if joint else heads if reduce == "head" else groups
    folded = rows * heads // owners
    width = 2 * pt.power_of_two(dim // 2) * (groups if joint else 1)
    if values:
        width += pt.power_of_two(dim)
    of_numbers = q.dtype.itemsize, segments[0].k.dtype.itemsize
    tile = tile or _tile(folded, width, *of_numbers, values=values)
    return pt.Form(folded, owners, groups, dim, tile, joint, rope.softcap)


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
    interpret: bool = False,
) -> tuple[Float[Array, "C N"], ...]:
    """See `kernels.received`. `tile` overrides the size of the tiles; `interpret` is for tests.

    Raises:
      NotImplementedError: for the types and head widths that `attend` does not take, and for
        "mean_logit" where a key over all KV heads is too wide.
    """
    pt.check(q, segments)
    segments = [windowed(s, window) for s in segments]
    joint = form == "mean_logit"
    if joint:
        q = head_mean(q, segments[0].k.shape[1])
    values = weights == "caote"
    sizes = _form(q, segments, reduce, rope, joint=joint, values=values, tile=tile)
    if joint:
        some = [s for s in segments if s.k.shape[0]]
        if not some:
            return tuple(jnp.zeros((1, 0), jnp.float32) for _ in segments)
        lse = joint_lse(q, some, rope=rope, tile=sizes.tile, interpret=interpret)
    assert lse is not None

    # A row that does not count, or sees nothing, is one with an infinite sum: its weights are 0.
    counted = rows[:, None] & jnp.isfinite(lse)
    shift = pt.fold(jnp.where(counted, lse * pt.LOG2E, jnp.inf), sizes.owners)
    shift = pt.pad(shift, 1, sizes.padded, jnp.inf)
    if values:
        assert out is not None
        out = pt.pad(pt.fold(out, sizes.owners), 2, pt.power_of_two(sizes.dim))
        out = pt.pad(out, 1, sizes.padded)
    else:
        out = None
    how = {"rope": rope, "form": sizes, "weights": weights, "interpret": interpret}
    sums = [_columns(q, shift, out, s, **how) for s in segments]
    return over_heads(sums, lse.shape[1], reduce)


def over_heads(
    sums: Sequence[Float[Array, "C N"]], heads: int, reduce: str
) -> tuple[Float[Array, "K N"], ...]:
    """Return the means over heads that `reduce` asks for, of sums over those of each owner."""
    if reduce == "head_mean":
        return tuple(jnp.sum(x, axis=0, keepdims=True) / heads for x in sums)
    return tuple(x / (heads // x.shape[0]) for x in sums) if reduce == "kv_head" else tuple(sums)


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
    interpret: bool = False,
) -> Float[Array, "Q"]:
    """See `jaxmem.kernels.received`; by the kernel of attention, without values.

    The weights of a row on a segment sum to exp(its log-sum-exp over that segment - over all).

    Raises:
      NotImplementedError: for the types and head widths that `attend` does not take.
    """
    pt.check(q, segments)
    chosen = windowed(segments[segment], window)
    if not chosen.k.shape[0]:
        return jnp.zeros(q.shape[:1], jnp.float32)
    if columns is not None:
        chosen = chosen._replace(valid=chosen.valid & (columns != 0)[:, None])
    own = segment_lse(q, chosen, rope=rope, tile=tile, interpret=interpret)
    return jnp.mean(jnp.exp(own - jnp.where(jnp.isfinite(lse), lse, 0.0)), axis=1)

"""Attention over segments as one Pallas (Triton) kernel, with sums of its columns on request.

A program owns a tile of rows of one KV head and walks the key blocks of every segment that its rows
can see, with the running maximum of FlashAttention (arXiv 2205.14135, algorithm 1) in units of
log 2. Keys are rotated as they are loaded, or once before where many tiles of rows share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxmem.kernels import pallas_body as pb
from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kernels.attend import pallas_columns as columns
from jaxmem.kernels.segment import Segment, prerotated, rotated_queries
from jaxmem.kernels.tiles import Tile
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float

REUSE = 16  # tiles of rows from which on keys are rotated once, before the kernel


def _tile(rows: int, bits: int, dim: int, *, sums: bool) -> Tile:
    # Nothing spills from sm_80 to sm_90 (experiments/kernels_aot); float32 takes more registers.
    # With sums of columns widths of 64 and 128 spill 8 to 36 bytes in blocks of 16 keys, and none
    # in blocks of 32; of a width that is padded (80) it is the other way round.
    few = 32 if sums and dim == pt.power_of_two(dim) else 16
    return Tile(min(64, pt.power_of_two(rows)), 64 if bits <= 16 else few)


def _kernel(tree: Any, *outputs: Any, form: pt.Form, which: Sequence[int], values: bool):
    """Attend one tile of rows; `which` names the queries that each segment sees."""
    queries, parts, ranges, counted = tree
    block = _block(pl.program_id(1), form)
    start = block * form.tile.rows
    rows, keys = form.tile
    carry = [jnp.full((rows,), pt.LOWEST, jnp.float32), jnp.zeros((rows,), jnp.float32)]
    if values:
        carry.append(jnp.zeros((rows, pt.power_of_two(form.dim)), jnp.float32))

    for part, (begin, end), ref in zip(parts, ranges, [queries[i] for i in which], strict=True):
        # One head's queries stay in registers; those of a joint head are too wide and are re-read.
        held = None if form.joint else pb.load_queries(ref, start, form, 0)

        def body(i: Any, carry: Any, part: Any = part, ref: Any = ref, held: Any = held):
            top, total, *out = carry
            index = i * keys + lax.iota(jnp.int32, keys)
            products = (
                (held or pb.load_queries(ref, start, form, j), pb.load_keys(part, index, form, j))
                for j in range(form.parts)
            )
            s, seen = pb.logits(products, part, index, start, form)
            s = jnp.where(seen, s, pt.LOWEST)
            high = jnp.maximum(top, jnp.max(s, axis=1))
            # Masked again: a row that has seen nothing has s = high.
            p = jnp.where(seen, jnp.exp2(s - high[:, None]), 0.0)
            decay = jnp.exp2(top - high)
            total = total * decay + jnp.sum(p, axis=1)
            if not out:
                return high, total
            v = pb.load_columns(part.v, index, 0, form.dim)
            return high, total, out[0] * decay[:, None] + pb.dot(p.astype(v.dtype), v, 0)

        first, stop = begin[block] // keys, pl.cdiv(end[block], keys)
        carry = lax.fori_loop(first, stop, body, tuple(carry))

    top, total, *out = carry
    safe = jnp.where(total > 0, total, 1.0)
    lse = jnp.where(total > 0, top / pt.LOG2E + jnp.log(safe), -jnp.inf)
    outputs[0][...] = lse
    if values:
        outputs[1][...] = (out[0] / safe[:, None]).astype(outputs[1].dtype)
    if counted is None:
        return
    counts = (counted.row[pl.ds(start, rows)] != 0) & (total > 0)
    shift, slot = jnp.where(counts, lse * pt.LOG2E, jnp.inf), counted.slot[block]
    for out_ref, part, (begin, end), i in zip(outputs[2:], parts, ranges, which, strict=True):
        limits = begin[block] // keys, pl.cdiv(end[block], keys)
        columns.sweep(out_ref, queries[i], part, limits, shift, (slot, start), form)


def _block(i: Any, form: pt.Form) -> Any:
    """Return the tile of rows of a program: those that see the most keys begin first.

    They are the last rows, and mostly those whose columns are summed.
    """
    return form.row_blocks - 1 - i


def alike(segments: Sequence[Segment]) -> tuple[int, ...]:
    """Return for each segment the first one with the same array of query positions.

    Prefix, memory and chunk mostly share one: their queries are rotated and loaded once. The
    arrays are told apart as objects, so this must see them before a custom rule renames them.
    """
    return tuple([s.q_pos is t.q_pos for t in segments].index(True) for s in segments)


class Options(NamedTuple):
    """What is static about a call; see `kernels.attend.pallas.attend`."""

    rope: Rope
    alike: tuple[int, ...]
    tile: Tile | None
    on_load: bool | None
    interpret: bool
    most: int | None = None  # bound of the rows that count


def form_of(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    options: Options,
    *,
    joint: bool = False,
    sums: bool = False,
) -> pt.Form:
    """Return the sizes of a kernel; `sums`: it also sums columns. The rest is as for `run`."""
    rows, heads, dim = q.shape
    groups = segments[0].k.shape[1]
    folded = rows * (1 if joint else heads // groups)
    bits = 8 * max(q.dtype.itemsize, segments[0].k.dtype.itemsize)
    tile = options.tile or _tile(folded, bits, dim, sums=sums)
    owners = 1 if joint else groups
    return pt.Form(folded, owners, groups, dim, tile, joint, options.rope.softcap)


def run(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    options: Options,
    *,
    joint: bool = False,
    values: bool = True,
    counted: Bool[Array, "Q"] | None = None,
) -> tuple[Any, ...]:
    """Return the folded log-sum-exp [C, M], and with `values` the folded output [C, M, D wide].

    With `counted` also the column sums of these rows, [C, N] of every segment. `joint`: q [Q, G, D]
    are head means, and there is no output.
    """
    rope, alike, most = options.rope, options.alike, options.most
    values = values and not joint
    form = form_of(q, segments, options, joint=joint, sums=counted is not None)
    on_load = form.row_blocks <= REUSE if options.on_load is None else options.on_load
    if not on_load:
        segments = prerotated(segments, rope)
    tile, owners = form.tile, form.owners
    flags = None if counted is None else columns.counted_of(counted, form)

    distinct = sorted(set(alike))
    which = [distinct.index(i) for i in alike]
    queries = [pt.query_rows(rotated_queries(q, segments[i], rope), form) for i in distinct]
    parts = [pt.part_of(s, rope, form, values=values) for s in segments]
    ranges = [pt.key_range(part, form) for part in parts]

    outs = [jax.ShapeDtypeStruct((owners, form.padded), jnp.float32)]
    out_specs = [pl.BlockSpec((None, tile.rows), lambda c, i: (c, _block(i, form)))]
    if values:
        wide = pt.power_of_two(form.dim)
        outs.append(jax.ShapeDtypeStruct((owners, form.padded, wide), q.dtype))
        spec = pl.BlockSpec((None, tile.rows, wide), lambda c, i: (c, _block(i, form), 0))
        out_specs.append(spec)
    keys = [s.valid.shape[0] for s in segments]
    if flags is not None:
        slots = columns.most_tiles(most, q.shape[1] // form.groups, form)
        for n in keys:
            shape = columns.sums_shape(n, slots, form)
            outs.append(jax.ShapeDtypeStruct(shape, jnp.float32))
            out_specs.append(pl.BlockSpec((slots, None, shape[2]), lambda c, i: (0, c, 0)))
    specs = (
        [pt.of_owner(x) for x in queries],
        [pt.part_specs(part, form) for part in parts],
        [(pt.whole(begin), pt.whole(end)) for begin, end in ranges],
        jax.tree.map(pt.whole, flags),
    )
    names = "joint_lse" if joint else "lse", "attend", "attend_mass"
    warps, stages = (8 if tile.rows >= 64 else 4), pt.stages(form)
    narrow = max(x.dtype.itemsize for x in (q, segments[0].k)) == 2
    if values and narrow and flags is None and not on_load:
        # Of eight settings the fastest, or nearly, on an H200 (experiments/gpu); with keys that
        # are rotated on load it spills on sm_80.
        warps, stages = 4, 3
    lse, *more = pt.call(
        partial(_kernel, form=form, which=which, values=values),
        (queries, parts, ranges, flags),
        specs,
        name=names[values + (flags is not None)],
        grid=(owners, form.row_blocks),
        out_shape=outs,
        out_specs=out_specs,
        warps=warps,
        stages=stages,
        interpret=options.interpret,
    )
    if flags is None:
        return lse, *more
    return lse, more[0], columns.added(more[1:], keys, flags)

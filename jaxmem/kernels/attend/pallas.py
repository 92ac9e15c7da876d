"""Attention over segments as one Pallas (Triton) kernel, and its gradient by recomputation.

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
from jaxmem.kernels.segment import Segment, rotated_keys, rotated_queries, windowed
from jaxmem.kernels.tiles import Tile, fold_keys, logits, over_rows, tile_of
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float

REUSE = 16  # tiles of rows from which on keys are rotated once, before the kernel


def _tile(rows: int, bits: int) -> Tile:
    # Nothing spills from sm_80 to sm_90 (experiments/kernels_aot); float32 takes more registers.
    return Tile(min(64, pt.power_of_two(rows)), 64 if bits <= 16 else 16)


def _kernel(tree: Any, *outputs: Any, form: pt.Form, which: Sequence[int], values: bool):
    """Attend one tile of rows; `which` names the queries that each segment sees."""
    queries, parts, ranges = tree
    block = pl.program_id(1)
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
            s = jnp.zeros((rows, keys), jnp.float32)
            for j in range(form.parts):
                q = held or pb.load_queries(ref, start, form, j)
                s += pb.product(q, pb.load_keys(part, index, form, j))
            seen = pb.load_seen(part, index, start, form)
            s = jnp.where(seen, pb.with_bias(s * form.to_log2, part, index), pt.LOWEST)
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
    outputs[0][...] = jnp.where(total > 0, top / pt.LOG2E + jnp.log(safe), -jnp.inf)
    if values:
        outputs[1][...] = (out[0] / safe[:, None]).astype(outputs[1].dtype)


def _alike(segments: Sequence[Segment]) -> tuple[int, ...]:
    """Return for each segment the first one with the same array of query positions.

    Prefix, memory and chunk mostly share one: their queries are rotated and loaded once. The
    arrays are told apart as objects, so this must see them before a custom rule renames them.
    """
    return tuple([s.q_pos is t.q_pos for t in segments].index(True) for s in segments)


class _Options(NamedTuple):
    """What is static about a call."""

    rope: Rope
    alike: tuple[int, ...]
    tile: Tile | None
    on_load: bool | None
    interpret: bool


def _run(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    options: _Options,
    *,
    joint: bool = False,
    values: bool = True,
) -> tuple[Array, ...]:
    """Return the folded log-sum-exp [C, M], and with `values` the folded output [C, M, D wide].

    `joint`: q [Q, G, D] are head means, and there is no output.
    """
    rope, alike, tile, on_load, interpret = options
    values = values and not joint
    rows, heads, dim = q.shape
    groups = segments[0].k.shape[1]
    owners = 1 if joint else groups
    folded = rows * (1 if joint else heads // groups)
    tile = tile or _tile(folded, 8 * max(q.dtype.itemsize, segments[0].k.dtype.itemsize))
    form = pt.Form(folded, owners, groups, dim, tile, joint)
    if on_load is None:
        on_load = form.row_blocks <= REUSE

    distinct = sorted(set(alike))
    which = [distinct.index(i) for i in alike]
    queries = [pt.query_rows(rotated_queries(q, segments[i], rope), form) for i in distinct]
    if not on_load:
        segments = [s._replace(k=rotated_keys(s, rope), pos=None) for s in segments]
    parts = [pt.part_of(s, rope, form, values=values) for s in segments]
    ranges = [pt.key_range(part, form) for part in parts]

    outs = [jax.ShapeDtypeStruct((owners, form.padded), jnp.float32)]
    out_specs = [pl.BlockSpec((None, tile.rows), lambda c, i: (c, i))]
    if values:
        wide = pt.power_of_two(dim)
        outs.append(jax.ShapeDtypeStruct((owners, form.padded, wide), q.dtype))
        out_specs.append(pl.BlockSpec((None, tile.rows, wide), lambda c, i: (c, i, 0)))
    specs = (
        [pt.of_owner(x) for x in queries],
        [pt.part_specs(part, form) for part in parts],
        [(pt.whole(begin), pt.whole(end)) for begin, end in ranges],
    )
    return pt.call(
        partial(_kernel, form=form, which=which, values=values),
        (queries, parts, ranges),
        specs,
        name="attend" if values else "joint_lse" if joint else "lse",
        grid=(owners, form.row_blocks),
        out_shape=outs,
        out_specs=out_specs,
        warps=8 if tile.rows >= 64 else 4,
        stages=pt.stages(form),
        interpret=interpret,
    )


def joint_lse(
    q: Float[Array, "Q G D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    tile: Tile | None = None,
    interpret: bool = False,
) -> Float[Array, "Q 1"]:
    """Return the log-sum-exp of head-mean logits; `q` are head means in float32."""
    options = _Options(rope, _alike(segments), tile, None, interpret)
    return pt.unfold(_run(q, segments, options, joint=True)[0], q.shape[0], 1)


def segment_lse(
    q: Float[Array, "Q H D"],
    segment: Segment,
    *,
    rope: Rope,
    tile: Tile | None = None,
    interpret: bool = False,
) -> Float[Array, "Q H"]:
    """Return the log-sum-exp of every row's logits against one segment alone."""
    rows = q.shape[0] * q.shape[1] // segment.k.shape[1]
    # Half the keys of attention in 16 bits: without values, 64 spill at width 80 on sm_80.
    keys = 32 if q.dtype.itemsize == segment.k.dtype.itemsize == 2 else 16
    tile = tile or Tile(min(64, pt.power_of_two(rows)), keys)
    options = _Options(rope, (0,), tile, None, interpret)
    return pt.unfold(_run(q, [segment], options, values=False)[0], *q.shape[:2])


def _primal(q: Array, segments: Sequence[Segment], options: _Options) -> tuple[Array, Array]:
    rows, heads, dim = q.shape
    lse, out = _run(q, segments, options)
    return pt.unfold(out, rows, heads)[..., :dim], pt.unfold(lse, rows, heads)


def _forward(q: Array, segments: Sequence[Segment], options: _Options):
    out, lse = _primal(q, segments, options)
    return (out, lse), (q, segments, out, lse)


def _pull(
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


def _backward(options: _Options, kept: Any, cotangents: Any):
    q, segments, out, lse = kept
    dout, dlse = cotangents
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - dlse
    delta = jnp.where(jnp.isfinite(lse), delta, 0.0)
    pull = partial(_pull, lse=lse, dout=dout.astype(q.dtype), delta=delta, rope=options.rope)
    return jax.vjp(pull, q, segments)[1](jnp.ones((), jnp.float32))


_attend = jax.custom_vjp(_primal, nondiff_argnums=(2,))
_attend.defvjp(_forward, _backward)


def attend(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    window: int | None = None,
    tile: Tile | None = None,
    on_load: bool | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"]]:
    """See `jaxmem.kernels.attend`.

    `tile` overrides the size of the tiles (powers of two, at least 16). `on_load`: rotate keys as
    they are loaded (True), once before into a copy (False), or whichever by the number of tiles of
    rows that read a key (None). `interpret`: run on any device, slowly, for tests.

    Raises:
      NotImplementedError: for types and head widths that the kernel does not take.
    """
    pt.check(q, segments)
    segments = tuple(windowed(s, window) for s in segments if s.k.shape[0])
    if not segments:
        return jnp.zeros_like(q), jnp.full(q.shape[:2], -jnp.inf, jnp.float32)
    return _attend(q, segments, _Options(rope, _alike(segments), tile, on_load, interpret))

"""One layer of the streaming decoder: [prefix | memory | chunk] under one softmax, and reports.

It reports to the memory exactly what its `reads` asks for; a memory that needs no attention
statistics costs none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import tokens as tk
from jaxmem.kernels.attend import attend
from jaxmem.kernels.mass import mass, row_mass
from jaxmem.kernels.segment import Segment
from jaxmem.memory.base import Mass, Rows, Seen, View
from jaxmem.models.decoder import finish, layer_at, qkv
from jaxmem.models.program import Program
from jaxmem.tokens import Tokens
from jaxmem.typing import Array, Float, Hidden, Int, Num, Params


def segment(
    tokens: Tokens, origin: Num[Array, "A"], q_pos: Num[Array, "Q A"] | None, **more
) -> Segment:
    """Return tokens as an attention segment, with positions relative to `origin`."""
    away = origin.astype(tokens.pos.dtype).reshape(1, 1, -1)
    return Segment(tokens.k, tokens.v, tk.valid(tokens), tokens.pos - away, q_pos, **more)


class Attended(NamedTuple):
    """A layer's outputs and what it reports."""

    h: Hidden
    probe: Float[Array, "n Q E"] | None
    seen: Seen


def layer_step(
    params: Params,
    program: Program,
    layer: Int[Array, ""],
    h: Hidden,
    view: View,
    rows: Rows,
    clock: Int[Array, ""],
    prefix: Tokens | None = None,
    probes: Rows | None = None,
) -> Attended:
    """Pass a chunk, and the probes behind it, through one layer.

    Args:
      params: decoder weights (stacked layers; indexed by `layer`, which may be traced).
      program: static description.
      layer: l.
      h: layer input [T, E].
      view: what the chunk attends to, and where it begins.
      rows: the chunk.
      clock: arrival number of its first row.
      prefix: this layer's pinned tokens [P], or None.
      probes: probes with this layer's input in `x` [n, Q, E], or None.
    """
    config, reads = program.config, program.memory.reads
    weights = layer_at(params, layer)
    q, k, v = qkv(weights, config, h)
    n = tk.count(view.tokens)
    fresh = fresh_tokens(k, v, view, rows, clock)

    # Row t stands behind the n valid slots: pool index n + t. Only a sliding window cares.
    t = jnp.arange(rows.kind.shape[0], dtype=jnp.int32)
    behind = n + t if reads.window is not None else None
    segments = [
        segment(view.tokens, view.base, rows.rel, last=behind),
        segment(fresh, view.base, rows.rel, last=t),
    ]
    if prefix is not None:
        segments.append(segment(prefix, view.base, rows.rel))
    if view.far is not None and view.far_pos is not None:
        far_q = jnp.broadcast_to(view.far_pos[None], rows.rel.shape)
        segments.append(segment(view.far, jnp.zeros_like(view.base), far_q))
    out, lse = attend(q, segments, rope=config.rope, window=reads.window)
    probed = _probe(weights, program, view, rows, fresh, prefix, probes)

    seen = Seen(
        tokens=fresh,
        base=view.base,
        end=view.base + rows.span.astype(view.base.dtype),
        layer=jnp.asarray(layer, jnp.int32),
        hidden=h if reads.hidden else None,
        mass=_mass(program, q, segments, lse, rows) if reads.mass else None,
        rows=_row_mass(program, q, segments, lse, view) if reads.rows else None,
        probe=None if probed is None else probed.mass,
        probe_rows=None if probed is None else probed.rows,
        queries=q if reads.queries else None,
        output=_output(weights, program) if reads.output else None,
    )
    h = add_deep(finish(weights, config, h, out), rows.deep, layer)
    return Attended(h, None if probed is None else probed.h, seen)


def fresh_tokens(
    k: Float[Array, "T G D"],
    v: Float[Array, "T G D"],
    view: View,
    rows: Rows,
    clock: Int[Array, ""],
) -> Tokens:
    """Return the chunk's tokens as the memory stores them (Gm as the view has it)."""
    like = view.tokens
    length, groups = k.shape[0], like.kind.shape[1]
    pos = view.base.astype(like.pos.dtype)[None] + rows.rel.astype(like.pos.dtype)
    order = clock + jnp.arange(length, dtype=jnp.int32)
    real = rows.kind != tk.EMPTY

    def spread(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (length, groups, *x.shape[1:]))

    return Tokens(
        k=k.astype(like.k.dtype),
        v=v.astype(like.v.dtype),
        pos=spread(pos),
        order=spread(jnp.where(real, order, 0)),
        kind=spread(rows.kind.astype(jnp.int8)),
    )


def _output(weights: Params, program: Program) -> Float[Array, "H D E"]:
    config = program.config
    return weights["o"]["kernel"].reshape(config.heads, config.head_dim, config.width)


def _mass(program: Program, q: Array, segments: list, lse: Array, rows: Rows) -> Mass:
    """Return the mass that memory and chunk receive from the chunk's (last) rows."""
    reads = program.memory.reads
    real = rows.kind != tk.EMPTY
    if reads.kind is not None:
        asked = rows.kind == reads.kind
        real = jnp.where(jnp.any(asked), asked, real)
    counted = real
    if reads.last is not None:
        later = jnp.sum(real) - jnp.cumsum(real)
        counted = real & (later < reads.last)
    columns = mass(
        q,
        segments,
        lse,
        rope=program.config.rope,
        rows=counted,
        form=reads.mass or "softmax",
        reduce=_reduce(segments),
        window=reads.window,
    )
    return Mass(columns[0], columns[1])


def _reduce(segments: list) -> Literal["head_mean", "kv_head"]:
    return "head_mean" if segments[0].valid.shape[1] == 1 else "kv_head"


def _row_mass(program: Program, q: Array, segments: list, lse: Array, view: View) -> Array:
    """Return each row's mass on the memory, which is the first segment."""
    rope, window = program.config.rope, program.memory.reads.window
    columns = view.counted
    return row_mass(q, segments, lse, rope=rope, segment=0, columns=columns, window=window)


class Probed(NamedTuple):
    """Probes behind one layer: their next input, and the mass they gave."""

    h: Float[Array, "n Q E"]
    mass: Mass  # leading axis [n]
    rows: Int[Array, "n"]


def _probe(
    weights: Params,
    program: Program,
    view: View,
    rows: Rows,
    fresh: Tokens,
    prefix: Tokens | None,
    probes: Rows | None,
) -> Probed | None:
    """Let every probe look at [prefix | memory | chunk | itself] as if it came behind the chunk.

    By causality a "causal" probe is the same as a separate pass over [memory | chunk]. Probes that
    the view does not ask for cost nothing: their input stays as it is and their mass is 0.
    """
    config, kind = program.config, program.memory.reads.probe
    if kind is None or probes is None:
        return None
    begin = rows.span.astype(view.base.dtype)
    if view.probe is not None:
        begin = view.probe - view.base

    def one(probe: Rows) -> tuple[Hidden, Mass, Array]:
        q, k, v = qkv(weights, config, probe.x)
        own = fresh_tokens(k, v, view, probe, jnp.zeros((), jnp.int32))
        place = begin[None] + probe.rel.astype(begin.dtype)
        own = own._replace(pos=jnp.broadcast_to(place[:, None], own.pos.shape))
        t = jnp.arange(place.shape[0], dtype=jnp.int32)
        segments = [
            segment(view.tokens, view.base, place),
            segment(fresh, view.base, place),
            segment(own, jnp.zeros_like(view.base), place, last=t if kind == "causal" else None),
        ]
        if prefix is not None:
            segments.append(segment(prefix, view.base, place))
        out, lse = attend(q, segments, rope=config.rope)
        real = probe.kind != tk.EMPTY
        columns = mass(
            q, segments, lse, rope=config.rope, rows=real, form="softmax", reduce=_reduce(segments)
        )
        h = finish(weights, config, probe.x, out) if kind == "causal" else probe.x
        return h, Mass(columns[0], columns[1]), jnp.sum(real, dtype=jnp.int32)

    if view.probing is None:
        return Probed(*jax.vmap(one)(probes))
    if view.probing.shape != probes.kind.shape[:1]:
        raise ValueError(
            f"memory {program.memory.name!r} reads {view.probing.shape[0]} probes, got "
            f"{probes.kind.shape[0]}."
        )

    def idle(probe: Rows) -> tuple[Hidden, Mass, Array]:
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, probe)[1])
        return probe.x, nothing, jnp.sum(probe.kind != tk.EMPTY, dtype=jnp.int32)

    def either(item: tuple[Array, Rows]) -> tuple[Hidden, Mass, Array]:
        return jax.lax.cond(item[0], one, idle, item[1])

    return Probed(*jax.lax.map(either, (view.probing, probes)))


def add_deep(h: Hidden, deep: Float[Array, "n T E"] | None, layer: Int[Array, ""]) -> Hidden:
    """Add DeepStack features after layer l < n (Qwen3-VL); text rows hold zeros."""
    if deep is None or not deep.shape[0]:
        return h
    extra = jax.lax.dynamic_index_in_dim(
        deep, jnp.minimum(layer, deep.shape[0] - 1), 0, keepdims=False
    )
    return h + jnp.where(layer < deep.shape[0], extra, jnp.zeros((), extra.dtype)).astype(h.dtype)

"""One layer of the streaming decoder: [prefix | memory | chunk] under one softmax, and reports.

It reports to the memory exactly what its `requires` asks for; a memory that needs no attention
statistics costs none.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.decoder.decoder import finish, layer_at, qkv
from jaxmem.decoder.program import Program
from jaxmem.kernels.attend import attend
from jaxmem.kernels.received import mass, row_mass
from jaxmem.kernels.segment import Segment
from jaxmem.kv import KV
from jaxmem.memory.base import Chunk, Embeds, Received, View
from jaxmem.typing import Array, Float, Hidden, Int, Num, Params


def segment(
    tokens: KV, origin: Num[Array, "A"], q_pos: Num[Array, "Q A"] | None, **more
) -> Segment:
    """Return tokens as an attention segment, with positions relative to `origin`."""
    away = origin.astype(tokens.pos.dtype).reshape(1, 1, -1)
    return Segment(tokens.k, tokens.v, tk.valid(tokens), tokens.pos - away, q_pos, **more)


class Attended(NamedTuple):
    """A layer's outputs and what it reports."""

    h: Hidden
    probe: Float[Array, "n Q E"] | None
    seen: Chunk


def layer_step(
    params: Params,
    program: Program,
    layer: Int[Array, ""],
    h: Hidden,
    view: View,
    rows: Embeds,
    clock: Int[Array, ""],
    prefix: KV | None = None,
    probes: Embeds | None = None,
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
    config, requires = program.config, program.memory.requires
    weights = layer_at(params, layer)
    q, k, v = qkv(weights, config, h)
    n = tk.count(view.tokens)
    fresh = fresh_tokens(k, v, view, rows, clock)

    # Row t stands behind the n valid slots: pool index n + t. Only a sliding window cares.
    t = jnp.arange(rows.modality.shape[0], dtype=jnp.int32)
    behind = n + t if requires.window is not None else None
    segments = [
        segment(view.tokens, view.base, rows.pos, last=behind),
        segment(fresh, view.base, rows.pos, last=t),
    ]
    if prefix is not None:
        segments.append(segment(prefix, view.base, rows.pos))
    if view.far is not None and view.far_pos is not None:
        far_q = jnp.broadcast_to(view.far_pos[None], rows.pos.shape)
        segments.append(segment(view.far, jnp.zeros_like(view.base), far_q))
    out, lse = attend(q, segments, rope=config.rope, window=requires.window)
    probed = _probe(weights, program, view, rows, fresh, prefix, probes)

    seen = Chunk(
        tokens=fresh,
        base=view.base,
        next_pos=view.base + rows.advance.astype(view.base.dtype),
        layer=jnp.asarray(layer, jnp.int32),
        hidden=h if requires.hidden else None,
        mass=_mass(program, q, segments, lse, rows) if requires.mass else None,
        rows=_row_mass(program, q, segments, lse, view) if requires.rows else None,
        probe=None if probed is None else probed.mass,
        probe_rows=None if probed is None else probed.rows,
        queries=q if requires.queries else None,
        output=_output(weights, program) if requires.output else None,
    )
    h = add_deep(finish(weights, config, h, out), rows.deepstack, layer)
    return Attended(h, None if probed is None else probed.h, seen)


def fresh_tokens(
    k: Float[Array, "T G D"],
    v: Float[Array, "T G D"],
    view: View,
    rows: Embeds,
    clock: Int[Array, ""],
) -> KV:
    """Return the chunk's tokens as the memory stores them (Gm as the view has it)."""
    like = view.tokens
    length, groups = k.shape[0], like.modality.shape[1]
    pos = view.base.astype(like.pos.dtype)[None] + rows.pos.astype(like.pos.dtype)
    order = clock + jnp.arange(length, dtype=jnp.int32)
    real = rows.modality != tk.EMPTY

    def spread(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (length, groups, *x.shape[1:]))

    return KV(
        k=k.astype(like.k.dtype),
        v=v.astype(like.v.dtype),
        pos=spread(pos),
        index=spread(jnp.where(real, order, 0)),
        modality=spread(rows.modality.astype(jnp.int8)),
    )


def _output(weights: Params, program: Program) -> Float[Array, "H D E"]:
    config = program.config
    return weights["o"]["kernel"].reshape(config.heads, config.head_dim, config.width)


def _mass(program: Program, q: Array, segments: list, lse: Array, rows: Embeds) -> Received:
    """Return the mass that memory and chunk receive from the chunk's (last) rows."""
    requires = program.memory.requires
    real = rows.modality != tk.EMPTY
    if requires.modality is not None:
        asked = rows.modality == requires.modality
        real = jnp.where(jnp.any(asked), asked, real)
    counted = real
    if requires.last is not None:
        later = jnp.sum(real) - jnp.cumsum(real)
        counted = real & (later < requires.last)
    columns = mass(
        q,
        segments,
        lse,
        rope=program.config.rope,
        rows=counted,
        form=requires.mass or "softmax",
        reduce=_reduce(segments),
        window=requires.window,
    )
    return Received(columns[0], columns[1])


def _reduce(segments: list) -> Literal["head_mean", "kv_head"]:
    return "head_mean" if segments[0].valid.shape[1] == 1 else "kv_head"


def _row_mass(program: Program, q: Array, segments: list, lse: Array, view: View) -> Array:
    """Return each row's mass on the memory, which is the first segment."""
    rope, window = program.config.rope, program.memory.requires.window
    columns = view.counted
    return row_mass(q, segments, lse, rope=rope, segment=0, columns=columns, window=window)


class Probed(NamedTuple):
    """Probes behind one layer: their next input, and the mass they gave."""

    h: Float[Array, "n Q E"]
    mass: Received  # leading axis [n]
    rows: Int[Array, "n"]


def _probe(
    weights: Params,
    program: Program,
    view: View,
    rows: Embeds,
    fresh: KV,
    prefix: KV | None,
    probes: Embeds | None,
) -> Probed | None:
    """Let every probe look at [prefix | memory | chunk | itself] as if it came behind the chunk.

    By causality a "causal" probe is the same as a separate pass over [memory | chunk]. Probes that
    the view does not ask for cost nothing: their input stays as it is and their mass is 0.
    """
    config, kind = program.config, program.memory.requires.probe
    if kind is None or probes is None:
        return None
    begin = rows.advance.astype(view.base.dtype)
    if view.probe is not None:
        begin = view.probe - view.base

    def one(probe: Embeds) -> tuple[Hidden, Received, Array]:
        q, k, v = qkv(weights, config, probe.x)
        own = fresh_tokens(k, v, view, probe, jnp.zeros((), jnp.int32))
        place = begin[None] + probe.pos.astype(begin.dtype)
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
        real = probe.modality != tk.EMPTY
        columns = mass(
            q, segments, lse, rope=config.rope, rows=real, form="softmax", reduce=_reduce(segments)
        )
        h = finish(weights, config, probe.x, out) if kind == "causal" else probe.x
        return h, Received(columns[0], columns[1]), jnp.sum(real, dtype=jnp.int32)

    if view.probing is None:
        return Probed(*jax.vmap(one)(probes))
    if view.probing.shape != probes.modality.shape[:1]:
        raise ValueError(
            f"memory {program.memory.name!r} reads {view.probing.shape[0]} probes, got "
            f"{probes.modality.shape[0]}."
        )

    def idle(probe: Embeds) -> tuple[Hidden, Received, Array]:
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, probe)[1])
        return probe.x, nothing, jnp.sum(probe.modality != tk.EMPTY, dtype=jnp.int32)

    def either(item: tuple[Array, Embeds]) -> tuple[Hidden, Received, Array]:
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

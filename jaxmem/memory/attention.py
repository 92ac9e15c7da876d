"""Attention with a memory: [prefix | sinks | memory | chunk] under one softmax, and its reports.

The parts (`attend_view`, `attend_probe`) are what this package's own decoder is made of; decoders
that are not ours use `jaxmem.memory.foreign`. A memory is told exactly what its `requires` names;
one that needs no attention statistics costs none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.kernels.attend import attend as attend_segments
from jaxmem.kernels.attend_mass import attend_mass
from jaxmem.kernels.received import row_mass
from jaxmem.kernels.segment import Segment, prerotated
from jaxmem.kv import KV
from jaxmem.memory.exchange import Chunk, Embeds, Received, Requires, View
from jaxmem.memory.parts.retained import Held, held_of, retention, until
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float, Hidden, Int, Num, Params


def segment(
    kv: KV, origin: Num[Array, "A"], q_pos: Num[Array, "Q A"] | None, **more: Any
) -> Segment:
    """Return tokens as an attention segment, with positions relative to `origin`."""
    away = origin.astype(kv.pos.dtype).reshape(1, 1, -1)
    return Segment(kv.k, kv.v, kvs.valid(kv), kv.pos - away, q_pos, **more)


def begin_of(base: Num[Array, "A"], question: Embeds) -> Num[Array, "A"]:
    """Return where a question begins: at the view's base, or as its `start` says."""
    if question.start is None:
        return base
    return jnp.broadcast_to(jnp.max(base + question.start.astype(base.dtype)), base.shape)


def fresh_kv(
    k: Float[Array, "T G D"],
    v: Float[Array, "T G D"],
    view: View,
    embeds: Embeds,
    clock: Int[Array, ""],
) -> KV:
    """Return a chunk's tokens as the memory stores them (Gm as the view has it)."""
    like = view.kv
    length, groups = k.shape[0], like.modality.shape[1]
    pos = _places(view, embeds)
    index = clock + jnp.arange(length, dtype=jnp.int32)
    real = embeds.modality != kvs.EMPTY

    def spread(x: Array) -> Array:
        return jnp.broadcast_to(x[:, None], (length, groups, *x.shape[1:]))

    return KV(
        k=k.astype(like.k.dtype),
        v=v.astype(like.v.dtype),
        pos=spread(pos),
        index=spread(jnp.where(real, index, 0)),
        modality=spread(embeds.modality.astype(jnp.int8)),
    )


def _places(view: View, embeds: Embeds) -> Num[Array, "T A"]:
    """Return the positions of a chunk's rows."""
    dtype = view.kv.pos.dtype
    return view.base.astype(dtype)[None] + embeds.pos.astype(dtype)


def one_place(fresh: KV) -> KV:
    """Return a chunk's tokens, which all heads hold at the same positions, with these once."""
    return fresh._replace(pos=fresh.pos[:, :1])


def attend_view(
    requires: Requires,
    rope: Rope,
    view: View,
    q: Float[Array, "T H D"],
    k: Float[Array, "T G D"],
    v: Float[Array, "T G D"],
    embeds: Embeds,
    clock: Int[Array, ""],
    *,
    prefix: KV | None = None,
    hidden: Hidden | None = None,
    output: Float[Array, "H D E"] | None = None,
    scorer: Params | None = None,
) -> tuple[Float[Array, "T H D"], Chunk, list[Segment]]:
    """Attend a chunk's rows to what a memory shows, and report what the memory requires.

    Where more than the attention reads the keys they are turned, once for all.

    Args:
      requires: of the memory.
      rope: rotary embedding of width D.
      view: what the chunk attends to, and where it begins.
      q: queries before rotation.
      k: keys before rotation.
      v: values.
      embeds: the chunk's positions and modalities (`x` is not read).
      clock: arrival number of its first row.
      prefix: this layer's pinned tokens [P], or None.
      hidden: the layer's input, if `requires.hidden`.
      output: the layer's output projection, if `requires.output`.
      scorer: weights of the score of values, if `requires.retention`.

    Returns:
      The output, the report, and the segments, for probes that attend to the same keys.
    """
    # Row t comes after the n valid slots: pool entry n + t. Only a sliding window cares.
    n, t = kvs.count(view.kv), jnp.arange(embeds.modality.shape[0], dtype=jnp.int32)
    fresh = fresh_kv(k, v, view, embeds, clock)
    once = fresh._replace(pos=_places(view, embeds)[:, None])  # all heads hold it there
    scored = None if requires.retention is None or scorer is None else retention(scorer, v)
    held, own = biases(held_of(view), scored, embeds.modality, t)
    segments = [
        segment(view.kv, view.base, embeds.pos, last=n + t if requires.window else None, **held),
        segment(once, view.base, embeds.pos, last=t, **own),
    ]
    if prefix is not None:
        bias = prefix_bias(held_of(view), scorer, prefix)
        segments.append(segment(prefix, view.base, embeds.pos, bias=bias))
    if view.sinks is not None:
        place = jnp.broadcast_to(view.sinks.pos[None], embeds.pos.shape)
        segments.append(segment(view.sinks.kv, jnp.zeros_like(view.base), place))
    if requires.attention is not None or requires.given or requires.probes is not None:
        segments = prerotated(segments, rope)  # once for all that read them
    more = {"rope": rope, "window": requires.window}
    received = given = None
    if requires.attention is None:
        out, lse = attend_segments(q, segments, **more)
    else:
        rows, form = counted_rows(requires, embeds), requires.attention.form
        how = {"last": requires.attention.last, "form": form, "reduce": _reduce(segments), **more}
        out, lse, columns = attend_mass(q, segments, rows=rows, **how)
        received = Received(columns[0], columns[1])
    if requires.given:
        given = row_mass(q, segments, lse, segment=0, columns=view.counted, **more)
    chunk = Chunk(
        kv=fresh,
        next_pos=view.base + embeds.advance.astype(view.base.dtype),
        hidden=hidden if requires.hidden else None,
        received=received,
        given=given,
        queries=q if requires.queries else None,
        output=output if requires.output else None,
        retention=scored,
    )
    return out, chunk, segments


def biases(
    held: Held | None,
    scored: Float[Array, "T G"] | None,
    modality: Int[Array, "T"],
    row: Int[Array, "Q"],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return what is said of the keys that are held, and of rows' own, as fields of `Segment`.

    Args:
      held: what is held.
      scored: scores of values of the rows' own tokens.
      modality: of these tokens.
      row: which of them the queries are.
    """
    if held is None:
        return {}, {}
    if held.quotas is None or scored is None:
        return {"bias": held.bias}, {}
    ends = until(held, scored, modality)
    both = zip((held.bias, scored), ends, strict=True)
    theirs, own = ({"bias": bias, "until": end, "row": row} for bias, end in both)
    return theirs, own


def prefix_bias(held: Held | None, scorer: Params | None, prefix: KV) -> Float[Array, "P G"] | None:
    """Return what is added to the logits of pinned tokens, which compete with none."""
    competes = held is not None and held.quotas is not None and scorer is not None
    return retention(scorer, prefix.v) if competes else None


def counted_rows(requires: Requires, embeds: Embeds) -> Array:
    """Return which rows [T] give the attention that a memory asks for, of which the last count."""
    asked, real = requires.attention, embeds.modality != kvs.EMPTY
    assert asked is not None
    if asked.modality is not None:
        these = embeds.modality == asked.modality
        real = jnp.where(jnp.any(these), these, real)
    return real


def attend_probe(
    form: Literal["causal", "embedding"],
    rope: Rope,
    view: View,
    fresh: KV,
    advance: Num[Array, "A"],
    probe: Embeds,
    q: Float[Array, "Q H D"],
    k: Float[Array, "Q G D"],
    v: Float[Array, "Q G D"],
    prefix: KV | None = None,
    segments: Sequence[Segment] | None = None,
) -> tuple[Float[Array, "Q H D"], Received]:
    """Attend one probe to [prefix | memory | chunk | itself] as if it came after the chunk.

    By causality a "causal" probe is the same as a separate pass over [memory | chunk].

    Args:
      form: of the probe, see `Probes`.
      rope: rotary embedding.
      view: what the chunk attended to.
      fresh: the chunk's tokens [T].
      advance: how far the chunk advances the position.
      probe: positions and modalities of its rows.
      q: queries before rotation.
      k: keys before rotation.
      v: values.
      prefix: this layer's pinned tokens, or None.
      segments: what the chunk attended to (`attend_view`), with keys that are turned already.
    """
    own = fresh_kv(k, v, view, probe, jnp.zeros((), jnp.int32))
    begin = advance.astype(view.base.dtype)
    place = begin[None] + probe.pos.astype(begin.dtype)
    own = own._replace(pos=place[:, None])
    t = jnp.arange(place.shape[0], dtype=jnp.int32)
    if segments is None:
        past = [segment(kv, view.base, place) for kv in (view.kv, one_place(fresh))]
        past += [] if prefix is None else [segment(prefix, view.base, place)]
    else:  # all of it lies before the probe
        past = [
            Segment(x.k, x.v, x.valid, x.pos, place) for x in segments[: 2 + (prefix is not None)]
        ]
    last = t if form == "causal" else None
    past.append(segment(own, jnp.zeros_like(view.base), place, last=last))
    real = probe.modality != kvs.EMPTY
    out, _, columns = attend_mass(q, past, rope=rope, rows=real, reduce=_reduce(past))
    return out, Received(columns[0], columns[1])


def _reduce(segments: list[Segment]) -> Literal["head_mean", "kv_head"]:
    return "head_mean" if segments[0].valid.shape[1] == 1 else "kv_head"

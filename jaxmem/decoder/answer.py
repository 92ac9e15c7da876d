"""A question: prefilled over what the memory recalls, then answered token by token.

Nothing moves while an answer is written, so the recalled keys are rotated once, in the prefill,
and every later row reads the rotated copy. The stream's carry is only read.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.decoder.decoder import finish, layer_at, qkv
from jaxmem.decoder.program import Carry, Program
from jaxmem.decoder.step import check_positions, check_prefix
from jaxmem.kernels.attend import attend
from jaxmem.kernels.segment import Segment, rotated_keys
from jaxmem.kv import KV
from jaxmem.memory import layout as layouts
from jaxmem.memory.attention import begin_of, segment
from jaxmem.memory.bank.bank import of_layer
from jaxmem.memory.base import Embeds, FeatureMemory, Memory, Question, View, at_layer
from jaxmem.rope import angles, rotate
from jaxmem.typing import Array, Float, Hidden, Int, Num, Params, PyTree


class Context(NamedTuple):
    """What the layers of one run attend to while a question is answered (leading axis: layers)."""

    pinned: Segment | None  # the prefix, rotated relative to the view's base
    recalled: Segment  # rotated likewise
    sinks: Segment | None  # rotated to their own positions; their queries are all at `sinks_pos`
    sinks_pos: Num[Array, "l A"] | None


class Tail(NamedTuple):
    """Keys (rotated) and values of the question's rows and of the answer so far."""

    k: Float[Array, "l R G D"]
    v: Float[Array, "l R G D"]


class Dialogue(NamedTuple):
    """A question in progress: one context and one tail per run of layers."""

    context: tuple[Context, ...]
    tail: tuple[Tail, ...]
    rows: Int[Array, ""]  # slots of the tail in use
    next: Num[Array, "A"]  # position of the next row, relative to where the question began


def _attend(
    program: Program,
    q: Float[Array, "Q H D"],
    turn: Float[Array, "Q 1 D/2"],
    context: Context,
    tail: Tail,
    first: Int[Array, ""],
) -> Float[Array, "Q H D"]:
    """Attend queries in rows `first`, `first` + 1, ... to context and tail.

    With a sliding window the pool index of a row is the number of recalled tokens plus its slot;
    the sinks then begin where the window ends.
    """
    window, rope = program.requires.window, program.config.rope
    slot = first + jnp.arange(q.shape[0], dtype=jnp.int32)
    recalled, groups = context.recalled, context.recalled.valid.shape[-1]
    after = None
    if window is not None:
        after = jnp.sum(recalled.valid[:, 0], dtype=jnp.int32) + slot
    # Slots after a row's own are later rows, or padding that a later row will be written over.
    own = Segment(tail.k, tail.v, jnp.ones((len(tail.k), groups), bool), last=slot)
    rows = rotate(q, turn)
    parts = [recalled._replace(last=after), own]
    parts += [] if context.pinned is None else [context.pinned]
    if context.sinks is None or context.sinks_pos is None:
        return attend(rows, parts, rope=rope, window=window)[0]
    # Each segment turns the queries its own way: here all but the sinks by the row's position.
    place = jnp.broadcast_to(context.sinks_pos[None], (q.shape[0], context.sinks_pos.shape[0]))
    sinks = context.sinks
    if after is not None and window is not None:
        sinks = sinks._replace(last=after - window, first=jnp.zeros_like(after))
    near = attend(rows, parts, rope=rope, window=window)
    away = attend(q, [sinks._replace(q_pos=place)], rope=rope)
    return _merge(*near, *away)


def _merge(a: Array, lse_a: Array, b: Array, lse_b: Array) -> Float[Array, "Q H D"]:
    """Join two attention outputs under one softmax by their log-sum-exps [Q, H]."""
    top = jnp.maximum(lse_a, lse_b)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    weight_a, weight_b = jnp.exp(lse_a - top), jnp.exp(lse_b - top)
    total = jnp.maximum(weight_a + weight_b, jnp.finfo(jnp.float32).tiny)
    share_a, share_b = ((w / total)[..., None] for w in (weight_a, weight_b))
    mixed = a.astype(jnp.float32) * share_a + b.astype(jnp.float32) * share_b
    return mixed.astype(a.dtype)


def _context(view: View, prefix: KV | None, program: Program) -> Context:
    """Rotate what was recalled, once, relative to the position where the question begins."""
    rope = program.config.rope

    def turned(kv: KV, origin: Array) -> Segment:
        part = segment(kv, origin, None)
        return Segment(rotated_keys(part, rope), part.v, part.valid)

    sinks = view.sinks
    return Context(
        pinned=None if prefix is None else turned(prefix, view.base),
        recalled=turned(view.kv, view.base),
        sinks=None if sinks is None else turned(sinks.kv, jnp.zeros_like(view.base)),
        sinks_pos=None if sinks is None else sinks.pos,
    )


def _alone(
    params: Params, program: Program, rows: Embeds, prefix: KV | None
) -> tuple[Float[Array, "L Q H D"], KV]:
    """Return every layer's queries (not rotated) and tokens of rows after the prefix alone."""
    config, spec = program.config, program.spec
    t = jnp.arange(rows.modality.shape[0], dtype=jnp.int32)
    begin = jnp.full((spec.axes,), spec.prefix, spec.pos_dtype)
    real = (rows.modality != kvs.EMPTY)[:, None]
    place = (begin[None] + rows.pos.astype(begin.dtype))[:, None]

    def layer(h: Hidden, item: PyTree) -> tuple[Hidden, tuple[Array, KV]]:
        index, pinned = item
        weights = layer_at(params, index)
        q, k, v = qkv(weights, config, h)
        parts = [Segment(k, v, real, rows.pos[:, None], rows.pos, last=t)]
        parts += [] if pinned is None else [segment(pinned, begin, rows.pos)]
        out, _ = attend(q, parts, rope=config.rope)
        tokens = KV(k, v, place, t[:, None], rows.modality[:, None].astype(jnp.int8))
        return finish(weights, config, h, out), (q, tokens)

    index = jnp.arange(config.layers, dtype=jnp.int32)
    return jax.lax.scan(layer, rows.x, (index, prefix))[1]


def first_pass(
    params: Params, program: Program, rows: Embeds, prefix: KV | None
) -> Float[Array, "L Q H D"]:
    """Return every layer's queries (not rotated) of a question that sees only [prefix | itself]."""
    return _alone(params, program, rows, prefix)[0]


def _features(params: Params, program: Program, carry: Carry, prefix: KV | None) -> View:
    """Return what all layers read of a memory of features: a prompt, passed through the decoder.

    It does not depend on the question, so under `vmap` over questions it is computed once.
    """
    assert isinstance(program.memory, FeatureMemory)
    rows = program.memory.read(program.spec, carry.state)
    _, tokens = _alone(params, program, rows, prefix)
    end = program.spec.prefix + rows.advance.astype(program.spec.pos_dtype)
    return View(tokens, jnp.broadcast_to(end, (program.config.layers, *end.shape)))


def prefill(
    params: Params,
    program: Program,
    carry: Carry,
    rows: Embeds,
    *,
    room: int,
    prefix: KV | None = None,
) -> tuple[Dialogue, Hidden]:
    """Pass a question over [prefix | recalled | question] and keep what an answer needs.

    Args:
      params: decoder weights.
      program: static description.
      carry: the stream; only read.
      rows: the question [Q]; padding (modality EMPTY) last, `advance` counts the real rows only.
      room: further rows that may be decoded.
      prefix: pinned tokens [L, P], or None.

    Returns:
      The dialogue, and the last layer's output [Q, E] of the question's rows before the final
      norm.
    """
    check_positions(program, rows)
    check_prefix(program, prefix)
    config, memory, spec = program.config, program.memory, program.spec
    asks = program.requires.question
    real_q = rows.modality != kvs.EMPTY
    query = None
    if asks == "pass":
        query = Question(first_pass(params, program, rows, prefix), real_q, prefix)
    stacked = None
    if isinstance(memory, FeatureMemory):
        stacked = _features(params, program, carry, prefix)
        rows = rows._replace(start=None)  # it follows the features, which are numbered like text
    elif memory.per == "stack":
        stacked = memory.recall(spec, carry.state, query, carry.bank)
    turn = angles(config.rope, rows.pos)[:, None]

    def recall(index: Array, q: Array, pinned: KV | None, window: int) -> View:
        assert program.layout is not None and isinstance(memory, Memory)
        mine = layouts.read(program.layout, carry.state, index, window)
        asking = None
        if asks == "layer":
            asking = Question(q, real_q, pinned)
        elif query is not None:
            asking = Question(at_layer(query.q, index), real_q, pinned)
        return memory.recall(spec, mine, asking, of_layer(carry.bank, index))

    def layer(h: Hidden, item: PyTree, window: int) -> tuple[Hidden, tuple[Context, Tail]]:
        index, pinned, view = item
        weights = layer_at(params, index)
        q, k, v = qkv(weights, config, h)
        view = recall(index, q, pinned, window) if view is None else view
        view = view._replace(base=begin_of(view.base, rows))
        dtype, extra = view.kv.k.dtype, ((0, room), (0, 0), (0, 0))
        tail = Tail(jnp.pad(rotate(k, turn).astype(dtype), extra), jnp.pad(v.astype(dtype), extra))
        context = _context(view, pinned, program)
        out = _attend(program, q, turn, context, tail, jnp.zeros((), jnp.int32))
        return finish(weights, config, h, out), (context, tail)

    h, contexts, tails = rows.x, [], []
    for run in program.runs:
        index = jnp.arange(run.first, run.stop, dtype=jnp.int32)
        pinned = jax.tree.map(lambda x, r=run: x[r.first : r.stop], prefix)
        items = (index, pinned, stacked)
        h, (context, tail) = jax.lax.scan(lambda h, i, w=run.window: layer(h, i, w), h, items)
        contexts.append(context)
        tails.append(tail)
    # An answer is written over the question's padding, which comes after its last real row.
    used = jnp.sum(real_q, dtype=jnp.int32)
    return Dialogue(tuple(contexts), tuple(tails), used, rows.advance), h


def decode(
    params: Params, program: Program, dialogue: Dialogue, x: Float[Array, "E"]
) -> tuple[Dialogue, Float[Array, "E"]]:
    """Pass one more row (the token just answered) and return the last layer's output [E].

    The row is written over the padding of the question, at the first unused slot of the tail; its
    position is the next one of text.
    """
    config = program.config
    turn = angles(config.rope, dialogue.next[None])[:, None]
    h, tails = x[None], []
    for run, context, tail in zip(program.runs, dialogue.context, dialogue.tail, strict=True):

        def layer(h: Hidden, item: PyTree) -> tuple[Hidden, Tail]:
            index, context, tail = item
            weights = layer_at(params, index)
            q, k, v = qkv(weights, config, h)
            at = (dialogue.rows, 0, 0)
            tail = Tail(
                jax.lax.dynamic_update_slice(tail.k, rotate(k, turn).astype(tail.k.dtype), at),
                jax.lax.dynamic_update_slice(tail.v, v.astype(tail.v.dtype), at),
            )
            out = _attend(program, q, turn, context, tail, dialogue.rows)
            return finish(weights, config, h, out), tail

        index = jnp.arange(run.first, run.stop, dtype=jnp.int32)
        h, tail = jax.lax.scan(layer, h, (index, context, tail))
        tails.append(tail)
    step = jnp.asarray(program.spec.step, dialogue.next.dtype)
    after = dialogue._replace(tail=tuple(tails), rows=dialogue.rows + 1, next=dialogue.next + step)
    return after, h[0]

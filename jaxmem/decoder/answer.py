"""A question: prefilled over what the memory recalls, then answered token by token.

Nothing moves while an answer is written, so the recalled keys are rotated once, in the prefill,
and every later row reads the rotated copy. The stream's carry is only read.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.decoder.alone import States, first_pass
from jaxmem.decoder.checks import check_prefix, check_rows, check_weights
from jaxmem.decoder.decoder import finish, layer_in_stack, logits, qkv
from jaxmem.decoder.driving import driver_of
from jaxmem.decoder.layer import state_step
from jaxmem.decoder.placing import whole
from jaxmem.decoder.program import Carry, Program
from jaxmem.decoder.step import zero_padding
from jaxmem.decoder.stretches import Place, through
from jaxmem.kernels.attend import attend
from jaxmem.kernels.segment import Segment, rotated_keys
from jaxmem.kv import EMPTY, KV, TEXT
from jaxmem.memory.attention import begin_of, biases, prefix_bias, segment
from jaxmem.memory.base import at_layer
from jaxmem.memory.exchange import Embeds, View
from jaxmem.memory.parts.retained import Held, held_of, retention
from jaxmem.rope import angles, rotate
from jaxmem.typing import Array, Float, Hidden, Int, Num, Params, PyTree

__all__ = ["Context", "Dialogue", "Tail", "answer_logits", "decode", "first_pass", "prefill"]


class Context(NamedTuple):
    """What layers attend to while a question is answered (leading axis: layers)."""

    pinned: Segment | None  # the prefix, rotated relative to the view's base
    recalled: Segment  # rotated likewise
    sinks: Segment | None  # rotated to their own positions; their queries are all at `sinks_pos`
    sinks_pos: Num[Array, "l A"] | None
    held: Held | None = None  # what is said of what was recalled beside keys and values


class Tail(NamedTuple):
    """Keys (rotated) and values of the question's rows and of the answer so far."""

    k: Float[Array, "l R G D"]
    v: Float[Array, "l R G D"]
    scored: Float[Array, "l R G"] | None = None  # scores of values, where they are added to logits


class Dialogue(NamedTuple):
    """A question in progress: for every stretch of layers what each place of its pattern holds."""

    context: tuple[tuple[Context | None, ...], ...]
    tail: tuple[tuple[Tail | None, ...], ...]
    states: States  # of the layers with a state, after the rows so far
    rows: Int[Array, ""]  # slots of the tail in use
    next: Num[Array, "A"]  # position of the next row, relative to where the question began


def _attend(
    program: Program,
    q: Float[Array, "Q H D"],
    turn: Float[Array, "Q 1 D/2"],
    context: Context,
    tail: Tail,
    first: Int[Array, ""],
    rows: Int[Array, ""],
) -> Float[Array, "Q H D"]:
    """Attend queries in rows `first`, `first` + 1, ... to context and tail, of `rows` real rows.

    With a sliding window the pool index of a row is the number of recalled tokens plus its slot;
    the sinks then begin where the window ends.
    """
    window, rope = program.requires.window, program.config.rope
    slot = first + jnp.arange(q.shape[0], dtype=jnp.int32)
    recalled, groups = context.recalled, context.recalled.valid.shape[-1]
    after = None
    if window is not None:
        after = jnp.sum(recalled.valid[:, 0], dtype=jnp.int32) + slot
    real = jnp.arange(len(tail.k), dtype=jnp.int32) < rows
    theirs, own = biases(context.held, tail.scored, jnp.where(real, TEXT, EMPTY), slot)
    # Slots after a row's own are later rows, or padding that a later row will be written over.
    own = Segment(tail.k, tail.v, jnp.ones((len(tail.k), groups), bool), last=slot, **own)
    turned = rotate(q, turn)
    parts = [recalled._replace(last=after, **theirs), own]
    parts += [] if context.pinned is None else [context.pinned]
    if context.sinks is None or context.sinks_pos is None:
        return attend(turned, parts, rope=rope, window=window)[0]
    # Each segment turns the queries its own way: here all but the sinks by the row's position.
    place = jnp.broadcast_to(context.sinks_pos[None], (q.shape[0], context.sinks_pos.shape[0]))
    sinks = context.sinks
    if after is not None and window is not None:
        sinks = sinks._replace(last=after - window, first=jnp.zeros_like(after))
    near = attend(turned, parts, rope=rope, window=window)
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


def _context(view: View, prefix: KV | None, program: Program, scorer: Params | None) -> Context:
    """Rotate what was recalled, once, relative to the position where the question begins."""
    rope, held = program.config.rope, held_of(view)

    def turned(kv: KV, origin: Array) -> Segment:
        part = segment(kv, origin, None)
        return Segment(rotated_keys(part, rope), part.v, part.valid)

    sinks, pinned = view.sinks, None
    if prefix is not None:
        pinned = turned(prefix, view.base)._replace(bias=prefix_bias(held, scorer, prefix))
    return Context(
        pinned=pinned,
        recalled=turned(view.kv, view.base),
        sinks=None if sinks is None else turned(sinks.kv, jnp.zeros_like(view.base)),
        sinks_pos=None if sinks is None else sinks.pos,
        held=held,
    )


def _scored(
    program: Program, weights: Params, v: Float[Array, "Q G D"]
) -> Float[Array, "Q G"] | None:
    """Return the scores of rows where they are added to logits."""
    return retention(weights["retention"], v) if program.requires.retention == "logits" else None


def prefill(
    params: Params,
    program: Program,
    carry: Carry,
    rows: Embeds,
    *,
    room: int,
    prefix: KV | None = None,
    states: States = (),
    asked: Int[Array, ""] | None = None,
) -> tuple[Dialogue, Hidden]:
    """Pass a question over [prefix | recalled | question] and keep what an answer needs.

    Args:
      params: decoder weights.
      program: static description.
      carry: the stream; only read.
      rows: the question [Q]; padding (modality EMPTY) last, `advance` counts the real rows only.
      room: further rows that may be decoded.
      prefix: pinned tokens [L, P], or None.
      states: of the layers with a state after the prefix, for memories that recall by a first pass
        over [prefix | question]; without, there is no prefix.
      asked: how many rows are the question's own, the others being an answer's; None: all.

    Returns:
      The dialogue, and the last layer's output [Q, E] of the question's rows before the final
      norm.
    """
    check_weights(program, params)
    check_rows(program, rows)
    check_prefix(program, prefix)
    config, driver = program.config, driver_of(program)
    asking = driver.ask(params, carry, zero_padding(rows), prefix, states, asked)
    rows, real = asking.rows, asking.real
    turn = angles(config.rope, rows.pos)[:, None]
    # An answer is written over the question's padding, which comes after its last real row.
    used = jnp.sum(real, dtype=jnp.int32)

    def layer(held: PyTree, place: Place, given: None) -> tuple[PyTree, PyTree]:
        del given
        h, states = whole(program.mesh, held[0]), held[1]
        if place.kind is not None:
            return state_step(params, config, place, h, states, real), None
        weights = layer_in_stack(params, place.layer)
        q, k, v = qkv(weights, config, h)
        view = driver.recall(asking, place, q)
        view = view._replace(base=begin_of(view.base, rows))
        dtype, extra = view.kv.k.dtype, ((0, room), (0, 0), (0, 0))
        scored, scorer = _scored(program, weights, v), weights.get("retention")
        tail = Tail(
            jnp.pad(rotate(k, turn).astype(dtype), extra),
            jnp.pad(v.astype(dtype), extra),
            None if scored is None else jnp.pad(scored, extra[:2]),
        )
        context = _context(view, at_layer(prefix, place.layer), program, scorer)
        out = _attend(program, q, turn, context, tail, jnp.zeros((), jnp.int32), used)
        return (finish(weights, config, h, out), states), (context, tail)

    (h, states), found = through(program.stretches, layer, (rows.x, asking.states))
    contexts, tails = (tuple(tuple(x and x[i] for x in out) for out in found) for i in (0, 1))
    return Dialogue(contexts, tails, states, used, rows.advance), h


def answer_logits(
    params: Params,
    program: Program,
    carry: Carry,
    rows: Embeds,
    *,
    asked: Int[Array, ""] | None = None,
    prefix: KV | None = None,
    states: States = (),
) -> Float[Array, "Q V"]:
    """Return the float32 logits after every row of a question and of a given answer.

    One pass with a gradient (teacher forcing); the arguments are those of `prefill`.
    """
    more = {"prefix": prefix, "states": states, "asked": asked}
    _, h = prefill(params, program, carry, rows, room=0, **more)
    return logits(params, program.config, h)


def decode(
    params: Params, program: Program, dialogue: Dialogue, x: Float[Array, "E"]
) -> tuple[Dialogue, Float[Array, "E"]]:
    """Pass one more row (the token just answered) and return the last layer's output [E].

    The row is written over the padding of the question, at the first unused slot of the tail; its
    position is the next one of text.
    """
    config = program.config
    turn = angles(config.rope, dialogue.next[None])[:, None]

    def layer(held: PyTree, place: Place, given: tuple[Context, Tail]) -> tuple[PyTree, PyTree]:
        h, states = whole(program.mesh, held[0]), held[1]
        if place.kind is not None:
            return state_step(params, config, place, h, states, jnp.ones((1,), bool)), None
        context, tail = given
        weights = layer_in_stack(params, place.layer)
        q, k, v = qkv(weights, config, h)
        zero = jnp.zeros_like(dialogue.rows)  # one dtype, also where Python's numbers have 64 bits
        at = (dialogue.rows, zero, zero)
        scored = _scored(program, weights, v)
        if tail.scored is not None and scored is not None:
            scored = jax.lax.dynamic_update_slice(tail.scored, scored, at[:2])
        tail = Tail(
            jax.lax.dynamic_update_slice(tail.k, rotate(k, turn).astype(tail.k.dtype), at),
            jax.lax.dynamic_update_slice(tail.v, v.astype(tail.v.dtype), at),
            scored,
        )
        out = _attend(program, q, turn, context, tail, dialogue.rows, dialogue.rows + 1)
        return (finish(weights, config, h, out), states), tail

    both = zip(dialogue.context, dialogue.tail, strict=True)
    given = [tuple(zip(*mine, strict=True)) for mine in both]
    (h, states), tails = through(program.stretches, layer, (x[None], dialogue.states), given)
    step = jnp.asarray(program.spec.step, dialogue.next.dtype)
    rows, following = dialogue.rows + 1, dialogue.next + step
    return Dialogue(dialogue.context, tuple(tails), states, rows, following), h[0]

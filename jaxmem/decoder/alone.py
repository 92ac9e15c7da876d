"""Rows that see the prefix and themselves, and nothing of the stream."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.decoder.decoder import finish, layer_in_stack, qkv
from jaxmem.decoder.layer import state_step
from jaxmem.decoder.placing import whole
from jaxmem.decoder.program import Program, init_states
from jaxmem.decoder.stretches import Place, by_layer, through
from jaxmem.kernels.attend import attend
from jaxmem.kernels.segment import Segment
from jaxmem.kv import KV
from jaxmem.memory.attention import segment
from jaxmem.memory.base import Spec, at_layer
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Array, Float, Params, PyTree

States = tuple[PyTree, ...]


def alone(
    params: Params, program: Program, rows: Embeds, prefix: KV | None, states: States = ()
) -> tuple[Float[Array, "L Q H D"], KV, States]:
    """Return every layer's queries (not rotated) and tokens of rows that see [prefix | themselves].

    Args:
      params: decoder weights.
      program: static description.
      rows: Q rows.
      prefix: pinned tokens [L, P], or None.
      states: of the layers with a state, after the prefix; they are returned after the rows.
    """
    config, spec = program.config, program.spec
    t = jnp.arange(rows.modality.shape[0], dtype=jnp.int32)
    begin = jnp.full((spec.axes,), spec.prefix, spec.pos_dtype)
    real = rows.modality != kvs.EMPTY
    pos = (begin[None] + rows.pos.astype(begin.dtype))[:, None]

    def layer(held: PyTree, place: Place, given: None) -> tuple[PyTree, PyTree]:
        del given
        h, states = whole(program.mesh, held[0]), held[1]
        if place.kind is not None:
            return state_step(params, config, place, h, states, real), None
        weights, pinned = layer_in_stack(params, place.layer), at_layer(prefix, place.layer)
        q, k, v = qkv(weights, config, h)
        parts = [Segment(k, v, real[:, None], rows.pos[:, None], rows.pos, last=t)]
        parts += [] if pinned is None else [segment(pinned, begin, rows.pos)]
        out, _ = attend(q, parts, rope=config.rope)
        tokens = KV(k, v, pos, t[:, None], rows.modality[:, None].astype(jnp.int8))
        return (finish(weights, config, h, out), states), (q, tokens)

    start = (rows.x, states or init_states(config))
    (_, states), found = through(program.stretches, layer, start)
    if not config.attends:
        q = jnp.zeros((0, len(t), config.heads, config.head_dim), rows.x.dtype)
        return q, no_tokens(spec, len(t)), states
    return *by_layer(program.stretches, found), states


def no_tokens(spec: Spec, rows: int) -> KV:
    """Return the tokens [0, rows] of a decoder without a layer that attends."""
    return jax.tree.map(lambda x: jnp.zeros((0, *x.shape), x.dtype), spec.empty(rows))


def first_pass(
    params: Params, program: Program, rows: Embeds, prefix: KV | None, states: States = ()
) -> Float[Array, "L Q H D"]:
    """Return every layer's queries (not rotated) of a question that sees only [prefix | itself]."""
    return alone(params, program, rows, prefix, states)[0]

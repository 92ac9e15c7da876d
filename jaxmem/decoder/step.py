"""One chunk through all layers: the body of the streaming loop.

The memory's scope decides where it is asked. "layer": view and write inside the layer loop.
"stack": view before it, write after it. "feature": no decoder runs at all.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as tk
from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.decoder.layer import layer_step
from jaxmem.decoder.program import Carry, Program, init_carry, make_program, spec_of
from jaxmem.kv import KV
from jaxmem.memory import layout as pool
from jaxmem.memory.bank.bank import Bank, append_spill, of_layer
from jaxmem.memory.base import Chunk, Embeds, State, View, at_layer, kv_of
from jaxmem.memory.full import full
from jaxmem.typing import Array, Hidden, Params, PyTree


class Surroundings(NamedTuple):
    """What a chunk brings along besides its rows."""

    prefix: KV | None = None  # pinned tokens [L, P]
    probes: Embeds | None = None  # [n, Q, ...], where the memory's `requires.probe` asks for them


def chunk_step(
    params: Params,
    program: Program,
    carry: Carry,
    rows: Embeds,
    prefix: KV | None = None,
    probes: Embeds | None = None,
) -> tuple[Carry, Hidden]:
    """Pass one chunk through all layers and let the memory take from it what it keeps.

    Args:
      params: decoder weights.
      program: static description.
      carry: the stream so far.
      rows: the chunk, T rows; padding rows (kind EMPTY) come last and change nothing.
      prefix: pinned tokens [L, P], or None.
      probes: n probes as rows with a leading axis, for memories that read them.

    Returns:
      The carry after the chunk, and the last layer's output [T, E] before the final norm (the
      rows themselves in scope "feature").

    Raises:
      ValueError: if the memory reads probes and there are none.
    """
    requires, scope = program.memory.requires, program.memory.scope
    if requires.probe is not None and probes is None:
        raise ValueError(
            f"memory {program.memory.name!r} scores by probes (requires.probe={requires.probe!r}): "
            "pass probes=, rows with a leading axis."
        )
    probes = None if requires.probe is None else probes
    step = {"layer": _layer_scope, "stack": _stack_scope, "feature": _feature_scope}[scope]
    state, bank, h = step(params, program, carry, rows, Surroundings(prefix, probes))
    # One number per chunk stays free, for a memory that adds a summary token of its own.
    fresh = jnp.sum(rows.modality != tk.EMPTY, dtype=jnp.int32)
    clock = carry.clock + fresh + jnp.minimum(fresh, 1)
    return Carry(state, clock, bank), h


Stepped = tuple[State, Bank | None, Hidden]


def _layer_scope(
    params: Params, program: Program, carry: Carry, rows: Embeds, around: Surroundings
) -> Stepped:
    """View and write inside the layer loop: no [L, T] buffer of fresh KV ever exists.

    The loop carries the state and indexes it: as scan inputs and outputs the state would be held
    twice.
    """
    memory, layout = program.memory, program.layout
    assert layout is not None
    probe = None if around.probes is None else around.probes.x
    held = (rows.x, probe, carry.state, carry.bank)
    for run in layout.runs:

        def body(layer: Array, held: PyTree, window: int = run.window) -> PyTree:
            h, probe, state, bank = held
            mine = pool.read(layout, state, layer, window)
            view = memory.view(mine, of_layer(bank, layer), rows)
            pre = at_layer(around.prefix, layer)
            probes = None if around.probes is None else around.probes._replace(x=probe)
            out = layer_step(params, program, layer, h, view, rows, carry.clock, pre, probes)
            mine, spill = memory.write(mine, out.seen)
            state = pool.write(layout, state, layer, mine)
            return out.h, out.probe, state, append_spill(bank, layer, spill)

        held = jax.lax.fori_loop(run.first, run.stop, body, held)
    h, _, state, bank = held
    return state, bank, h


def _stack_scope(
    params: Params, program: Program, carry: Carry, rows: Embeds, around: Surroundings
) -> Stepped:
    """View before the layer loop, write after it: the memory sees all layers at once."""
    memory = program.memory
    views = memory.view(carry.state, carry.bank, rows)

    def body(held: PyTree, item: tuple[Array, View, KV | None]) -> tuple[PyTree, Chunk]:
        h, probe = held
        layer, view, pre = item
        probes = None if around.probes is None else around.probes._replace(x=probe)
        out = layer_step(params, program, layer, h, view, rows, carry.clock, pre, probes)
        return (out.h, out.probe), out.seen

    index = jnp.arange(program.config.layers, dtype=jnp.int32)
    start = (rows.x, None if around.probes is None else around.probes.x)
    (h, _), seen = jax.lax.scan(body, start, (index, views, around.prefix))
    state, spill = memory.write(carry.state, seen)

    def put(layer: Array, bank: Bank | None) -> Bank | None:
        return append_spill(bank, layer, at_layer(spill, layer))

    bank = carry.bank
    if bank is not None and spill is not None:
        bank = jax.lax.fori_loop(0, program.config.layers, put, bank)
    return state, bank, h


def _feature_scope(
    params: Params, program: Program, carry: Carry, rows: Embeds, around: Surroundings
) -> Stepped:
    """Give the encoders' features to the memory; the decoder runs when a question is asked."""
    del params, around
    zero = jnp.zeros((program.spec.axes,), program.spec.pos_dtype)
    seen = Chunk(
        tokens=None,  # type: ignore[arg-type]
        base=zero,
        next_pos=rows.advance.astype(zero.dtype),
        layer=jnp.zeros((), jnp.int32),
        hidden=rows.x,
        modality=rows.modality,
    )
    state, _ = program.memory.write(carry.state, seen)
    return state, carry.bank, rows.x


def make_prefix(params: Params, config: DecoderConfig, rows: Embeds, **spec) -> KV:
    """Return the pinned tokens [L, P] of a system prompt, to pass as `prefix`.

    Args:
      params: decoder weights.
      config: of the decoder.
      rows: the prompt, without padding; its positions begin at 0.
      spec: further fields of `Spec` (dtype, pos_dtype, axes).
    """
    length = rows.modality.shape[0]
    program = make_program(config, full(length), spec_of(config, chunk=length, **spec))
    carry, _ = chunk_step(params, program, init_carry(program), rows)
    assert program.layout is not None
    layers = [kv_of(state.slots) for state in pool.layers(program.layout, carry.state)]
    return jax.tree.map(lambda *x: jnp.stack(x), *layers)


__all__ = [
    "Carry",
    "Program",
    "chunk_step",
    "init_carry",
    "layer_step",
    "make_prefix",
    "make_program",
    "spec_of",
]

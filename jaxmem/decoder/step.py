"""One chunk through all layers: the body of the streaming loop.

A memory that sees one layer is asked inside the layer loop; one that sees the whole stack shows
before it and writes after it; a memory of features takes the rows, and no decoder runs at all.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem import kv as kvs
from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.decoder.layer import layer_step
from jaxmem.decoder.program import Carry, Program, Rejected, init_carry, make_program, spec_of
from jaxmem.kv import KV
from jaxmem.memory import clock as clocks
from jaxmem.memory import layout as layouts
from jaxmem.memory.bank import bank as banks
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.base import Chunk, Embeds, FeatureMemory, State, View, at_layer, kv_of
from jaxmem.memory.baselines import Full
from jaxmem.typing import Array, Hidden, Int, Params, PyTree


class Surroundings(NamedTuple):
    """What a chunk brings along besides its rows."""

    prefix: KV | None = None  # pinned tokens [L, P]
    probes: Embeds | None = None  # [n, Q, ...], where the memory requires probes


def chunk_step(
    params: Params,
    program: Program,
    carry: Carry,
    embeds: Embeds,
    prefix: KV | None = None,
    probes: Embeds | None = None,
) -> tuple[Carry, Hidden]:
    """Pass one chunk through all layers and let the memory take from it what it keeps.

    Args:
      params: decoder weights.
      program: static description.
      carry: the stream so far.
      embeds: the chunk, T rows; padding rows (modality EMPTY) come last and change nothing. Rows
        that are not finite are taken for padding and counted in `Carry.rejected`.
      prefix: pinned tokens [L, P], or None.
      probes: n probes as rows with a leading axis, for memories that require them.

    Returns:
      The carry after the chunk, and the last layer's output [T, E] before the final norm (the
      rows themselves for a memory of features).

    Raises:
      ValueError: if rows, prefix or probes contradict the program's `Spec`.
    """
    check_chunk(program, embeds)
    check_prefix(program, prefix)
    probes = _checked_probes(program, probes)
    embeds, bad = finite_rows(embeds)
    state, clock = clocks.rebase(carry.state, carry.clock)
    carry = carry._replace(state=state, clock=clock)
    around = Surroundings(prefix, probes)
    state, bank, h = _step_of(program)(params, program, carry, embeds, around)
    fresh = jnp.sum(embeds.modality != kvs.EMPTY, dtype=jnp.int32)
    return _counted(carry, fresh, bad)._replace(state=state, bank=bank), h


def _counted(carry: Carry, fresh: Int[Array, ""], bad: Int[Array, ""]) -> Carry:
    """Return the carry with a chunk of `fresh` tokens and `bad` rejected rows counted."""
    most, old = jnp.iinfo(jnp.int32).max, carry.rejected
    rejected = Rejected(
        rows=old.rows + bad,
        first=jnp.where((bad > 0) & (old.first < 0), carry.chunks, old.first),
        last=jnp.where(bad > 0, carry.chunks, old.last),
    )
    return carry._replace(
        clock=clocks.after(carry.clock, fresh),
        chunks=carry.chunks + jnp.minimum(fresh + bad, 1),
        tokens=jnp.where(carry.tokens > most - fresh, most, carry.tokens + fresh),
        rejected=rejected,
    )


def finite_rows(embeds: Embeds) -> tuple[Embeds, Int[Array, ""]]:
    """Return rows of which all that are not finite became padding, and how many these were.

    Padding is zeroed: what it holds never reaches attention, where 0 times NaN is NaN.
    """
    real = embeds.modality != kvs.EMPTY
    finite = jnp.all(jnp.isfinite(embeds.x), axis=1)
    if jnp.issubdtype(embeds.pos.dtype, jnp.floating):
        finite &= jnp.all(jnp.isfinite(embeds.pos), axis=1)
    if embeds.deepstack is not None:
        finite &= jnp.all(jnp.isfinite(embeds.deepstack), axis=(0, 2))
    good, bad = real & finite, jnp.sum(real & ~finite, dtype=jnp.int32)
    index = jnp.argsort(~good, stable=True).astype(jnp.int32)
    moved = kvs.take((embeds.x, embeds.pos, embeds.modality), index, good[index])
    deepstack = embeds.deepstack
    if deepstack is not None:
        deepstack = jax.vmap(lambda x: kvs.take(x, index, good[index]))(deepstack)
    return embeds._replace(x=moved[0], pos=moved[1], modality=moved[2], deepstack=deepstack), bad


def check_chunk(program: Program, embeds: Embeds) -> None:
    """Raise ValueError where the rows of a chunk or a question contradict the program."""
    spec, (rows, width) = program.spec, embeds.x.shape[-2:]
    if width != spec.width or embeds.pos.shape[-1] != spec.axes:
        raise ValueError(
            f"rows are [T, E={width}] with {embeds.pos.shape[-1]} position axes, but the Spec has "
            f"width={spec.width} and axes={spec.axes}; encode them for this model."
        )
    if rows > spec.chunk:
        raise ValueError(
            f"a chunk has {rows} rows but Spec.chunk is {spec.chunk}; make the program with "
            f"chunk={rows}, or stream shorter chunks."
        )
    check_positions(program, embeds)


def check_positions(program: Program, embeds: Embeds) -> None:
    """Raise ValueError where rows have fractional positions and the program whole ones."""
    spec = program.spec
    fractional = jnp.issubdtype(embeds.pos.dtype, jnp.floating)
    if fractional and not jnp.issubdtype(spec.pos_dtype, jnp.floating):
        raise ValueError(
            f"rows have positions of {embeds.pos.dtype} but Spec.pos_dtype is "
            f"{jnp.dtype(spec.pos_dtype)}; make the program with pos_dtype=float32."
        )


def check_prefix(program: Program, prefix: KV | None) -> None:
    """Raise ValueError where a prefix is not the one that the program was made for."""
    given = 0 if prefix is None else prefix.modality.shape[1]
    if given != program.spec.prefix:
        raise ValueError(
            f"the prefix has {given} tokens but Spec.prefix is {program.spec.prefix}; bind the "
            "program to its prefix (jaxmem.bind), or make it with that Spec.prefix."
        )


def _checked_probes(program: Program, probes: Embeds | None) -> Embeds | None:
    asked = program.requires.probes
    if asked is None:
        return None
    found = 0 if probes is None else probes.modality.shape[0]
    if found != asked.count:
        raise ValueError(
            f"memory {program.memory.name} scores by {asked.count} probes, got {found}: give them "
            "with Bound(params, probes=probe_rows(...)), or stream through a Session."
        )
    return probes


Stepped = tuple[State, Bank | None, Hidden]


def _step_of(program: Program):
    if isinstance(program.memory, FeatureMemory):
        return _features
    return _stack if program.layout is None else _by_layer


def _by_layer(
    params: Params, program: Program, carry: Carry, embeds: Embeds, around: Surroundings
) -> Stepped:
    """View and write inside the layer loop: no [L, T] buffer of fresh KV ever exists.

    The loop carries the state and indexes it: as scan inputs and outputs the state would be held
    twice.
    """
    memory, layout, spec = program.memory, program.layout, program.spec
    assert layout is not None and not isinstance(memory, FeatureMemory)
    probe = None if around.probes is None else around.probes.x
    held = (embeds.x, probe, carry.state, carry.bank)
    for run in layout.runs:

        def body(layer: Array, held: PyTree, window: int = run.window) -> PyTree:
            h, probe, state, bank = held
            mine = layouts.read(layout, state, layer, window)
            view = memory.view(spec, mine, embeds, banks.of_layer(bank, layer))
            pre = at_layer(around.prefix, layer)
            probes = None if around.probes is None else around.probes._replace(x=probe)
            out = layer_step(params, program, layer, h, view, embeds, carry.clock, pre, probes)
            mine, evicted = memory.write(spec, mine, out.chunk)
            state = layouts.write(layout, state, layer, mine)
            return out.h, out.probe, state, banks.append(bank, layer, evicted)

        held = jax.lax.fori_loop(run.first, run.stop, body, held)
    h, _, state, bank = held
    return state, bank, h


def _stack(
    params: Params, program: Program, carry: Carry, embeds: Embeds, around: Surroundings
) -> Stepped:
    """View before the layer loop, write after it: the memory sees all layers at once."""
    memory, spec = program.memory, program.spec
    assert not isinstance(memory, FeatureMemory)
    views = memory.view(spec, carry.state, embeds, carry.bank)

    def body(held: PyTree, item: tuple[Array, View, KV | None]) -> tuple[PyTree, Chunk]:
        h, probe = held
        layer, view, pre = item
        probes = None if around.probes is None else around.probes._replace(x=probe)
        out = layer_step(params, program, layer, h, view, embeds, carry.clock, pre, probes)
        return (out.h, out.probe), out.chunk

    index = jnp.arange(program.config.layers, dtype=jnp.int32)
    start = (embeds.x, None if around.probes is None else around.probes.x)
    (h, _), chunk = jax.lax.scan(body, start, (index, views, around.prefix))
    state, evicted = memory.write(spec, carry.state, chunk)

    def put(layer: Array, bank: Bank | None) -> Bank | None:
        return banks.append(bank, layer, at_layer(evicted, layer))

    bank = carry.bank
    if bank is not None and evicted is not None:
        bank = jax.lax.fori_loop(0, program.config.layers, put, bank)
    return state, bank, h


def _features(
    params: Params, program: Program, carry: Carry, embeds: Embeds, around: Surroundings
) -> Stepped:
    """Give the encoders' features to the memory; the decoder runs when a question is asked."""
    del params, around
    assert isinstance(program.memory, FeatureMemory)
    return program.memory.write(program.spec, carry.state, embeds), carry.bank, embeds.x


def make_prefix(params: Params, config: DecoderConfig, embeds: Embeds, **spec) -> KV:
    """Return the pinned tokens [L, P] of a system prompt, to pass as `prefix`.

    Args:
      params: decoder weights.
      config: of the decoder.
      embeds: the prompt, without padding; its positions begin at 0.
      spec: further fields of `Spec` (dtype, pos_dtype, axes).
    """
    length = embeds.modality.shape[0]
    program = make_program(config, Full(length), spec_of(config, chunk=length, **spec))
    carry, _ = chunk_step(params, program, init_carry(program), embeds)
    assert program.layout is not None
    layers = [kv_of(state.slots) for state in layouts.layers(program.layout, carry.state)]
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

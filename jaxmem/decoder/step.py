"""One chunk through all layers: the body of the streaming loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem import kv as kvs
from jaxmem.decoder.alone import no_tokens
from jaxmem.decoder.checks import check_chunk, check_prefix, check_probes, check_weights
from jaxmem.decoder.decoder import DecoderConfig, layer_in_stack
from jaxmem.decoder.driving import driver_of
from jaxmem.decoder.gradient import Gradient, Passing
from jaxmem.decoder.layer import add_deepstack, attend_step, layer_step, state_step
from jaxmem.decoder.placing import held as kept_in_place
from jaxmem.decoder.placing import tracing, whole
from jaxmem.decoder.program import (
    Carry,
    Program,
    Rejected,
    init_carry,
    layers_of,
    make_program,
    spec_of,
)
from jaxmem.decoder.stretches import Place, Stretch, by_layer, scan
from jaxmem.kv import KV
from jaxmem.memory import clock as clocks
from jaxmem.memory.base import at_layer, kv_of
from jaxmem.memory.baselines import Full
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Array, Hidden, Int, Params, PyTree


def chunk_step(
    params: Params,
    program: Program,
    carry: Carry,
    embeds: Embeds,
    prefix: KV | None = None,
    probes: Embeds | None = None,
    *,
    gradient: Gradient | None = None,
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
      gradient: how a gradient passes the layers, for training; None: there is none to come, or all
        intermediates are kept for it.

    Returns:
      The carry after the chunk, and the last layer's output [T, E] before the final norm (the
      rows themselves for a memory of features).

    Raises:
      ValueError: if weights, rows, prefix or probes contradict the program, or a mixer its own
        contract.
    """
    check_weights(program, params)
    check_chunk(program, embeds)
    check_prefix(program, prefix)
    check_probes(program, probes)
    if program.requires.probes is None:
        probes = None
    probes = None if probes is None else zero_padding(probes)
    embeds, bad = finite_rows(embeds)
    state, clock = clocks.rebase(carry.state, carry.clock)
    carry = carry._replace(state=state, clock=clock)
    with tracing(program.mesh):
        after, h = _through_layers(params, program, carry, embeds, prefix, probes, gradient)
    fresh = jnp.sum(embeds.modality != kvs.EMPTY, dtype=jnp.int32)
    after = _watched(program.config, _counted(after, fresh, bad), carry.chunks)
    return kept_in_place(program.mesh, after, program.config.stacks), h


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


def _watched(config: DecoderConfig, carry: Carry, chunk: Int[Array, ""]) -> Carry:
    """Return the carry after a chunk with the first state noted that is not finite."""
    if carry.broken is None:
        return carry
    none = jnp.full((), config.layers, jnp.int32)
    first = none
    for mixer, states in zip(config.stacks, carry.states, strict=True):
        numbers = np.asarray(config.numbers(mixer), np.int32)
        for leaf in jax.tree.leaves(states):
            finite = jnp.all(jnp.isfinite(leaf).reshape(len(numbers), -1), axis=1)
            first = jnp.minimum(first, jnp.min(jnp.where(finite, none, numbers)))
    new = (first < none) & (carry.broken[0] < 0)
    return carry._replace(broken=jnp.where(new, jnp.stack([chunk, first]), carry.broken))


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


def zero_padding(embeds: Embeds) -> Embeds:
    """Return a question or probes with zeros in their padding, whatever it held."""
    real = (embeds.modality != kvs.EMPTY)[..., None]
    x, deepstack = jnp.where(real, embeds.x, 0), embeds.deepstack
    if deepstack is not None:
        deepstack = jnp.where(real, deepstack, 0)
    return embeds._replace(x=x, pos=jnp.where(real, embeds.pos, 0), deepstack=deepstack)


def _through_layers(
    params: Params,
    program: Program,
    carry: Carry,
    embeds: Embeds,
    prefix: KV | None,
    probes: Embeds | None,
    gradient: Gradient | None,
) -> tuple[Carry, Hidden]:
    """Return the carry with state, bank and states after a chunk, and the last layer's output.

    With a gradient the layers' weights are inputs of the loop, and of a checkpointed function of
    one layer: indexed inside, each layer's gradient would be an array of all layers.
    """
    driver, real, config = driver_of(program), embeds.modality != kvs.EMPTY, program.config
    order = driver.stretches if gradient is None else gradient.cut(driver.stretches)

    def layer(
        held: PyTree, place: Place, weights: Params | None, passing: Passing
    ) -> tuple[PyTree, PyTree]:
        h, probe, aside, states = held
        h = whole(program.mesh, h)
        if place.kind is not None:
            more = {"weights": weights, "gradient": gradient}
            h, states = state_step(params, config, place, h, states, real, **more)
            h = add_deepstack(h, embeds.deepstack, place.number)
            return (h, _past(params, program, place, probe, probes, states), aside, states), None
        mine, aside = driver.open(aside, place)
        given = layer_in_stack(params, place.layer) if weights is None else weights
        pinned = at_layer(prefix, place.layer)
        one = partial(attend, passing=passing)
        one = one if gradient is None else gradient.remat(one)
        h, probe, kept = one(given, h, probe, mine, pinned, place.number)
        aside, collected = driver.close(aside, place, kept)
        return (h, probe, aside, states), collected

    def attend(
        weights: Params,
        h: Hidden,
        probe: Array | None,
        mine: PyTree,
        pinned: PyTree,
        number: Array,
        *,
        passing: Passing,
    ) -> tuple[Hidden, Array | None, PyTree]:
        asked = None if probes is None else probes._replace(x=passing.leave(probe))
        view, weights, pinned = passing.leave((driver.view(mine, embeds), weights, pinned))
        more = {"prefix": pinned, "probes": asked}
        h = passing.enter(h)
        out = attend_step(weights, program, number, h, view, embeds, carry.clock, **more)
        return out.h, out.probe, driver.keep(mine, out.chunk)

    h, probe, states = embeds.x, None if probes is None else probes.x, carry.states
    aside, found = driver.begin(carry, embeds), []
    for stretch in order:
        passing = Passing() if gradient is None else gradient.at(stretch)
        held = (passing.leave(h), passing.leave(probe), driver.enter(aside, stretch), states)
        given = None if gradient is None else weights_of(params, config, stretch)
        body = partial(layer, passing=passing)
        (h, probe, aside, states), out = scan(stretch, body, held, passing.leave(given))
        aside = driver.leave(aside)
        found.append(out)
    carry = driver.end(carry, aside, by_layer(order, found), embeds)
    return carry._replace(states=states), h


def weights_of(params: Params, config: DecoderConfig, stretch: Stretch) -> list[Params]:
    """Return the weights of a stretch's layers, for every place of its pattern [times, ...]."""
    out = []
    for kind, first in zip(stretch.kinds, stretch.firsts, strict=True):
        stack = params["layers"] if kind is None else params["mixers"][config.stacks.index(kind)]
        each = stretch.kinds.count(kind)
        stop = first + each * (stretch.times - 1) + 1
        out.append(jax.tree.map(lambda x, at=slice(first, stop, each): x[at], stack))
    return out


def _past(
    params: Params,
    program: Program,
    place: Place,
    probe: Hidden | None,
    probes: Embeds | None,
    states: tuple[PyTree, ...],
) -> Hidden | None:
    """Return the probes' input of the layer after one with a state; what they do to it is dropped.

    They go on from the state after the chunk. Probes of raw embeddings stay as they are.
    """
    asked = program.requires.probes
    if probe is None or probes is None or asked is None or asked.form == "embedding":
        return probe

    def one(x: Hidden, modality: Array) -> Hidden:
        return state_step(params, program.config, place, x, states, modality != kvs.EMPTY)[0]

    return jax.vmap(one)(probe, probes.modality)


def make_prefix(params: Params, config: DecoderConfig, embeds: Embeds, **spec: Any) -> KV:
    """Return the pinned tokens [L, P] of a system prompt, to pass as `prefix`.

    Args:
      params: decoder weights.
      config: of the decoder.
      embeds: the prompt, without padding; its positions begin at 0.
      spec: further fields of `Spec` (dtype, pos_dtype, axes).
    """
    return prefix_and_states(params, config, embeds, **spec)[0]


def prefix_and_states(
    params: Params, config: DecoderConfig, embeds: Embeds, **spec: Any
) -> tuple[KV, tuple[PyTree, ...]]:
    """Return the pinned tokens of a system prompt, and the states after it (`Carry.states`).

    The arguments are those of `make_prefix`.
    """
    length = embeds.modality.shape[0]
    program = make_program(config, Full(length), spec_of(config, chunk=length, **spec))
    carry, _ = chunk_step(params, program, init_carry(program), embeds)
    if not config.attends:
        return no_tokens(program.spec, length), carry.states
    layers = [kv_of(state.slots) for state in layers_of(program, carry)]
    return jax.tree.map(lambda *x: jnp.stack(x), *layers), carry.states


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

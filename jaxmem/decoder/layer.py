"""One layer of the streaming decoder: attention with a memory, or a layer with a state."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.decoder.checks import check_mixed
from jaxmem.decoder.decoder import (
    DecoderConfig,
    feed_forward,
    finish,
    layer_at,
    qkv,
    rms_norm,
    with_stack,
)
from jaxmem.decoder.gradient import Gradient
from jaxmem.decoder.program import Program
from jaxmem.decoder.stretches import Place
from jaxmem.kernels.segment import Segment
from jaxmem.kv import EMPTY, KV
from jaxmem.memory.attention import attend_probe, attend_view
from jaxmem.memory.base import at_layer
from jaxmem.memory.exchange import Chunk, Embeds, Probed, Probes, Received, View
from jaxmem.typing import Array, Bool, Float, Hidden, Int, Params, PyTree


class Attended(NamedTuple):
    """A layer's outputs and what it reports."""

    h: Hidden
    probe: Float[Array, "n Q E"] | None
    chunk: Chunk


def layer_step(
    params: Params,
    program: Program,
    layer: Int[Array, ""],
    h: Hidden,
    view: View,
    embeds: Embeds,
    clock: Int[Array, ""],
    prefix: KV | None = None,
    probes: Embeds | None = None,
    number: Int[Array, ""] | None = None,
) -> Attended:
    """Pass a chunk, and the probes after it, through one layer that attends.

    Args:
      params: decoder weights (stacked layers; indexed by `layer`, which may be traced).
      program: static description.
      layer: l, among the layers that attend.
      The others are those of `attend_step`.
    """
    number = layer if number is None else number
    weights = layer_at(params, layer)
    return attend_step(weights, program, number, h, view, embeds, clock, prefix, probes)


def attend_step(
    weights: Params,
    program: Program,
    number: Int[Array, ""],
    h: Hidden,
    view: View,
    embeds: Embeds,
    clock: Int[Array, ""],
    prefix: KV | None = None,
    probes: Embeds | None = None,
) -> Attended:
    """Pass a chunk, and the probes after it, through one layer that attends, by its own weights.

    Args:
      weights: of the layer.
      program: static description.
      number: of the layer in the decoder.
      h: layer input [T, E].
      view: what the chunk attends to, and where it begins.
      embeds: the chunk.
      clock: arrival number of its first row.
      prefix: this layer's pinned tokens [P], or None.
      probes: probes with this layer's input in `x` [n, Q, E], or None.
    """
    config, requires = program.config, program.requires
    q, k, v = qkv(weights, config, h)
    output = weights["o"]["kernel"].reshape(config.heads, config.head_dim, config.width)
    more = {"prefix": prefix, "hidden": h, "output": output, "scorer": weights.get("retention")}
    given = requires, config.rope, view, q, k, v, embeds, clock
    out, chunk, segments = attend_view(*given, **more)
    after = None
    if requires.probes is not None and probes is not None:
        seen = view, embeds, chunk.kv, prefix, segments
        after, probed = _probe(weights, program, *seen, probes)
        chunk = chunk._replace(probed=probed)
    h = add_deepstack(finish(weights, config, h, out), embeds.deepstack, number)
    return Attended(h, after, chunk)


def _probe(
    weights: Params,
    program: Program,
    view: View,
    embeds: Embeds,
    fresh: KV,
    prefix: KV | None,
    segments: list[Segment],
    probes: Embeds,
) -> tuple[Float[Array, "n Q E"], Probed]:
    """Return the probes' input of the next layer, and the attention that they gave.

    Probes that the view does not ask for cost nothing: their input stays as it is and what they
    gave is 0.
    """
    config, asked = program.config, program.requires.probes
    assert isinstance(asked, Probes)

    def one(probe: Embeds) -> tuple[Hidden, Received]:
        q, k, v = qkv(weights, config, probe.x)
        out, received = attend_probe(
            asked.form, config.rope, view, fresh, embeds.advance, probe, q, k, v, prefix, segments
        )
        causal = asked.form == "causal"
        return finish(weights, config, probe.x, out) if causal else probe.x, received

    rows = jnp.sum(probes.modality != EMPTY, axis=1, dtype=jnp.int32)
    if view.probing is None:
        after, received = jax.vmap(one)(probes)
        return after, Probed(received, rows)

    def idle(probe: Embeds) -> tuple[Hidden, Received]:
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, probe)[1])
        return probe.x, nothing

    def either(item: tuple[Array, Embeds]) -> tuple[Hidden, Received]:
        return jax.lax.cond(item[0], one, idle, item[1])

    after, received = jax.lax.map(either, (view.probing, probes))
    return after, Probed(received, rows)


def state_step(
    params: Params,
    config: DecoderConfig,
    place: Place,
    h: Hidden,
    states: tuple[PyTree, ...],
    real: Bool[Array, "T"],
    *,
    weights: Params | None = None,
    gradient: Gradient | None = None,
) -> tuple[Hidden, tuple[PyTree, ...]]:
    """Pass rows through one layer with a state.

    Args:
      params: decoder weights.
      config: of the decoder.
      place: the layer.
      h: layer input [T, E].
      states: of all layers with a state, as in `Carry.states`.
      real: which rows are tokens; the others come last and change no state.
      weights: of the layer; None: those in `params`.
      gradient: see `chunk_step`.

    Returns:
      The layer's output [T, E], and the states with this layer's after the rows.

    Raises:
      ValueError: if the mixer gives outputs or a state of another shape than its contract says.
    """
    kind = place.kind
    assert kind is not None
    stack = config.stacks.index(kind)
    weights = with_stack(params["mixers"][stack], place.layer) if weights is None else weights

    def cell(weights: Params, h: Hidden, state: PyTree) -> tuple[Hidden, PyTree]:
        x = rms_norm(h, weights["norm"], config.norm_eps)
        given = kind.chunk(weights["mixer"], state, x, real)
        check_mixed(kind, x, state, given)
        y, state = given
        return feed_forward(weights, config, h + y.astype(h.dtype)), state

    if gradient is not None:
        cell = gradient.remat(cell)
    h, state = cell(weights, h, at_layer(states[stack], place.layer))

    def put(leaf: Array, new: Array) -> Array:
        new = jnp.asarray(new, leaf.dtype)
        return jax.lax.dynamic_update_index_in_dim(leaf, new, place.layer, 0)

    return h, (*states[:stack], jax.tree.map(put, states[stack], state), *states[stack + 1 :])


def add_deepstack(
    h: Hidden, deepstack: Float[Array, "n T E"] | None, layer: Int[Array, ""]
) -> Hidden:
    """Add DeepStack features after layer l < n (Qwen3-VL); text rows hold zeros."""
    if deepstack is None or not deepstack.shape[0]:
        return h
    last = deepstack.shape[0] - 1
    extra = jax.lax.dynamic_index_in_dim(deepstack, jnp.minimum(layer, last), 0, keepdims=False)
    return h + jnp.where(layer <= last, extra, jnp.zeros((), extra.dtype)).astype(h.dtype)

"""Next tokens of a decoder whose layers all have a state, as a step: ids in, loss out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.decoder.decoder import (
    DecoderConfig,
    embed,
    feed_forward,
    init_decoder,
    logits,
    rms_norm,
)
from jaxmem.decoder.program import init_states
from jaxmem.training.plan import Cost, cost_of
from jaxmem.training.remat import Cell, PyTree, remat, stacked, timed
from jaxmem.training.tiled import tiled
from jaxmem.typing import Array, Float, Int, Params

NOTHING = -1
"""As an id: a row without an effect. As a label: nothing is to be said there."""


class Rows(NamedTuple):
    """Tokens of a stream, and what comes after each of them."""

    ids: Int[Array, "T"]
    labels: Int[Array, "T"]


PADDING = Rows(NOTHING, NOTHING)  # type: ignore[arg-type]
"""What `timed` pads with."""


def next_tokens(ids: Int[Array, "T"]) -> Rows:
    """Return a stream whose labels are its own next tokens; its last one has none."""
    return Rows(ids, jnp.concatenate([ids[1:], jnp.full(1, NOTHING, ids.dtype)]))


def layer_cell(config: DecoderConfig, dtype: Any = None) -> Cell:
    """Return one layer with its norm, residual and MLP as a cell of x = (h [s, E], real [s]).

    Args:
      config: of the decoder.
      dtype: that weights are converted to inside the cell, so that gradients of chunks add up in
        the weights' own; None: none.

    Raises:
      ValueError: if a layer of the decoder attends, or two mixers differ.
    """
    mixer = _mixer(config)

    def cell(weights: PyTree, x: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        (h, real), weights = x, as_type(weights, dtype)
        y, state = mixer.chunk(
            weights["mixer"], state, rms_norm(h, weights["norm"], config.norm_eps), real
        )
        return (feed_forward(weights, config, h + y.astype(h.dtype)), real), state

    return cell


def language_step(config: DecoderConfig, tile: int = 128, dtype: Any = None) -> Cell:
    """Return `step(params, rows, state) -> (loss, state)` of one chunk, for `remat.timed`.

    The loss is the sum of -log p of the labels, in tiles; there are no logits of a whole chunk. The
    layers are checkpointed one by one. The state is that of `empty_state`.

    Args:
      config: of the decoder.
      tile: rows whose logits are there at a time.
      dtype: see `layer_cell`.

    Raises:
      ValueError: see `layer_cell`.
    """
    layers = stacked(remat(layer_cell(config, dtype)))

    def step(params: Params, rows: Rows, state: PyTree) -> tuple[Float[Array, ""], PyTree]:
        real = rows.ids != NOTHING
        ends = as_type({k: v for k, v in params.items() if k != "mixers"}, dtype)
        h = embed(ends, jnp.maximum(rows.ids, 0))
        (h, _), state = layers(params["mixers"][0], (h, real), state)

        def said(row: tuple[Array, Array]) -> Float[Array, "T"]:
            h, labels = row
            log_p = jax.nn.log_softmax(logits(ends, config, h))
            own = jnp.take_along_axis(log_p, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
            return jnp.where(labels == NOTHING, 0, -own)

        return jnp.sum(tiled(said, (h, rows.labels), tile)), state

    return step


def language_loss(
    config: DecoderConfig, *, dtype: Any = None, **options: Any
) -> Callable[[Params, Int[Array, "T"], PyTree], Float[Array, ""]]:
    """Return `loss(params, ids, state)`: the sum of -log p of a stream's next tokens.

    Args:
      config: of the decoder.
      dtype: see `layer_cell`.
      options: of `remat.timed`: chunk, nested, segments, offload.

    Raises:
      ValueError: see `layer_cell` and `remat.timed`.
    """
    run = timed(language_step(config, dtype=dtype), fill=PADDING, **options)

    def loss(params: Params, ids: Int[Array, "T"], state: PyTree) -> Float[Array, ""]:
        return jnp.sum(run(params, next_tokens(ids), state)[0])

    return loss


def layer_cost(config: DecoderConfig, rows: int, dtype: Any = jnp.float32) -> Cost:
    """Return the cost of one layer as compiled, from shapes alone.

    Args:
      config: of the decoder.
      rows: of the chunks that are compiled.
      dtype: of rows, and of weights in the cell; they are held in float32.

    Raises:
      ValueError: see `layer_cell`.
    """
    cell = layer_cell(config, dtype)
    params = jax.eval_shape(partial(init_decoder, config), jax.random.key(0))["mixers"][0]
    one = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype),
        (params, jax.eval_shape(lambda: empty_state(config))),
    )
    return cost_of(cell, one[0], layer_inputs(config, rows, dtype), one[1])


def layer_inputs(config: DecoderConfig, rows: int, dtype: Any = jnp.float32) -> PyTree:
    """Return the shapes of x of a layer's cell."""
    h = jax.ShapeDtypeStruct((rows, config.width), dtype)
    return h, jax.ShapeDtypeStruct((rows,), jnp.bool_)


def empty_state(config: DecoderConfig) -> PyTree:
    """Return the states of all layers [L, ...] before a stream.

    Raises:
      ValueError: see `layer_cell`.
    """
    _mixer(config)
    return init_states(config)[0]


def as_type(weights: PyTree, dtype: Any) -> PyTree:
    """Return weights in a type; None: as they are."""
    return weights if dtype is None else jax.tree.map(lambda x: x.astype(dtype), weights)


def _mixer(config: DecoderConfig):
    """Return the only mixer of a decoder."""
    if config.attends or len(config.stacks) != 1:
        raise ValueError(
            f"this loss is of decoders whose layers are all one mixer; {config.attends} layers "
            f"attend and there are {len(config.stacks)} different mixers. Those train through "
            "their chunk step."
        )
    return config.stacks[0]

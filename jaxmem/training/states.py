"""A layer with a state, of streams and of the questions about them, in one pass.

A stream goes through the layer second by second, and the state after each is kept. A question's
words go on from a copy of the state at the question's time, as `ask` lets them.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.decoder.decoder import DecoderConfig, feed_forward, rms_norm
from jaxmem.mixers.base import Mixer
from jaxmem.typing import Array, Float, Int, Params


def through_state(
    layer: Params,
    config: DecoderConfig,
    mixer: Mixer,
    stream: Float[Array, "N E"],
    words: Float[Array, "n E"],
    time: Int[Array, "B Q"],
    seconds: int,
) -> tuple[Float[Array, "N E"], Float[Array, "n E"]]:
    """Pass the rows of B streams, and of Q questions about each, through one layer with a state.

    Args:
        layer: its weights, with those of the mixer in "mixer".
        config: of the decoder.
        mixer: of the layer.
        stream: N = B F T rows, in order: F seconds of T tokens.
        words: n = B Q W rows: W words of every question; those after the last answer no question.
        time: seconds that each question knows, at least 1.
        seconds: F.
    """
    width, weights = config.width, layer["mixer"]
    normal = lambda x: rms_norm(x, layer["norm"], config.norm_eps)

    def pieces(rows: Array) -> tuple[Array, Array]:
        real, start = jnp.ones(rows.shape[1], bool), mixer.init(width)

        def second(state: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
            y, state = mixer.chunk(weights, state, x, real)
            return state, (y, state)

        return lax.scan(second, start, rows)[1]

    y, states = jax.vmap(pieces)(normal(stream).reshape(len(time), seconds, -1, width))

    def one(state: Array, x: Array) -> Array:
        return mixer.chunk(weights, state, x, jnp.ones(len(x), bool))[0]

    known = jax.vmap(lambda state, t: jax.tree.map(lambda leaf: leaf[t - 1], state))(states, time)
    said = jax.vmap(jax.vmap(one))(known, normal(words).reshape(*time.shape, -1, width))
    return (
        feed_forward(layer, config, stream + y.reshape(stream.shape)),
        feed_forward(layer, config, words + said.reshape(words.shape)),
    )

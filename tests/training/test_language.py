"""Ids in, loss out: a Mamba-2 language model through chunks that keep their states alone."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem.decoder.decoder import init_decoder, logits
from jaxmem.decoder.program import init_carry, make_program, spec_of
from jaxmem.decoder.step import chunk_step
from jaxmem.memory.baselines import Recent
from jaxmem.memory.exchange import Embeds
from jaxmem.mixers.mamba2 import Mamba2
from jaxmem.training.language import PADDING, empty_state, language_step, next_tokens
from jaxmem.training.plan import nbytes, price
from jaxmem.training.remat import timed


def model(layers=2, mlp=True, **sizes):
    mixer = Mamba2(2, **{"head_dim": 4, "size": 3, "block": 4, **sizes})
    config = small.config(axes=1)
    width = config.mlp_width if mlp else 0
    return replace(config, layers=layers, mixers=(mixer,) * layers, mlp_width=width)


def total(config, **options):
    run = timed(language_step(config, tile=3), fill=PADDING, **options)

    def loss(params, ids):
        return jnp.sum(run(params, next_tokens(ids), empty_state(config))[0])

    return loss


def test_the_loss_is_that_of_the_streaming_decoder():
    """Of the same ids in one chunk, through `chunk_step` and its logits."""
    config = model()
    params, ids = small.params(config), jnp.asarray(np.random.default_rng(0).integers(0, 29, 11))
    program = make_program(config, Recent(1, sinks=0), spec_of(config, chunk=11))
    n = np.arange(11, dtype=np.int32)[:, None]
    table = params["embedding"]["embedding"]
    rows = Embeds(table[ids], jnp.asarray(n), jnp.ones(11, jnp.int8), jnp.full((1,), 11))

    @jax.jit
    def plain(params):
        _, h = chunk_step(params, program, init_carry(program), rows)
        log_p = jax.nn.log_softmax(logits(params, config, h))
        return -jnp.sum(log_p[jnp.arange(10), ids[1:]])

    expected, found = plain(params), jax.jit(total(config, chunk=4))(params, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow  # the laws of `timed` are in test_remat.py
def test_one_gradient_for_any_cut():
    """Chunks of 4 (the last is ragged), nested segments, and the whole stream at once."""
    with jax.enable_x64():
        config = model()
        params = jax.tree.map(lambda x: x.astype(jnp.float64), small.params(config))
        ids = jnp.asarray(np.random.default_rng(1).integers(0, 29, 18))
        cuts = ({"chunk": 18}, {"chunk": 4, "nested": True, "segments": 2})
        found = [jax.jit(jax.grad(total(config, **cut)))(params, ids) for cut in cuts]
        for a, b in zip(*map(jax.tree.leaves, found), strict=True):
            # Some parts compute in float32, whatever the weights are.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def slope(config, **options):
    """Temporary bytes that a token costs, between 16 and 32 chunks of 128."""
    params = jax.eval_shape(lambda: init_decoder(config, jax.random.key(0)))
    at = [
        price(total(config, chunk=128, **options), params, jax.ShapeDtypeStruct((n,), jnp.int32))
        for n in (2048, 4096)
    ]
    return (at[1] - at[0]) / 2048


DEEP = {"layers": 4, "mlp": False, "head_dim": 8, "size": 16, "block": 64}


def states(config):
    """Bytes of a token's share of the states before chunks."""
    return nbytes(jax.eval_shape(lambda: empty_state(config))) / 128


@pytest.mark.slow
def test_a_token_costs_its_share_of_the_states():
    """No array [S, E]: the states, the ids and labels (8 bytes), the losses of the chunks."""
    config = model(**DEEP)
    assert states(config) <= slope(config) <= states(config) + 24


@pytest.mark.slow
def test_in_segments_a_token_costs_less():
    config = model(**DEEP)
    assert slope(config, nested=True, segments=4) <= states(config) / 4 + 24


def test_decoders_that_attend_are_refused():
    with pytest.raises(ValueError, match="2 layers attend"):
        language_step(small.config())

"""YaRN: frequencies and attention factor from the definition, in a config and in the decoder."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from jaxmem.decoder import decoder as dec
from jaxmem.decoder.step import chunk_step, init_carry, make_program
from jaxmem.memory.baselines import Full
from jaxmem.models.hf.config import decoder_config
from jaxmem.rope import mrope_sectioned, rope, rope_1d, yarn

# Qwen2.5: 32,768 positions are 5215 / theta^(2i/128) turns of pair i. 32 turns are pair 23.6, one
# is pair 39.65: outwards, 23 and 40.
THETA, CONTEXT = 1e6, 32_768
TEXT = {
    "hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "vocab_size": 152064,
    "num_key_value_heads": 4, "intermediate_size": 18944, "rope_theta": THETA,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip


def expected(pair, factor, low=23, high=40):
    """Return pair's frequency of a table with 64 pairs."""
    kept = 1.0 - min(max((pair - low) / (high - low), 0.0), 1.0)
    return THETA ** (-pair / 64) * (kept + (1.0 - kept) / factor)


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_frequencies_are_those_of_the_definition(factor):
    got = yarn(rope_1d(128, THETA), factor, theta=THETA, original=CONTEXT)
    want = [expected(pair, factor) for pair in range(64)]
    np.testing.assert_allclose(got.inv_freq, want, rtol=2e-6)
    np.testing.assert_allclose(got.inv_freq[:24], rope_1d(128, THETA).inv_freq[:24], rtol=1e-7)
    assert got.attention_factor == pytest.approx({1: 1.0, 2: 1.0693147, 8: 1.2079442}[factor])


def test_options_of_the_definition():
    sectioned = mrope_sectioned(128, THETA, (16, 24, 24))
    got = yarn(sectioned, 4.0, theta=THETA, original=CONTEXT, truncate=False, attention_factor=1.5)
    edges = [64 * math.log(CONTEXT / (turns * math.tau)) / math.log(THETA) for turns in (32, 1)]
    want = [expected(pair, 4.0, *edges) for pair in range(64)]
    np.testing.assert_allclose(got.inv_freq, want, rtol=2e-6)
    assert got.axis == sectioned.axis and got.attention_factor == 1.5
    for wrong in ({"factor": 0.5, "original": 8}, {"factor": 2.0, "original": 0}):
        with pytest.raises(ValueError, match="factor must be at least 1"):
            yarn(sectioned, theta=THETA, **wrong)


def read(**settings):
    text = {**TEXT, "rope_scaling": settings}
    return decoder_config(text, rope_1d(128, THETA), qkv_bias=True, qk_norm=False, tied=False).rope


def test_a_config_that_asks_for_it():
    want = yarn(rope_1d(128, THETA), 4.0, theta=THETA, original=CONTEXT)
    assert read(type="yarn", factor=4.0) == want
    assert read(rope_type="yarn", factor=4.0, original_max_position_embeddings=CONTEXT) == want
    shorter = read(type="yarn", factor=4.0, original_max_position_embeddings=4096, beta_fast=16)
    assert shorter == yarn(
        rope_1d(128, THETA), 4.0, theta=THETA, original=4096, beta_fast=16
    ) and shorter != want  # fmt: skip
    assert read(type="default") == rope_1d(128, THETA)
    with pytest.raises(ValueError, match="has no factor"):
        read(type="yarn")
    with pytest.raises(ValueError, match="mscale is 1.0"):
        read(type="yarn", factor=4.0, mscale=1.0)


def test_the_decoder_turns_and_weighs_as_transformers_does():
    """A stream of one chunk: softmax((m R q) . (m R k) / sqrt(D)), m on either side."""
    plain = small.config(layers=1, axes=1)
    cfg = replace(plain, rope=yarn(plain.rope, 8.0, theta=1e4, original=64))
    weights, rows = small.params(plain), small.chunk(small.stream_rows(plain, 1, 8), 0)
    program = make_program(cfg, Full(8), small.spec_of(cfg, chunk=8))
    step = jax.jit(lambda carry: chunk_step(weights, program, carry, rows)[1])
    got = step(init_carry(program))
    layer, m = dec.layer_at(weights, 0), 0.1 * math.log(8.0) + 1.0
    q, k, v = dec.qkv(layer, plain, rows.x)
    q, k = (m * rope(x, rows.pos[:, None], cfg.rope) for x in (q, k))
    k, v = (jnp.repeat(x, 2, axis=1) for x in (k, v))
    logits = jnp.einsum("qhd,khd->hqk", q, k) / math.sqrt(cfg.head_dim)
    causal = np.tril(np.ones((8, 8), bool))[None]
    shares = jax.nn.softmax(jnp.where(causal, logits, -jnp.inf), axis=-1)
    want = dec.finish(layer, plain, rows.x, jnp.einsum("hqk,khd->qhd", shares, v))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert plain.rope.inv_freq[0] == cfg.rope.inv_freq[0] and cfg.rope.attention_factor == m
    assert plain.rope.inv_freq[-1] == pytest.approx(8 * cfg.rope.inv_freq[-1])

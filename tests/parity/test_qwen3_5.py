"""Qwen3.5 against transformers: features, positions, layers, states, logits, tokens, streams."""

import jax.numpy as jnp
import numpy as np
import pytest
from passes import CHUNK, FEATURES, Reference, bounds, close, greedy, in_chunks, one_pass

from jaxmem.models.qwen import qwen3_5 as family
from jaxmem.models.qwen.qwen3_vision import encode_vision
from jaxmem.models.qwen.qwen3_vl import positions, prompt_plan

HIDDEN, LOGITS, STATES, TAILS = 1.8e-4, 1e-4, 8e-6, 4e-5
"""Absolute, from the stored features: twice what the file, float32, is from float64."""


@pytest.fixture(scope="module")
def ref(golden):
    return Reference(golden / "hf" / "qwen3_5", family)


@pytest.fixture(scope="module")
def plan(ref):
    return prompt_plan(ref.config, ref.ids(0), videos=ref.grids("video_grid_thw"))


def within(actual, expected, limit):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def check_states(ref, carry):
    """States, and the last inputs of the convolutions: the file's hold one more."""
    tails, states = carry.states[0]
    for i in range(len(states)):
        within(states[i], ref[f"state{i}"][0], STATES)
        within(tails[i], ref[f"conv{i}"][0, :, 1:].T, TAILS)
    assert len(states) == ref.config.decoder.kinds.count(ref.config.decoder.stacks[0])


def test_vision(ref):
    ((_, found),) = ref.encoded(encode_vision).values()
    close(found.tokens, ref["video_features"], FEATURES)
    assert not found.deep.size and not ref.config.vision.deep


def test_positions(ref):
    grids = ref.grids("video_grid_thw")
    pos, after = positions(ref.config, ref.ids(0), videos=grids)
    np.testing.assert_array_equal(pos.T, ref["position_ids"][:, 0])
    assert after == len(pos) + int(ref["rope_deltas"][0, 0])


def test_one_pass(ref, plan):
    decoder = ref.config.decoder
    _, outputs, out = one_pass(ref.params["decoder"], decoder, plan, ref["video_features"])
    within(out, ref["logits"][0], LOGITS)
    assert len(outputs) == decoder.layers
    for i, layer in enumerate(outputs):
        within(layer, ref[f"lm{i}_out"][0], HIDDEN)


@pytest.mark.parametrize(
    "size", [CHUNK, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 34))]
)
def test_stream(ref, plan, size):
    """Chunks that cut frames anywhere, through `full` memory: logits and states of the one pass."""
    starts, features = bounds(len(plan.ids), size), jnp.asarray(ref["video_features"])
    given = ref.params["decoder"], ref.config.decoder, plan, features, None, starts, size
    found, carry, _ = in_chunks(*given)
    within(found, ref["logits"][0], LOGITS)
    check_states(ref, carry)


def test_greedy(ref, plan):
    (expected,), features = ref["greedy_tokens"], ref["video_features"]
    given = ref.params["decoder"], ref.config.decoder, plan, features, None, len(expected)
    np.testing.assert_array_equal(greedy(*given), expected)

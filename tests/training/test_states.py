"""Embedded models with a state: one pass computes what streaming and asking do, and they train."""

import jax
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.data.world import synthetic as sy
from jaxmem.models.tiny import tiny
from jaxmem.models.tiny.embedded import Inputs, embedded
from jaxmem.models.tiny.mixers import MIXERS
from jaxmem.training import batches, losses

SMALL = tiny.TinyConfig(
    width=32, layers=4, heads=2, kv_heads=1, head_dim=16, mlp_width=128, stem_width=16
)
SECONDS, COUNT = 6, 8
CASES = [*((name, "none") for name in MIXERS), ("mamba2", "one_in_four")]


def drawn(config, seed=3):
    """Weights of which none is 0 or 1 by accident."""
    shapes, rng = tiny.init(config, jax.random.key(seed)), np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32), shapes
    )


@pytest.mark.parametrize(("mixer", "attend"), CASES)
def test_one_pass_is_streaming_and_asking(mixer, attend, tmp_path):
    """From the weights file, second by second, every question at its time."""
    config = tiny.sized(mixer, attend, SMALL)
    path = tmp_path / "model.safetensors"
    tiny.save(path, drawn(config), config)
    model = embedded(path)
    batch, asked = batches.one((3, 1), SECONDS, COUNT, sy.level("standard"), config, disturb=False)
    assert len(set(batch.time.tolist())) > 2
    one_pass = jax.jit(losses.forward, static_argnums=1)
    expected = one_pass(model.params, config, batches.stack([batch]))[0][0]
    program = jm.compile(model, jm.Full(SECONDS * config.tokens))
    bound, carry, found = jm.bind(program, model.params), jm.start(program), {}
    for second in range(SECONDS):
        part = Inputs(
            batch.frames[None, second : second + 1],
            batch.logmel[None, second : second + 1],
            np.ones((1, 1), bool),
        )
        carry = jm.stream(bound, carry, part, program=program)
        for i in np.flatnonzero(batch.time == second + 1):
            rows = jm.question_rows(model.params, model.tokenize(asked[i].text), program=program)
            found[int(i)] = jm.ask(bound, carry, rows, program=program).first
    assert len(found) == COUNT
    spread = float(np.std(expected))
    for i, logits in found.items():
        np.testing.assert_allclose(logits, expected[i], atol=2e-4 * max(spread, 1), err_msg=str(i))
    assert np.abs(expected - expected[:1]).max() > 0.1 * spread

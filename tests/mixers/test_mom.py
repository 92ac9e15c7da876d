"""A mixture of one memory is that memory, and memories that were not chosen stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.mom import MoM

WIDTH, ROWS = 12, 20
X = jax.random.normal(jax.random.key(1), (ROWS, WIDTH))
REAL = jnp.ones(ROWS, bool)


def test_one_memory_is_gated_delta():
    mixer, plain = MoM(2, 4, memories=1, chosen=1, shared=False), GatedDelta(2, key_dim=4, eps=1e-5)
    w = mixer.weights(WIDTH, jax.random.key(0))
    one = {n: w[n]["kernel"][0] for n in "kvab"}
    qkv = jnp.concatenate([w["q"]["kernel"], one["k"], one["v"]], axis=1)
    same = {"qkv": {"kernel": qkv}} | {n: {"kernel": one[n]} for n in "ab"}
    same |= {n: w[n] for n in ("z", "conv", "dt_bias", "a_log", "norm", "out")}
    y, state = jax.jit(mixer.chunk)(w, mixer.init(WIDTH), X, REAL)
    want, end = jax.jit(plain.chunk)(same, plain.init(WIDTH), X, REAL)
    np.testing.assert_allclose(y, want, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(state.memory[0], end.memory, atol=1e-6)
    np.testing.assert_allclose(state.tail[0], end.tail, atol=1e-6)


def test_a_memory_that_is_not_chosen_keeps_every_bit():
    mixer = MoM(2, 4, memories=3, chosen=1)
    w = mixer.weights(WIDTH, jax.random.key(0))
    step = jax.jit(mixer.chunk)
    state = step(w, mixer.init(WIDTH), X, REAL)[1]
    share = np.asarray(mixer.shares(w, X))
    np.testing.assert_allclose(share.sum(1), 2, atol=1e-6)  # one of the chosen, one of the shared
    assert (share[:, -1] == 1).all() and ((share[:, :-1] > 0).sum(1) == 1).all()
    after = step(w, state, X[:1], REAL[:1])[1]
    for m in range(3):
        same = np.array_equal(after.memory[m], state.memory[m])
        assert same is not (share[0, m] > 0)
    assert not np.array_equal(after.memory[3], state.memory[3])


@pytest.mark.parametrize("options", [{"memories": 2, "chosen": 3}, {"heads": 0}, {"kernel": 1}])
def test_wrong_sizes_are_refused(options):
    with pytest.raises(ValueError, match="at most as many chosen"):
        MoM(**{"heads": 2, **options})

"""Titans against the delta rule in a loop, numerical gradients, and hours of stream."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxmem.mixers.network import Network
from jaxmem.mixers.titans import Titans

WIDTH, ROWS = 6, 9


class Linear(Network):
    """One matrix, without norm and residual."""

    def _of(self, x, gain, product):
        return product(0, x)


@dataclass(frozen=True)
class Plain(Titans):
    """Of a matrix, without momentum."""

    @property
    def network(self):
        return Linear(self.head_dim)

    def weights(self, width, key):
        found = super().weights(width, key)
        found["momentum"]["bias"] -= 1e9
        return found


def test_one_matrix_without_momentum_is_the_delta_rule():
    mixer, dim = Plain(1, 4, rows=1, rate=0.7), 4
    w = mixer.weights(WIDTH, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (ROWS, WIDTH))
    y, state = jax.jit(mixer.chunk)(w, mixer.init(WIDTH), x, jnp.ones(ROWS, bool))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), w)
    u = np.asarray(x) / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + mixer.eps)
    sigmoid = lambda name: 1 / (1 + np.exp(-(u @ p[name]["kernel"] + p[name]["bias"])))
    q, k, v = (u @ p[name]["kernel"] for name in "qkv")
    beta, keep = 2 * 0.7 * sigmoid("step") / dim, 1 - sigmoid("forget")
    memory, out = p["memory"]["kernel"][0, dim:].reshape(dim, dim), []
    for t in range(ROWS):
        out.append(q[t] @ memory)
        memory = keep[t] * memory - beta[t] * np.outer(k[t], k[t] @ memory - v[t])
    np.testing.assert_allclose(y, np.stack(out) @ p["out"]["kernel"], atol=1e-5)
    end = (state.memory + w["memory"]["kernel"])[0, dim:].reshape(dim, dim)
    np.testing.assert_allclose(end, memory, atol=1e-5)


@pytest.mark.parametrize("longest", [None, 0.02])
@pytest.mark.parametrize("depth", [1, 3])
def test_rows_that_step_one_by_one_are_a_loop(depth, longest):
    """Equations 13 to 18 of the paper: gradients where the chunk begins, weights of every row."""
    with jax.enable_x64():
        mixer = Titans(2, 4, depth, rows=4, read="each", rate=0.8, max_grad_norm=longest)
        w = jax.tree.map(lambda a: a.astype(np.float64), mixer.weights(WIDTH, jax.random.key(0)))
        x = jax.random.normal(jax.random.key(1), (ROWS, WIDTH), np.float64)
        state = jax.tree.map(lambda a: a.astype(np.float64), mixer.init(WIDTH))
        y, state = jax.jit(mixer.chunk)(w, state, x, jnp.ones(ROWS, bool))

        u = x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + mixer.eps)
        gate = lambda name: jax.nn.sigmoid(u @ w[name]["kernel"] + w[name]["bias"][None])
        q, k, v = ((u @ w[name]["kernel"]).reshape(ROWS, 2, 4) for name in "qkv")
        theta, eta, alpha = 0.8 * gate("step"), gate("momentum"), gate("forget")
        error = lambda flat, k, v: jnp.mean(jnp.square(mixer.network.read(flat, k[None])[0] - v))
        slope, out = jax.jit(jax.grad(error)), np.zeros((ROWS, 2, 4))
        for h in range(2):
            now, fast = w["memory"]["kernel"][h], 0.0
            for t in range(ROWS):
                if t % 4 == 0:
                    begin, held = now, fast
                step = theta[t, h] * slope(begin, k[t, h], v[t, h])
                step *= min(1, (longest or np.inf) / np.linalg.norm(step))
                fast = eta[t, h] * fast - step
                now = (1 - alpha[t, h]) * now + fast
                out[t, h] = mixer.network.read(now, q[t, h][None])[0]
            # The last row waits for its chunk.
            np.testing.assert_allclose(
                state.memory[h] + w["memory"]["kernel"][h], begin, atol=1e-12
            )
            np.testing.assert_allclose(state.momentum[h], held, atol=1e-12)
        np.testing.assert_allclose(y, out.reshape(ROWS, 8) @ w["out"]["kernel"], atol=1e-12)


def test_a_chunk_of_one_row_is_read_after_it():
    """Then the paper's rule and the released one are the same."""
    x, real = jax.random.normal(jax.random.key(1), (ROWS, WIDTH)), jnp.ones(ROWS, bool)
    got = {}
    for read in ("each", "released"):
        mixer = Titans(2, 4, 2, rows=1, read=read)
        w = mixer.weights(WIDTH, jax.random.key(0))
        got[read] = jax.jit(mixer.chunk)(w, mixer.init(WIDTH), x, real)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *got.values())


@pytest.mark.slow
@pytest.mark.parametrize("longest", [None, 0.05])
@pytest.mark.parametrize("read", ["released", "each"])
def test_gradients_are_those_of_differences(read, longest):
    """Through the gradient steps, with and without a limit of their length."""
    with jax.enable_x64():
        mixer = Titans(1, 6, 2, rows=3, read=read, max_grad_norm=longest)
        w = mixer.weights(WIDTH, jax.random.key(0))
        w, state = jax.tree.map(lambda a: a.astype(np.float64), (w, mixer.init(WIDTH)))
        x = jax.random.normal(jax.random.key(1), (ROWS, WIDTH), np.float64)
        run = jax.jit(lambda w, x: jnp.sin(mixer.chunk(w, state, x, jnp.ones(ROWS, bool))[0]))
        check_grads(run, (w, x), order=1, modes=["rev"], atol=1e-5, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"read": "each"},
     pytest.param({"rate": 1.0, "max_grad_norm": 1.0}, marks=pytest.mark.slow)],
)  # fmt: skip
def test_an_hour_stays_finite(options):
    """72,000 rows, at initial weights and at weights three times as large."""
    mixer, real = Titans(2, 8, 2, **options), jnp.ones(320, bool)
    w = mixer.weights(WIDTH, jax.random.key(0))

    def hour(scale):
        scaled = jax.tree.map(lambda a: a * scale, w)

        def step(state, key):
            y, state = mixer.chunk(scaled, state, jax.random.normal(key, (320, WIDTH)), real)
            return state, jnp.max(jnp.abs(y))

        return jax.lax.scan(step, mixer.init(WIDTH), jax.random.split(jax.random.key(3), 225))

    state, most = jax.jit(jax.vmap(hour))(jnp.asarray([1.0, 3.0]))
    assert np.isfinite(most).all() and most.max() < 1e3 and np.abs(state.memory).max() < 1e3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"depth": 0}, "positive"), ({"rate": 0.0}, "positive"), ({"read": "after"}, "'after'"),
     ({"max_grad_norm": -1.0}, "max_grad_norm=-1.0")],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Titans(**{"heads": 2, **options})

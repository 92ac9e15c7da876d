"""The balance of a mixture's router: its numbers by loops, and that its gradient evens it out."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.kv import AUDIO, EMPTY, VISION
from jaxmem.mixers.mom import MoM
from jaxmem.mixers.routing import routing

WIDTH, ROWS = 12, 40
MIXER = MoM(2, 4, memories=4, chosen=2)
KINDS = np.resize([VISION, VISION, AUDIO], ROWS)
KINDS[-7:] = EMPTY
X = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32) + 1


def of(router):
    weights = MIXER.weights(WIDTH, jax.random.key(0)) | {"router": {"kernel": router}}
    return routing(MIXER, weights, X, KINDS)


def test_shares_and_loss_are_those_of_a_loop():
    router = np.random.default_rng(1).normal(size=(WIDTH, 4)).astype(np.float32)
    loss, share, by_kind = jax.jit(of)(router)
    z = X @ router
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    chosen = {kind: np.zeros(4) for kind in (VISION, AUDIO)}
    for t in range(ROWS - 7):
        chosen[KINDS[t]][np.argsort(p[t])[-2:]] += 0.5
    want = sum(chosen.values()) / (ROWS - 7)
    np.testing.assert_allclose(share, want, atol=1e-6)
    np.testing.assert_allclose(loss, 4 * np.sum(want * p[:-7].mean(0)), rtol=1e-5)
    for kind, counts in chosen.items():
        np.testing.assert_allclose(by_kind[kind], counts / counts.sum(), atol=1e-6)
    np.testing.assert_array_equal(by_kind[EMPTY], 0)


def test_steps_along_the_gradient_even_out_a_router_that_collapsed():
    noise = np.random.default_rng(2).normal(size=(WIDTH, 4)).astype(np.float32)
    router = 0.1 * jnp.asarray(noise) + jnp.asarray([0.3, 0.2, 0.0, 0.0])[None]
    start = of(router)
    step = jax.jit(lambda r: r - 0.05 * jax.grad(lambda r: of(r).loss)(r))
    for _ in range(200):
        router = step(router)
    end = of(router)
    assert start.share[:2].sum() > 0.9 and start.loss > 1.5
    assert end.loss < 1.1 and end.share.max() < 0.4 and end.share.min() > 0.1

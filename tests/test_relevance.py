"""MemIndex against a plain loop, and the fit of its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.kv import KV
from jaxmem.memory.base import Question
from jaxmem.memory.flexmem import memindex as relevance
from jaxmem.memory.flexmem.memindex import MemIndex, best_layers, fit_layers, published
from jaxmem.rope import rope_1d


def plain_scores(index, keys, many, query):
    """r of every layer and clip by loops, in float64."""
    rope, d = index.rotary, keys.shape[-1]

    def turned(x, p):
        angle = p * np.asarray(rope.inv_freq)
        a, b = np.split(np.asarray(x, float), 2)
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                               b * np.cos(angle) + a * np.sin(angle)])  # fmt: skip

    pinned = query.prefix.modality.shape[1]
    last = int(np.sum(query.valid)) - 1
    place = 0 if index.query == "zero" else pinned + index.keys + last
    clip_count, heads = keys.shape[0], query.q.shape[2]
    out = np.zeros((len(index.layers), clip_count))
    for i, layer in enumerate(index.layers):
        for h in range(heads):
            g = h * keys.shape[3] // heads
            q = turned(query.q[layer, last, h], place) / np.sqrt(d)
            dot = lambda k, p, q=q: np.exp(q @ turned(k, p))
            sums = np.array([sum(dot(keys[n, i, j, g], pinned + j) for j in range(many[n]))
                             for n in range(clip_count)])  # fmt: skip
            sink = sum(dot(query.prefix.k[layer, p, g], p) for p in range(pinned))
            total = sums + sink if index.against == "prefix" else sums.sum()
            out[i] += sums / total / heads
    return out


@pytest.mark.parametrize(
    "index",
    [
        MemIndex(rope_1d(4), (1, 2), keys=3),
        MemIndex(rope_1d(4), (2, 0), (0.5, -2.0), 3, query="behind"),
        published(rope_1d(4), [0, 2])._replace(keys=3),
    ],
)
def test_memindex_is_the_plain_loop(index):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))
    keys, many = draw(5, 2, 3, 2, 4), np.array([3, 3, 2, 0, 3])
    where = jnp.broadcast_to(jnp.arange(2)[None, :, None], (3, 2, 1))
    sink = KV(draw(3, 2, 2, 4), draw(3, 2, 2, 4), where[..., None], where,
                  jnp.ones((3, 2, 1), jnp.int8))  # fmt: skip
    query = Question(draw(3, 6, 4, 4), jnp.arange(6) < 4, sink)
    got = relevance.layer_scores(index, keys, jnp.asarray(many), query)
    want = plain_scores(index, np.asarray(keys), many, query)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    alpha = np.ones(2) if index.weights is None else np.asarray(index.weights)
    total = relevance.scores(index, keys, jnp.asarray(many), query)
    np.testing.assert_allclose(total, alpha @ want, rtol=1e-5, atol=1e-6)


def test_fitting_the_layers():
    rng = np.random.default_rng(0)
    x = rng.random((40, 6)).astype(np.float32)
    alpha = np.array([0.1, 2.0, -3.0, 0.7, 1.5, 0.0], np.float32)
    y = x @ alpha
    got = jax.jit(fit_layers)(x, y)
    np.testing.assert_allclose(got, alpha, atol=1e-4)
    assert best_layers(got, range(3, 9)) == (4, 6, 7)
    assert best_layers(got, range(3, 9), 1) == (4,)
    closed = np.linalg.solve(x.T @ x + 0.5 * np.eye(6), x.T @ y)
    np.testing.assert_allclose(fit_layers(jnp.asarray(x), jnp.asarray(y), 0.5), closed, rtol=1e-3)
    # Fewer samples than layers: the shortest of all exact solutions.
    few = fit_layers(jnp.asarray(x[:3]), jnp.asarray(y[:3]))
    np.testing.assert_allclose(few, np.linalg.pinv(x[:3]) @ y[:3], atol=1e-4)


def test_wrong_inputs_are_refused():
    query = Question(jnp.zeros((2, 4, 4, 4)), jnp.ones(4, bool), None)
    keys = jnp.zeros((3, 1, 5, 2, 4))
    with pytest.raises(ValueError, match="prefix="):
        relevance.layer_scores(MemIndex(rope_1d(4), (0,)), keys, jnp.full(3, 5), query)
    with pytest.raises(ValueError, match="targets"):
        fit_layers(jnp.zeros((3, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match="ridge"):
        fit_layers(jnp.zeros((3, 2)), jnp.zeros(3), -1.0)
    with pytest.raises(ValueError, match="count=3"):
        best_layers(jnp.zeros(2), [1, 2], 3)

"""MemIndex against a plain loop, and the fit of its layers."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.kv import EMPTY, KV, VISION
from jaxmem.memory.base import Spec
from jaxmem.memory.exchange import Question
from jaxmem.memory.flexmem import memindex
from jaxmem.memory.flexmem.memindex import MemIndex, best_layers, fit_layers, published
from jaxmem.rope import rope_1d

SPEC = Spec(layers=3, kv_heads=2, head_dim=4, width=8, prefix=2, rope=rope_1d(4))


def plain_scores(index, keys, many, query):
    """r of every layer and clip by loops, in float64."""
    rope, d = SPEC.rope, keys.shape[-1]
    assert rope is not None

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
            total = sums.sum() if index.against == "clips" else sums + sink
            out[i] += sums / total / heads
    return out


@pytest.mark.parametrize(
    "index",
    [
        MemIndex((1, 2), keys=3),
        MemIndex((2, 0), (0.5, -2.0), 3, "prefix", query="after"),
        replace(published([0, 2]), keys=3),
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
    got = memindex.layer_scores(index, SPEC, keys, jnp.asarray(many), query)
    want = plain_scores(index, np.asarray(keys), many, query)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    alpha = np.ones(2) if index.weights is None else np.asarray(index.weights)
    total = memindex.scores(index, SPEC, keys, jnp.asarray(many), query)
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


@pytest.mark.parametrize(
    ("layers", "read"),
    [(28, (14, 22, 26)), (4, (2, 3)), (2, (1,)), (1, (0,)), (36, (18, 29, 34))],
)
def test_depths_of_the_released_layers(layers, read):
    assert MemIndex().read_layers(layers) == read


def test_an_index_measures_against_the_prefix_where_there_is_one():
    alone = replace(SPEC, prefix=0)
    assert MemIndex().measured_against(SPEC) == "prefix"
    assert MemIndex().measured_against(alone) == "clips"
    with pytest.raises(ValueError, match=r"Spec\.prefix is 0"):
        MemIndex(against="prefix").measured_against(alone)


@pytest.mark.parametrize("has", [0, 2, 3])
def test_the_best_keys_of_a_clip_and_a_chunk_that_joins_it(has):
    rng = np.random.default_rng(has)
    draw = lambda *shape: rng.random(shape).astype(np.float32)
    old, new = (draw(2, 3, 1, 2), draw(2, 3), jnp.int32(has)), (draw(2, 5, 1, 2), draw(2, 5))
    modality = np.asarray([VISION] * 4 + [EMPTY], np.int8)
    keys, worth = memindex.best_keys(old, (*new, jnp.asarray(modality)), np.asarray([False] * 2))
    for l in range(2):
        score = np.concatenate([old[1][l, :has], new[1][l, :4]])
        both = np.concatenate([old[0][l, :has], new[0][l, :4]])
        best = np.sort(np.argsort(-score, kind="stable")[:3])
        np.testing.assert_array_equal(keys[l], both[best])
        np.testing.assert_array_equal(worth[l], score[best])


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="targets"):
        fit_layers(jnp.zeros((3, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match="ridge"):
        fit_layers(jnp.zeros((3, 2)), jnp.zeros(3), -1.0)
    with pytest.raises(ValueError, match="count=3"):
        best_layers(jnp.zeros(2), [1, 2], 3)
    with pytest.raises(ValueError, match="keys of at least 1"):
        MemIndex(keys=0)
    with pytest.raises(ValueError, match="one weight per layer"):
        MemIndex((0,), weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="'all'"):
        MemIndex(against="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the model has 3"):
        MemIndex((3,)).read_layers(3)
    query = Question(jnp.zeros((3, 4, 4, 4)), jnp.ones(4, bool), None)
    with pytest.raises(ValueError, match=r"Spec\.rope"):
        spec = replace(SPEC, rope=None)
        memindex.layer_scores(MemIndex((0,)), spec, jnp.zeros((3, 1, 5, 2, 4)), jnp.ones(3), query)

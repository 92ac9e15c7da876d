"""`kv.take`, the move of kept rows, against plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.kernels.select import select
from jaxmem.kv import KV, take


def pool(n, rng, dtype=jnp.float32):
    """A pool and two arrays of a policy's own, none of whose rows is zero."""
    normal = lambda *shape: rng.normal(size=shape) + 10
    tokens = KV(
        k=jnp.asarray(normal(n, 2, 20), dtype),
        v=jnp.asarray(normal(n, 2, 20), dtype),
        pos=jnp.asarray(rng.integers(1, 99, (n, 1, 3)), jnp.int32),
        index=jnp.arange(1, n + 1, dtype=jnp.int32)[:, None],
        modality=jnp.full((n, 1), 2, jnp.int8),
    )
    return tokens, jnp.asarray(normal(n)), jnp.ones((n, 2), bool)


def by_hand(slots, index, keep):
    def one(leaf):
        rows = np.asarray(leaf)[index]
        rows[~keep] = 0
        return rows

    return jax.tree.map(one, slots)


def equal(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), got, expected)


@pytest.mark.parametrize(
    ("n", "count", "dtype"), [(37, 21, jnp.float32), (3, 50, jnp.bfloat16), (1, 1, jnp.float16)]
)
def test_moves_rows_and_zeroes_what_is_not_kept(n, count, dtype):
    rng = np.random.default_rng(n)
    slots, index = pool(n, rng, dtype), rng.integers(0, n, count).astype(np.int32)
    run = jax.jit(lambda *given: take(*given))
    for keep in (rng.random(count) < 0.6, np.ones(count, bool), np.zeros(count, bool)):
        equal(run(slots, index, keep), by_hand(slots, index, keep))


def test_moves_what_select_chose_in_many_layers():
    rng = np.random.default_rng(0)
    layers = [pool(30, rng) for _ in range(3)]
    slots = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    scores = jnp.asarray(rng.normal(size=(3, 1, 30)), jnp.float32)
    caps = jnp.asarray([[9], [0], [20]], jnp.int32)

    @jax.jit
    def run(slots, scores, caps):
        def one(slots, scores, caps):
            index, keep = select(scores, caps, slots=12)
            return take(slots, index, keep), index, keep

        return jax.vmap(one)(slots, scores, caps)

    got, index, keep = run(slots, scores, caps)
    assert keep.sum(1).tolist() == [9, 0, 12]
    for i, layer in enumerate(layers):
        rows, real = np.asarray(index[i]), np.asarray(keep[i])
        equal(jax.tree.map(lambda x, i=i: x[i], got), by_hand(layer, rows, real))


def test_gradient_returns_to_the_rows_that_were_kept():
    k, kind = jnp.arange(10.0).reshape(5, 2), jnp.ones((5, 1), jnp.int8)
    index, keep = jnp.asarray([1, 4, 4, 2]), jnp.asarray([True, True, True, False])

    def loss(k):
        moved, _ = take((k, kind), index, keep)
        return jnp.sum(moved * jnp.asarray([[1.0], [2.0], [3.0], [4.0]]))

    expected = np.zeros((5, 2))
    expected[1], expected[4] = 1, 5
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(k), expected)


def test_nothing_to_move_from_or_to():
    index, keep = jnp.zeros(4, jnp.int32), jnp.zeros(4, bool)
    out = take(jnp.ones((0, 3)), index, keep)
    np.testing.assert_array_equal(out, np.zeros((4, 3)))
    out = take(jnp.ones((5, 3)), index[:0], keep[:0])
    assert out.shape == (0, 3)


def test_an_index_outside_of_the_pool_is_a_row_of_zeros():
    index, keep = jnp.asarray([2, 3, 9]), jnp.ones(3, bool)
    out = take(jnp.ones((3, 2)), index, keep)
    np.testing.assert_array_equal(out, [[1, 1], [0, 0], [0, 0]])

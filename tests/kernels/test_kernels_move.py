"""The move of kept rows: the kernel, interpreted, and its reference, against plain indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.kernels.move import move
from jaxmem.kernels.move import pallas as move_pallas
from jaxmem.kernels.select import select
from jaxmem.kv import KV, take

pytestmark = pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
BOTH = pytest.mark.parametrize(
    "implementation", ["xla", "pallas_interpret", pytest.param("pallas", marks=pytest.mark.gpu)]
)


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


@BOTH
@pytest.mark.parametrize(
    ("n", "count", "dtype"), [(37, 21, jnp.float32), (3, 50, jnp.bfloat16), (1, 1, jnp.float16)]
)
def test_moves_rows_and_zeroes_what_is_not_kept(n, count, dtype, implementation, monkeypatch):
    monkeypatch.setattr(move_pallas, "COLUMNS", 16)  # several blocks, the last one reaching back
    rng = np.random.default_rng(n)
    slots, index = pool(n, rng, dtype), rng.integers(0, n, count).astype(np.int32)
    run = jax.jit(lambda *given: move(*given, implementation=implementation))
    for keep in (rng.random(count) < 0.6, np.ones(count, bool), np.zeros(count, bool)):
        equal(run(slots, index, keep), by_hand(slots, index, keep))


@BOTH
def test_moves_what_select_chose_in_many_layers(implementation):
    rng = np.random.default_rng(0)
    layers = [pool(30, rng) for _ in range(3)]
    slots = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    scores = jnp.asarray(rng.normal(size=(3, 1, 30)), jnp.float32)
    caps = jnp.asarray([[9], [0], [20]], jnp.int32)

    @jax.jit
    def run(slots, scores, caps):
        def one(slots, scores, caps):
            index, keep = select(scores, caps, slots=12)
            return move(slots, index, keep, implementation=implementation), index, keep

        return jax.vmap(one)(slots, scores, caps)

    got, index, keep = run(slots, scores, caps)
    assert keep.sum(1).tolist() == [9, 0, 12]
    for i, layer in enumerate(layers):
        rows, real = np.asarray(index[i]), np.asarray(keep[i])
        equal(jax.tree.map(lambda x, i=i: x[i], got), by_hand(layer, rows, real))


@BOTH
def test_gradient_returns_to_the_rows_that_were_kept(implementation):
    k, kind = jnp.arange(10.0).reshape(5, 2), jnp.ones((5, 1), jnp.int8)
    index, keep = jnp.asarray([1, 4, 4, 2]), jnp.asarray([True, True, True, False])

    def loss(k):
        moved, _ = move((k, kind), index, keep, implementation=implementation)
        return jnp.sum(moved * jnp.asarray([[1.0], [2.0], [3.0], [4.0]]))

    expected = np.zeros((5, 2))
    expected[1], expected[4] = 1, 5
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(k), expected)


@BOTH
def test_nothing_to_move_from_or_to(implementation):
    index, keep = jnp.zeros(4, jnp.int32), jnp.zeros(4, bool)
    out = move(jnp.ones((0, 3)), index, keep, implementation=implementation)
    np.testing.assert_array_equal(out, np.zeros((4, 3)))
    out = move(jnp.ones((5, 3)), index[:0], keep[:0], implementation=implementation)
    assert out.shape == (0, 3)


def test_an_index_outside_of_the_pool_is_a_row_of_zeros():
    index, keep = jnp.asarray([2, 3, 9]), jnp.ones(3, bool)
    for name in ("xla", "pallas_interpret"):
        out = move(jnp.ones((3, 2)), index, keep, implementation=name)
        np.testing.assert_array_equal(out, [[1, 1], [0, 0], [0, 0]])
    equal(take(jnp.ones((3, 2)), index, keep), np.asarray(out))


def test_errors_name_what_came():
    index, keep = jnp.zeros(2, jnp.int32), jnp.ones(2, bool)
    with pytest.raises(ValueError, match=r"one leading axis N in common, got \[\(3,\), \(4,\)\]"):
        move((jnp.ones(3), jnp.ones((4, 2))), index, keep)
    with pytest.raises(ValueError, match=r"must both be \[K\], got \(2,\) and \(1,\)"):
        move(jnp.ones(3), index, keep[:1])
    with pytest.raises(NotImplementedError, match="float8_e4m3fn"):
        move(jnp.ones(3, jnp.float8_e4m3fn), index, keep, implementation="pallas")

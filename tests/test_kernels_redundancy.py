"""Neighbour cosines against a loop and against published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.kernels.redundancy import neighbour_cosine, unit


def expected(x, n):
    x = np.asarray(x, np.float64)
    u = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-300)
    s = np.ones(len(x))
    for i in range(n):
        left = u[i] @ u[i - 1] if i > 0 else 1.0
        right = u[i] @ u[i + 1] if i < n - 1 else 1.0
        s[i] = (left + right) / 2
    return s


@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_a_loop(rows, dtype):
    x = jnp.asarray(np.random.default_rng(rows).normal(size=(rows, 24)), dtype)
    run = jax.jit(lambda x, n: (neighbour_cosine(unit(x), n), neighbour_cosine(x, n, lengths=True)))
    x = x.at[rows // 2].set(0.0)  # as an empty slot, or a silent one
    for n in {0, 1, rows // 2, rows}:
        for s in run(x, jnp.int32(n)):
            assert s.dtype == jnp.float32
            np.testing.assert_allclose(s, expected(x, n), atol=1e-6)


def test_unit_is_safe_at_zero_and_at_the_ends_of_float32():
    x = jnp.asarray([[0.0, 0.0], [3e38, 4e37], [3e-36, 4e-36], [-2.0, 0.0]])
    np.testing.assert_allclose(unit(x)[3], [-1.0, 0.0])
    np.testing.assert_allclose(jnp.sum(unit(x)[1:3] ** 2, axis=-1), 1.0, rtol=1e-6)
    assert np.all(np.asarray(unit(x)[0]) == 0)
    grad = jax.grad(lambda x: jnp.sum(unit(x)))(x)
    assert np.all(np.isfinite(np.asarray(grad)[[0, 3]]))


def test_equals_published_similarity(golden):
    for path in sorted((golden / "omnimem").glob("select_*.npz")):
        if "global_block" in path.name:
            continue  # adds a term over blocks of the pool
        data = np.load(path)
        x = jnp.asarray(data["pool_hidden"])
        s = neighbour_cosine(unit(x), jnp.int32(len(x)))
        # Published values are the sum of both cosines.
        np.testing.assert_allclose(2 * s, data["similarity_sum"], atol=1e-5, err_msg=path.name)


def test_error_names_what_came():
    with pytest.raises(ValueError, match=r"unit must be \[N, U\]"):
        neighbour_cosine(jnp.zeros((2, 3, 4)), jnp.int32(1))

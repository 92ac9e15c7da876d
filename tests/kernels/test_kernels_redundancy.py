"""Cosines with neighbours and recent keys, against loops and published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases import CASES, build

from jaxmem.kernels.similarity import neighbour_cosine, similarity_to_recent, unit


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


def recent_keys(case):
    """Return the memory's keys of a case, which of them are recent, and their places of 5."""
    keys = build(case)[1][0].k
    rng = np.random.default_rng(case.dim)
    place = rng.integers(0, 5, keys.shape[:2]).astype(np.int32)
    recent = {"none": 0.0, "nothing": 0.0, "full": 1.1}.get(case.fill, 0.4)
    return keys, rng.random(keys.shape[1::-1]) < recent, place


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_similarity_to_recent_equals_a_loop(case):
    keys, recent, place = recent_keys(case)
    keys[: len(keys) // 9] = 0.0  # empty slots
    run = jax.jit(lambda *given: similarity_to_recent(*given, places=5))
    got = run(keys, recent, place)
    assert got.dtype == jnp.float32 and got.shape == recent.shape

    wide = keys.astype(np.float64)
    u = wide / np.maximum(np.linalg.norm(wide, axis=-1, keepdims=True), 1e-300)
    expected = np.zeros(recent.shape)
    for g, i in np.ndindex(*recent.shape):
        with_these = recent[g] & (place[:, g] == place[i, g])
        if with_these.any():
            expected[g, i] = np.mean(u[with_these, g] @ u[i, g])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.any(expected != 0) == bool(recent.any() and keys.size)


def test_similarity_to_recent_lowers_for_cuda():
    shape = jax.ShapeDtypeStruct
    keys, int32 = shape((12_288, 4, 128), jnp.bfloat16), jnp.int32
    given = keys, shape((4, 12_288), bool), shape((12_288, 4), int32)
    run = jax.jit(lambda *given: similarity_to_recent(*given, places=196))
    assert run.trace(*given).lower(lowering_platforms=("cuda",)).as_text()
    pairs = 12_288 * 12_288 * 4 * 4  # bytes of all cosines
    temporaries = run.lower(*given).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < pairs // 8


def test_error_names_what_came():
    keys, recent, place = jnp.zeros((6, 2, 4)), jnp.zeros((2, 6), bool), jnp.zeros((6, 2), int)
    with pytest.raises(ValueError, match=r"must be \[N, G, D\], \[G, N\] and \[N, G\]"):
        similarity_to_recent(keys, recent.T, place, places=3)
    with pytest.raises(ValueError, match="at least one place, got 0"):
        similarity_to_recent(keys, recent, place, places=0)
    with pytest.raises(ValueError, match=r"unit must be \[N, U\]"):
        neighbour_cosine(jnp.zeros((2, 3, 4)), jnp.int32(1))

"""Weights inside their stack: few rows are multiplied in blocks, and nothing else changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.decoder.decoder import with_stack
from jaxmem.kernels.dense import FEW, linear

LAYERS, SIZE, COLUMNS = 3, 1024, 4608  # 18 MiB a matrix: eight blocks; in bfloat16 four


@pytest.fixture(scope="module")
def stacked():
    draw = np.random.default_rng(0)
    real = lambda *shape: jnp.asarray(draw.standard_normal((LAYERS, *shape)), jnp.float32)
    low = {"a": real(SIZE, 2), "b": real(2, COLUMNS)}
    return {"up": {"kernel": real(SIZE, COLUMNS), "bias": real(COLUMNS)} | low}


def rows(*shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).standard_normal((*shape, SIZE)), dtype)


def of(stacked, x, index):
    return linear(x, with_stack(stacked, index)["up"])


def loops(x, stacked):
    return str(jax.make_jaxpr(of)(stacked, x, 1)).count("scan[")


@pytest.mark.parametrize("shape", [(), (1,), (2,), (FEW,), (2, 3), (FEW + 1,)])
def test_blocks_are_the_whole_product(stacked, shape):
    x, want = rows(*shape), jax.tree.map(lambda leaf: leaf[1], stacked)["up"]
    got = jax.jit(of)(stacked, x, 1)
    np.testing.assert_allclose(got, linear(x, want), atol=2e-4, rtol=1e-5)
    count = int(np.prod(shape, dtype=int))
    assert loops(x, stacked) == int(jax.default_backend() == "cpu" and 1 < count <= FEW)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="others do not copy a layer first")
def test_no_matrix_is_copied_whole(stacked):
    bare = {"up": {"kernel": stacked["up"]["kernel"]}}
    compiled = jax.jit(of).lower(bare, rows(4), 1).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.6 * 4 * SIZE * COLUMNS


def test_streams_side_by_side_and_gradients(stacked):
    x = rows(3, 4)
    loss = lambda of: jax.grad(lambda w, x: jnp.sum(jax.vmap(lambda x: of(w, x, 2))(x) ** 2))
    plain = lambda w, x, i: linear(x, jax.tree.map(lambda leaf: leaf[i], w)["up"])
    for got, want in zip(*(jax.tree.leaves(loss(f)(stacked, x)) for f in (of, plain)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_halves_add_up_in_float32(stacked):
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), stacked)
    x, want = rows(8, dtype=jnp.bfloat16), jax.tree.map(lambda leaf: leaf[0], half)["up"]
    got = jax.jit(of)(half, x, 0)
    assert got.dtype == jnp.bfloat16
    exact = np.asarray(linear(x.astype(jnp.float32), jax.tree.map(jnp.float32, want)))
    assert np.abs(np.asarray(got, np.float32) - exact).max() <= 2**-7 * np.abs(exact).max()


def test_small_matrices_stay_whole():
    small = {"up": {"kernel": jnp.ones((2, 64, 64))}}
    assert loops(jnp.ones((4, 64)), small) == 0
    assert "stack" not in with_stack({"scale": jnp.ones((2, 4))}, 0)

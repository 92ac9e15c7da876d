"""Rotary embeddings: which axis a pair reads, and angles that stay exact for hours."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.rope import (
    angles,
    cos_sin,
    mrope_interleaved,
    mrope_sectioned,
    rope,
    rope_1d,
    rotate,
    tables,
)

THETA = 1e6


def test_which_axis_a_pair_reads():
    assert mrope_sectioned(16, THETA, (4, 2, 2)).axis == (0, 0, 0, 0, 1, 1, 2, 2)
    assert mrope_interleaved(16, THETA, (4, 2, 2)).axis == (0, 1, 2, 0, 1, 2, 0, 0)
    assert rope_1d(8).axis == (0,) * 4
    np.testing.assert_allclose(rope_1d(8, 16.0).inv_freq, [1, 0.5, 0.25, 0.125])


def test_rotation_turns_pairs_and_composes():
    table = rope_1d(4, 16.0)
    x = np.random.default_rng(0).normal(size=(1, 1, 4)).astype(np.float32)
    at = lambda p: np.asarray(rope(jnp.asarray(x), jnp.full((1, 1, 1), p), table))[0, 0]
    for pair in (0, 1):
        z = complex(x[0, 0, pair], x[0, 0, pair + 2]) * np.exp(3j * table.inv_freq[pair])
        np.testing.assert_allclose(at(3)[[pair, pair + 2]], [z.real, z.imag], rtol=1e-5)
    twice = rotate(jnp.asarray(at(3))[None], angles(table, jnp.full((1, 1), 4)))
    np.testing.assert_allclose(twice[0], at(7), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("far", [500, 144_000, 1_000_000])
def test_angles_of_far_positions(far, dtype):
    """Ten hours at four ticks a second are 144,000 positions."""
    table = rope_1d(64, THETA)
    pos = np.random.default_rng(1).integers(-far, far, (200, 1)).astype(dtype)
    exact = pos.astype(np.float64) * np.asarray(table.inv_freq, np.float64)
    off = (
        np.remainder(np.asarray(angles(table, jnp.asarray(pos))) - exact + np.pi, 2 * np.pi) - np.pi
    )
    assert np.abs(off).max() < (5e-5 if far <= 512 else 1e-3)


def test_errors_name_the_repair():
    with pytest.raises(ValueError, match="sum to head_dim / 2"):
        mrope_sectioned(16, THETA, (4, 2, 1))
    with pytest.raises(ValueError, match="3 sections"):
        mrope_interleaved(16, THETA, (4, 4))
    with pytest.raises(ValueError, match="must be even"):
        rope_1d(7)
    with pytest.raises(ValueError, match="2 axes"):
        angles(mrope_sectioned(16, THETA, (4, 2, 2)), jnp.zeros((5, 2)))


def test_cosines_and_sines_are_exact_to_float32():
    spread = np.concatenate([np.linspace(-1e4, 1e4, 400_001), np.arange(-64, 65) * np.pi / 4])
    x = spread.astype(np.float32)
    cos, sin = jax.jit(cos_sin)(x)
    np.testing.assert_allclose(cos, np.cos(x.astype(np.float64)), rtol=0, atol=1.5e-7)
    np.testing.assert_allclose(sin, np.sin(x.astype(np.float64)), rtol=0, atol=1.5e-7)


def test_cosines_and_sines_have_their_gradients():
    x = np.linspace(-9, 9, 101, dtype=np.float32)
    slope = jax.grad(lambda x: jnp.sum(jnp.stack(cos_sin(x)) * jnp.array([[2.0], [3.0]])))(x)
    np.testing.assert_allclose(slope, -2 * np.sin(x) + 3 * np.cos(x), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("rows", "heads"), [(512, 1), (513, 1), (256, 2), (16, 1)])
def test_many_angles_are_made_in_a_loop_of_two(rows, heads):
    """To the rounding; of few, or an odd number of positions, there is no loop."""
    table = rope_1d(64)
    pos = 7 * jnp.arange(rows * heads, dtype=jnp.int32).reshape(rows, heads, 1)
    want = jax.jit(lambda pos: cos_sin(angles(table, pos)))(pos)
    for got, exact in zip(jax.jit(partial(tables, table))(pos), want, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-6)
    looped = "scan[" in str(jax.make_jaxpr(partial(tables, table))(pos))
    assert looped == (jax.default_backend() == "cpu" and rows in (256, 512))

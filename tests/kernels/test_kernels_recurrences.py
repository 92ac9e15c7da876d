"""Chunked scans of Mamba-2 and of the gated delta rule against loops over tokens in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrences import cast, delta_inputs, delta_loop, loss, ssd_inputs, ssd_loop

from jaxmem.kernels.delta import delta
from jaxmem.kernels.ssd import ssd

KERNELS = {"ssd": (ssd, ssd_inputs, ssd_loop), "delta": (delta, delta_inputs, delta_loop)}
EITHER = pytest.mark.parametrize("name", KERNELS)
WAYS = pytest.mark.parametrize("way", ["xla", "xla_blocks"])


def truth(name, inputs):
    with jax.enable_x64():
        return tuple(np.asarray(x) for x in KERNELS[name][2](*cast(inputs, np.float64)))


@EITHER
@WAYS
@pytest.mark.parametrize(
    "rows", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (7, 16)), 37]
)
def test_equals_the_loop_over_tokens(name, way, rows):
    kernel, make, _ = KERNELS[name]
    inputs = make(rows, groups=1 if rows == 7 else 2)
    got = jax.jit(partial(kernel, block=16, implementation=way))(*cast(inputs))
    for a, b in zip(got, truth(name, inputs), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=5e-6 * max(1, np.abs(b).max()))


@EITHER
@WAYS
def test_gradients_in_float64_are_those_of_the_loop_through_the_state(name, way):
    kernel, make, loop = KERNELS[name]
    with jax.enable_x64():
        inputs = cast(make(21), np.float64)
        got, grads = loss(partial(kernel, block=8, implementation=way))(*inputs)
        want, others = loss(loop)(*inputs)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    for a, b in zip(grads, others, strict=True):
        assert a.dtype == np.float64
        np.testing.assert_allclose(a, b, atol=1e-11 * np.abs(b).max())


@EITHER
@WAYS
def test_products_are_exact_on_a_gpu_too(name, way):
    """Not in TF32: forward and in the gradient every product asks for all digits of float32."""
    kernel, make, _ = KERNELS[name]
    run = loss(partial(kernel, block=8, implementation=way))
    lowered = jax.jit(run).lower(*cast(make(21))).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert len(products) >= 8
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products), products


@EITHER
@WAYS
@pytest.mark.parametrize("cut", [1, 16, 20])
def test_a_state_is_handed_on_at_any_cut(name, way, cut):
    kernel, make, _ = KERNELS[name]
    run = jax.jit(partial(kernel, block=8, implementation=way))
    # The rates of Mamba-2 are of the heads, not of rows.
    x = cast(make(37))
    whole, state = run(*x)
    rows = [i for i in range(5) if (name, i) != ("ssd", 2)]
    first = [v[:cut] if i in rows else v for i, v in enumerate(x[:5])]
    rest = [v[cut:] if i in rows else v for i, v in enumerate(x[:5])]
    y1, between = run(*first, x[5])
    y2, end = run(*rest, between)
    np.testing.assert_allclose(jnp.concatenate([y1, y2]), whole, atol=2e-5)
    np.testing.assert_allclose(end, state, atol=2e-5)


@EITHER
@WAYS
def test_padding_changes_no_bit_of_the_state(name, way):
    kernel, make, _ = KERNELS[name]
    run = jax.jit(partial(kernel, block=8, implementation=way))
    x = cast(make(21, padding=21))
    assert np.array_equal(run(*x)[1], x[5])
    # What stands in padding, and whether it fills whole blocks, is never seen.
    rows, more = cast(make(21, padding=9)), cast(make(21, padding=9, seed=1))
    other = [
        jnp.where(jnp.arange(len(a)) < 12, a.T, b.T).T for a, b in zip(rows, more, strict=True)
    ]
    marks = {"ssd": (1, 2), "delta": (3, 4)}[name]
    other = [rows[i] if i in (*marks, 5) else v for i, v in enumerate(other)]
    (y, state), (y2, state2) = run(*rows), run(*other)
    np.testing.assert_array_equal(state, state2)
    np.testing.assert_array_equal(y[:12], y2[:12])


@EITHER
@WAYS
def test_strong_decays_neither_overflow_nor_lose_gradients(name, way):
    kernel, make, _ = KERNELS[name]
    x = list(make(40))
    x[3 if name == "delta" else 1] *= 200
    value, grads = loss(partial(kernel, block=16, implementation=way))(*cast(x))
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in grads)
    got = kernel(*cast(x), block=16, implementation=way)
    for a, b in zip(got, truth(name, x), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.abs(b).max()))


@EITHER
def test_streams_side_by_side_are_the_streams_one_by_one(name):
    kernel, make, _ = KERNELS[name]
    one, other = cast(make(19)), cast(make(19, seed=1))
    both = jax.vmap(partial(kernel, block=8))(*(jnp.stack(x) for x in zip(one, other, strict=True)))
    for i, x in enumerate((one, other)):
        for a, b in zip(both, kernel(*x, block=8), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-5)


@EITHER
def test_half_the_bits_are_widened_and_returned(name):
    kernel, make, _ = KERNELS[name]
    x = make(20)
    low = [*cast(x[:5], jnp.bfloat16), jnp.asarray(x[5], jnp.float32)]
    y, state = kernel(*low)
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    exact = kernel(*(v.astype(jnp.float32) for v in low))
    np.testing.assert_allclose(state, exact[1], atol=1e-6)
    np.testing.assert_allclose(y.astype(np.float32), exact[0], rtol=1e-2, atol=1e-2)


@EITHER
def test_reverse_mode_keeps_states_of_blocks_and_not_what_is_inside(name):
    """Memory of a gradient beside its inputs: a state a block, not a matrix of every block."""
    kernel, make, _ = KERNELS[name]

    def temporaries(way):
        shapes = [jax.ShapeDtypeStruct(x.shape, np.float32) for x in make(4096)]
        grad = loss(partial(kernel, block=64, implementation=way))
        return grad.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("xla") < temporaries("xla_blocks") / 2


@EITHER
def test_errors_name_what_came(name):
    kernel, make, _ = KERNELS[name]
    x = cast(make(5))
    with pytest.raises(ValueError, match=r"state must have the shapes .* got .*\(3, 5"):
        kernel(*x[:5], jnp.zeros((3, 5, 3)))
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        kernel(*x, implementation="fast")

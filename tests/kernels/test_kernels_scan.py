"""Pallas kernels that carry a state: interpreted, and compiled where there is a GPU.

JAX_PLATFORMS=cuda pytest -m gpu tests/kernels/test_kernels_scan.py
"""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrences import cast, loss
from test_kernels_recurrences import EITHER, KERNELS, truth

from jaxmem.kernels import dispatch, pallas_scan
from jaxmem.kernels.delta import delta
from jaxmem.kernels.delta import pallas as delta_pallas
from jaxmem.kernels.ssd import pallas as ssd_pallas
from jaxmem.kernels.ssd import ssd
from jaxmem.mixers.gated_delta import GatedDelta
from jaxmem.mixers.mamba2 import Mamba2

pytestmark = pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
ROWS = 37  # two tiles of 16 and a short one


@pytest.fixture(params=["pallas_interpret", pytest.param("pallas", marks=pytest.mark.gpu)])
def way(request):
    """The back end; XLA must not round to TF32 on a GPU."""
    if request.param == "pallas" and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU and JAX_PLATFORMS=cuda")
    with jax.default_matmul_precision("highest"):
        yield request.param


@cache
def run(name, way, block=16):
    return jax.jit(partial(KERNELS[name][0], block=block, implementation=way))


def close(got, want, share=5e-6):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=share * max(1, np.abs(b).max()))


def cut(name, x, begin, end):
    """Return rows of inputs; the rates of Mamba-2 are of heads."""
    return [v if i == 5 or (name, i) == ("ssd", 2) else v[begin:end] for i, v in enumerate(x)]


@EITHER
@pytest.mark.parametrize(
    ("rows", "groups"), [(1, 2), (ROWS, 2), pytest.param(32, 1, marks=pytest.mark.slow)]
)
def test_equals_the_loop_over_tokens_in_float64(name, rows, groups, way):
    inputs = KERNELS[name][1](rows, groups=groups)
    close(run(name, way)(*cast(inputs)), truth(name, inputs))


@EITHER
def test_states_of_several_pieces_and_programs_and_blocks_of_several_tiles(name, way):
    inputs = (
        KERNELS[name][1](70, 2, 1, 40, 70) if name == "ssd" else KERNELS[name][1](70, 2, 1, 70, 40)
    )
    inputs = list(inputs)
    close(run(name, way, 64)(*cast(inputs)), truth(name, inputs), 1e-5)


@EITHER
def test_gradients_through_the_state(name, way):
    kernel, make, loop = KERNELS[name]
    inputs = make(70)
    got, grads = loss(partial(kernel, block=32, implementation=way))(*cast(inputs))
    with jax.enable_x64():
        want, others = loss(loop)(*cast(inputs, np.float64))
        want, others = jax.tree.map(np.asarray, (want, others))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(grads, others, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@EITHER
def test_a_state_is_handed_on(name, way):
    x = cast(KERNELS[name][1](ROWS))
    whole, state = run(name, way)(*x)
    first, between = run(name, way)(*cut(name, x, 0, 9))  # shorter than a tile
    rest, end = run(name, way)(*cut(name, x, 9, ROWS)[:5], between)
    close((jnp.concatenate([first, rest]), end), (whole, state), 1e-5)


@EITHER
def test_padding_changes_no_bit_of_the_state(name, way):
    make = partial(KERNELS[name][1], ROWS)
    x = cast(make(padding=ROWS))
    np.testing.assert_array_equal(run(name, way)(*x)[1], x[5])
    # What stands in padding, here a part of a tile and a whole one, is never seen.
    x, other = cast(make(padding=20)), cast(make(padding=20, seed=1))
    marks = {"ssd": (1, 2), "delta": (3, 4)}[name]
    other = [
        a if i in (*marks, 5) else jnp.concatenate([a[:17], b[17:]])
        for i, (a, b) in enumerate(zip(x, other, strict=True))
    ]
    (y, state), (y2, state2) = run(name, way)(*x), run(name, way)(*other)
    np.testing.assert_array_equal(state, state2)
    np.testing.assert_array_equal(y[:17], y2[:17])


@EITHER
def test_strong_decays_neither_overflow_nor_become_nan(name, way):
    x = list(KERNELS[name][1](ROWS))
    x[3 if name == "delta" else 1] *= 200
    close(run(name, way)(*cast(x)), truth(name, x), 2e-5)


@pytest.mark.parametrize("block", [16, 64])
def test_keys_that_repeat_lose_nothing(block, way):
    """Powers of the triangle reach 3e8 here at 32 rows, and their sum is an inverse of ones."""
    q, k, v, g, beta, state = KERNELS["delta"][1](ROWS if block == 16 else 70)
    inputs = q, 0 * k + k[:1], v, 0 * g, 0 * beta + 1, state
    close(run("delta", way, block)(*cast(inputs)), truth("delta", inputs), 2e-6)


@EITHER
def test_half_the_bits_are_widened_and_returned_for_streams_side_by_side(name, way):
    make = partial(KERNELS[name][1], ROWS)
    streams = [[*cast(make(seed=s)[:5], jnp.bfloat16), *cast(make(seed=s)[5:])] for s in (0, 1)]
    y, state = jax.vmap(run(name, way))(*(jnp.stack(x) for x in zip(*streams, strict=True)))
    assert y.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    for i, x in enumerate(streams):
        exact = run(name, way)(*(v.astype(jnp.float32) for v in x))
        close([state[i]], exact[1:], 2e-6)
        np.testing.assert_allclose(y[i].astype(np.float32), exact[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("block", "kept"), [(16, 7), (32, 4), (64, 2), (128, 1)])
@EITHER
def test_reverse_mode_keeps_a_state_a_block(name, block, kept):
    x = jax.eval_shape(lambda: cast(KERNELS[name][1](100)))
    if name == "ssd":
        x = (x[0], x[1], x[3], x[4]), x[2], jax.ShapeDtypeStruct((4, 3, 5), jnp.float32)
        forward = ssd_pallas._forward
    else:
        x, forward = (x[:5], x[5]), delta_pallas._forward
    before = jax.eval_shape(lambda *x: forward(*x, block, True), *x)[1][-1]
    assert before.shape[0] == kept


@pytest.mark.parametrize("mixer", [Mamba2(2, 8, 8), GatedDelta(2, 1, 8)], ids=["ssd", "delta"])
def test_a_layer_runs_on_the_kernel(mixer, way):
    weights, x = (
        mixer.weights(12, jax.random.key(0)),
        jax.random.normal(jax.random.key(1), (20, 12)),
    )
    real = jnp.arange(20) < 17

    run = lambda mixer: jax.jit(mixer.chunk)(weights, mixer.init(12), x, real)
    (y, state), (want, end) = run(replace(mixer, implementation=way)), run(mixer)
    close([y[:17], *state], [want[:17], *end], 2e-5)


def test_what_the_kernels_do_not_do_is_said(monkeypatch):
    x = KERNELS["ssd"][1](3)
    with jax.enable_x64(), pytest.raises(NotImplementedError, match="float64"):
        ssd(*cast(x, np.float64), implementation="pallas")
    wide = cast(KERNELS["delta"][1](3, keys=pallas_scan.MOST + 1))
    with pytest.raises(NotImplementedError, match="at most 128 by 128"):
        delta(*wide, implementation="pallas")
    # Put first, the kernel hands on what it cannot do.
    monkeypatch.setattr(dispatch, "DEFAULT", ("pallas", "xla"))
    assert [v.shape for v in jax.eval_shape(delta, *wide)] == [(3, 4, 5), (4, 129, 5)]

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
SLOW = pytest.mark.slow
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
@pytest.mark.parametrize(("rows", "groups"), [(1, 2), (ROWS, 2), pytest.param(32, 1, marks=SLOW)])
def test_equals_the_loop_over_tokens_in_float64(name, rows, groups, way):
    inputs = KERNELS[name][1](rows, groups=groups)
    close(run(name, way)(*cast(inputs)), truth(name, inputs))


@EITHER
def test_states_of_several_pieces_and_programs_and_blocks_of_several_tiles(name, way):
    inputs = wide(name)
    close(run(name, way, 64)(*cast(inputs)), truth(name, inputs), 1e-5)


def gradients(name, inputs, way=None, block=32):
    """Return a number of all outputs and its gradients, or those of the loop in float64."""
    kernel, _, loop = KERNELS[name]
    if way:
        return loss(partial(kernel, block=block, implementation=way))(*inputs)
    with jax.enable_x64():
        return jax.tree.map(np.asarray, loss(loop)(*(jnp.asarray(x, np.float64) for x in inputs)))


def wide(name):
    """Return inputs whose states take several pieces and programs; two heads to a group."""
    sizes = (40, 70) if name == "ssd" else (70, 40)
    return KERNELS[name][1](70, 4, 2, *sizes)


def decayed(name, which):
    """Return inputs that forget at once: decays, or what they come from, are 200 times as large."""
    x = list(KERNELS[name][1](ROWS))
    x[which] *= 200
    return x


CASES = {  # inputs, block, and how far off a gradient may be, of its largest entry
    "ragged": (lambda name: KERNELS[name][1](70), 32, 1e-5),
    "wide": (wide, 64, 1e-5),
    "one row": (lambda name: KERNELS[name][1](1), 32, 1e-5),
    # What is left after such decays is as far off as float32 rounds their sums.
    "decayed": (lambda name: decayed(name, {"ssd": 2, "delta": 3}[name]), 16, 1e-4),
}


@EITHER
@pytest.mark.parametrize(
    "case", ["wide", "decayed", *(pytest.param(c, marks=SLOW) for c in ("ragged", "one row"))]
)
def test_gradients_through_the_state(name, case, way):
    make, block, share = CASES[case]
    inputs = make(name)
    (got, grads), (want, others) = (
        gradients(name, cast(inputs), way, block),
        gradients(name, inputs),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(grads, others, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=max(share * np.abs(b).max(), 1e-37))


@SLOW
@EITHER
def test_gradients_of_streams_side_by_side_are_the_references(name, way):
    kernel, make, _ = KERNELS[name]
    streams = [[*cast(make(ROWS, seed=s)[:5], jnp.bfloat16), *cast(make(ROWS)[5:])] for s in (0, 1)]
    x = [jnp.stack(v) for v in zip(*streams, strict=True)]

    def of(way):
        run = jax.vmap(partial(kernel, block=16, implementation=way))
        number = lambda *x: sum(jnp.sum(jnp.sin(v.astype(jnp.float32))) for v in run(*x))
        return jax.jit(jax.grad(number, argnums=range(6)))(*x)

    for a, b, given in zip(of(way), of("xla"), x, strict=True):
        assert a.dtype == b.dtype == given.dtype
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, atol=1e-2 * np.abs(b).max())


@EITHER
def test_padding_has_no_part_in_gradients(name, way):
    """Nor has what stands in it; the same tiles give the same bits."""
    kernel, make, _ = KERNELS[name]
    marks = {"ssd": (1, 2, 5), "delta": (3, 4, 5)}[name]
    x, other = cast(make(ROWS, padding=20)), cast(make(ROWS, padding=20, seed=1))
    other = [
        a if i in marks else jnp.concatenate([a[:17], b[17:]])
        for i, (a, b) in enumerate(zip(x, other, strict=True))
    ]

    @jax.jit
    @partial(jax.grad, argnums=tuple(range(6)))
    def gradient(*x):
        y, state = kernel(*x, block=16, implementation=way)
        return jnp.sum(jnp.sin(y[:17])) + jnp.sum(jnp.cos(state))

    for i, (a, b) in enumerate(zip(gradient(*x), gradient(*other), strict=True)):
        if i not in marks:
            np.testing.assert_array_equal(a[17:], 0)
        rows = slice(None) if i == 5 or (name, i) == ("ssd", 2) else slice(17)
        np.testing.assert_array_equal(a[rows], b[rows])


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
    x = decayed(name, 3 if name == "delta" else 1)
    close(run(name, way)(*cast(x)), truth(name, x), 2e-5)


@pytest.mark.parametrize("block", [16, pytest.param(64, marks=SLOW)])
def test_keys_that_repeat_lose_nothing(block, way):
    """Powers of the triangle reach 3e8 here at 32 rows, and their sum is an inverse of ones."""
    q, k, v, g, beta, state = KERNELS["delta"][1](ROWS if block == 16 else 70)
    inputs = q, 0 * k + k[:1], v, 0 * g, 0 * beta + 1, state
    close(run("delta", way, block)(*cast(inputs)), truth("delta", inputs), 2e-6)
    if block == 64:
        close(gradients("delta", cast(inputs), way, 64)[1], gradients("delta", inputs)[1], 1e-5)


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
    weights = mixer.weights(12, jax.random.key(0))
    x, real = jax.random.normal(jax.random.key(1), (20, 12)), jnp.arange(20) < 17

    def run(mixer):
        def number(weights, x):
            y, state = mixer.chunk(weights, mixer.init(12), x, real)
            return jnp.sum(jnp.sin(y[:17])), (y[:17], state)

        graded = jax.value_and_grad(number, argnums=(0, 1), has_aux=True)
        return jax.tree.leaves(jax.jit(graded)(weights, x))

    close(run(replace(mixer, implementation=way)), run(mixer), 2e-5)


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

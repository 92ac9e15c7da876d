"""Pallas kernels against the reference: interpreted, and compiled where there is a GPU.

JAX_PLATFORMS=cuda pytest -m gpu tests/test_kernels_pallas.py
"""

from functools import cache

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from kernel_cases import CASES, build, on_device, rope_of
from test_kernels_select import check, draw, expected_mask

from jaxmem.kernels import dispatch
from jaxmem.kernels.attend import attend
from jaxmem.kernels.attend import pallas as attend_pallas
from jaxmem.kernels.received import mass, row_mass
from jaxmem.kernels.received import pallas as mass_pallas
from jaxmem.kernels.select import pallas as select_pallas
from jaxmem.kernels.select import select, top_mask
from jaxmem.kernels.tiles import Tile
from jaxmem.rope import rope_1d

pytestmark = pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
SMALL = Tile(16, 16)  # several tiles of rows and of keys in every case


def slow(*values):
    """A variant of what the others cover, left to `pytest -m slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.gpu)], ids=["", "gpu"])
def interpret(request):
    """Whether kernels are interpreted; the reference must not round to TF32 on a GPU."""
    if not request.param and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU and JAX_PLATFORMS=cuda")
    with jax.default_matmul_precision("highest"):
        yield request.param


def of(name):
    return next(c for c in CASES if c.name == name)


@cache
def attended(name):
    """Output and log-sum-exp of a case by the reference."""
    case = of(name)
    q, segments, _ = on_device(build(case))
    run = lambda q, s: attend(q, s, rope=rope_of(case), window=case.window)
    return jax.jit(run)(q, segments)


def tolerance(case):
    return 2e-2 if case.dtype is ml_dtypes.bfloat16 else 2e-5 * max(1.0, case.scale)


def both(case, functions):
    """Return what each of two functions of (q, segments, counted) gives, and the counted rows."""
    given = on_device(build(case))
    ours, theirs = (jax.jit(f)(*given) for f in functions)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), ours) == jax.tree.map(
        lambda x: (x.shape, x.dtype), theirs
    )
    return jax.tree.map(lambda x: np.asarray(x, np.float64), (ours, theirs))


@pytest.mark.parametrize(
    ("name", "on_load"),
    [
        ("one_kv_head", True),  # width 64
        ("dim80", True),
        ("dim128_bf16", True),
        ("own_sets", True),
        ("mrope", False),
        ("window", True),
        ("extreme", True),
        ("nothing", True),
        ("scored", True),
    ],
)
def test_attend_equals_the_reference(name, on_load, interpret):
    case = of(name)
    options = {"rope": rope_of(case), "window": case.window}

    def kernel(q, segments, _):
        more = {"tile": SMALL, "on_load": on_load, "interpret": interpret}
        return attend_pallas.attend(q, segments, **options, **more)

    ours, theirs = both(case, (kernel, lambda q, s, _: attend(q, s, **options)))
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, atol=tolerance(case), rtol=1e-5)
    if case.fill == "nothing":
        assert np.all(ours[0] == 0) and np.all(ours[1] == -np.inf)


def test_default_tiles_and_a_pool_without_slots(interpret):
    case, kernel = of("no_slots"), "pallas_interpret" if interpret else "pallas"
    run = lambda name: lambda q, s, _: attend(q, s, rope=rope_of(case), implementation=name)
    ours, theirs = both(case, (run(kernel), run(None)))
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("name", ["scored", "nothing"])
def test_gradient_of_attend_equals_that_of_the_reference(name, interpret):
    case = of(name)

    def gradient(function):
        if function is None:  # nothing is seen: no gradient
            return lambda *given: jax.tree.map(jnp.zeros_like, arrays_of(*given))

        def loss(arrays, segments):
            q, *kvb = arrays
            given = zip(segments, *kvb, strict=True)
            parts = [s._replace(k=k, v=v, bias=b) for s, k, v, b in given]
            out, lse = function(q, parts)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0.0))

        return lambda *given: jax.grad(loss)(arrays_of(*given), given[1])

    def arrays_of(q, segments, _):
        return q, [s.k for s in segments], [s.v for s in segments], [s.bias for s in segments]

    def kernel(q, segments):
        more = {"tile": SMALL, "interpret": interpret}
        return attend_pallas.attend(q, segments, rope=rope_of(case), **more)

    reference = None
    if name != "nothing":
        reference = lambda q, segments: attend(q, segments, rope=rope_of(case))
    ours, theirs = both(case, (gradient(kernel), gradient(reference)))
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)
        assert np.any(got != 0) == (name != "nothing")


@pytest.mark.parametrize(
    ("name", "reduce", "form"),
    [
        slow("dim80", "head_mean", "softmax"),
        ("own_sets", "kv_head", "softmax"),
        ("window", "head", "softmax"),
        ("scored", "kv_head", "softmax"),
        ("mrope", "head_mean", "mean_logit"),
        ("nothing", "head_mean", "mean_logit"),
    ],
)
def test_mass_equals_the_reference(name, reduce, form, interpret, monkeypatch):
    # Few programs, so that each walks more than one tile of rows.
    monkeypatch.setattr(mass_pallas, "PROGRAMS", 8)
    case = of(name)
    options = {"rope": rope_of(case), "window": case.window, "reduce": reduce, "form": form}

    def run(function, **more):
        lse = attended(name)[1] if form == "softmax" else None

        def of_inputs(q, segments, counted):
            return function(q, segments, lse, rows=counted, **options, **more)

        return of_inputs

    kernel = run(mass_pallas.mass, tile=SMALL, interpret=interpret)
    ours, theirs = both(case, (kernel, run(mass)))
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, atol=tolerance(case))
    assert any(np.any(x > 0) for x in ours) == (name != "nothing")


@pytest.mark.parametrize(
    ("name", "reduce", "weights"),
    [
        ("dim80", "head_mean", "A2v2"),
        slow("own_sets", "kv_head", "A2v2"),
        slow("dim80", "kv_head", "caote"),
        ("dim128_bf16", "head_mean", "caote"),
        ("own_sets", "head", "caote"),
        ("empty_memory", "head", "caote"),  # the first row sees one key only
        slow("nothing", "head_mean", "caote"),
    ],
)
def test_weighted_mass_equals_the_reference(name, reduce, weights, interpret, monkeypatch):
    monkeypatch.setattr(mass_pallas, "PROGRAMS", 8)
    case = of(name)
    options = {"rope": rope_of(case), "reduce": reduce, "weights": weights}

    def run(function, **more):
        out, lse = attended(name)

        def of_inputs(q, segments, counted):
            return function(q, segments, lse, rows=counted, out=out, **options, **more)

        return of_inputs

    ours, theirs = both(case, (run(mass_pallas.mass, tile=SMALL, interpret=interpret), run(mass)))
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=tolerance(case))
    assert any(np.any(x > 0) for x in ours) == (name != "nothing")


@pytest.mark.parametrize(
    "name", ["dim128_bf16", slow("own_sets"), slow("scored"), slow("window"), "nothing", "no_slots"]
)
def test_row_mass_equals_the_reference(name, interpret):
    case = of(name)
    options = {"rope": rope_of(case), "window": case.window, "segment": 0}

    def run(function, **more):
        lse = attended(name)[1]

        def of_inputs(q, segments, _):
            early = jnp.arange(segments[0].k.shape[0]) < 20
            return [function(q, segments, lse, **options, **more, columns=c) for c in (None, early)]

        return of_inputs

    ours, theirs = both(
        case, (run(mass_pallas.row_mass, tile=SMALL, interpret=interpret), run(row_mass))
    )
    for got, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, expected, atol=tolerance(case))
    assert np.any(ours[0] > 0) == (name not in ("nothing", "no_slots"))


@pytest.mark.parametrize(("groups", "n", "slots"), [(1, 1, 1), (3, 257, 200)])
def test_select_equals_sorting(groups, n, slots, interpret):
    rng = np.random.default_rng(n)
    kernel = lambda s, c: select_pallas.select(s, c, slots=slots, block=128, interpret=interpret)
    run = jax.jit(kernel)
    for kind in ("random", "ties", "equal", "masked", "never", "odd"):
        for caps in ([0] * groups, [1] * groups, [n // 3] * groups, [n, -1, 2 * n][:groups]):
            scores, caps = draw(kind, groups, n, rng), np.asarray(caps, np.int32)
            check(scores, caps, slots, *run(scores, caps))


def test_more_streams_and_more_slots_than_entries(interpret):
    rng = np.random.default_rng(0)
    scores = np.stack([draw(k, 2, 70, rng) for k in ("ties", "odd")])
    caps = np.asarray([[5, 60], [70, 1]], np.int32)

    def run(s, c):
        pick = {"implementation": "pallas_interpret" if interpret else "pallas"}
        return select(s, c, slots=150, **pick), top_mask(s, c, **pick)

    (index, keep), mask = jax.jit(jax.vmap(run))(scores, caps)
    for i in range(2):
        check(scores[i], caps[i], 150, index[i], keep[i])
        np.testing.assert_array_equal(mask[i], expected_mask(scores[i], caps[i]))


def test_what_the_kernels_do_not_do_is_said(monkeypatch):
    case = of("grouped")
    _, segments, counted = on_device(build(case))
    q, lse = jnp.zeros((21, 4, 256)), jnp.zeros((21, 4))
    wide = [segments[0]._replace(k=jnp.zeros((30, 2, 256)), v=jnp.zeros((30, 2, 256)))]
    call = {"rope": rope_1d(256), "rows": counted}
    with pytest.raises(NotImplementedError, match="at most 128"):
        mass(q, wide, lse, **call, implementation="pallas")
    # Put first, the kernel hands on what it cannot do.
    monkeypatch.setattr(dispatch, "DEFAULT", ("pallas", "xla"))
    shapes = jax.eval_shape(lambda *x: mass(*x, **call), q, wide, lse)
    assert [x.shape for x in shapes] == [(1, 30)]
    with pytest.raises(NotImplementedError, match="at most 128"):
        attend_pallas.attend(q, wide, rope=call["rope"])

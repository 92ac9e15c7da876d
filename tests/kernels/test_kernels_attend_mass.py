"""Attention with its column sums: one kernel and two, against a dense float64 formula."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from kernel_cases import CASES, build, dense_logits, dense_weights, on_device, rope_of, split
from test_kernels_lowering import QWEN_7B, SHAPE, inputs, kernels_of, scored

from jaxmem.kernels.attend import attend
from jaxmem.kernels.attend_mass import attend_mass
from jaxmem.kernels.attend_mass import pallas as kernel
from jaxmem.kernels.tiles import Tile
from jaxmem.rope import rope_1d

pytestmark = pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
SMALL = Tile(16, 16)  # several tiles of rows and of keys in every case
FAST = {"own_sets": 3, "window": None, "scored": 1, "nothing": None, "dim128_bf16": 5, "turned": 2}
"""Cases that always run, and how many of their rows count; the others run with both."""


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(params=[True, pytest.param(False, marks=pytest.mark.gpu)], ids=["", "gpu"])
def interpret(request):
    """Whether kernels are interpreted."""
    if not request.param and jax.default_backend() != "gpu":
        pytest.skip("needs a GPU and JAX_PLATFORMS=cuda")
    with jax.default_matmul_precision("highest"):
        yield request.param


def of(name):
    return next(c for c in CASES if c.name == name)


def expected(case, q, segments, counted, last):
    """Output [Q, H, D], log-sum-exp [Q, H] and sums [H, N] of every segment, in float64."""
    a, lse = dense_weights(dense_logits(case, q, segments))
    v = np.concatenate([s.v for s in segments]).astype(np.float64)
    out = np.einsum("hqn,nhd->qhd", a, v.repeat(case.heads // case.kv_heads, axis=1))
    rows = np.flatnonzero(counted)
    rows = rows if last is None else rows[-last:]
    return out, lse.T, split(a[:, rows].sum(1), segments)


def over_heads(sums, case, reduce):
    if reduce == "kv_head":
        return sums.reshape(case.kv_heads, -1, sums.shape[-1]).mean(1)
    return sums.mean(0, keepdims=True)


def cases():
    for case in CASES:
        for last in (None, 4):
            if case.name not in FAST:
                yield slow(case, last)
        if case.name in FAST:
            yield case, FAST[case.name]


@pytest.mark.parametrize(("case", "last"), list(cases()), ids=lambda x: getattr(x, "name", str(x)))
def test_one_kernel_equals_the_dense_formula(case, last, interpret):
    q, segments, counted = build(case)
    reduce = "kv_head" if case.groups > 1 else "head_mean"

    def fused(q, segments, counted):
        how = {"rope": rope_of(case), "window": case.window, "last": last, "reduce": reduce}
        how |= {"tile": SMALL, "interpret": interpret}
        return kernel.attend_mass(q, segments, rows=counted, **how)

    got = jax.jit(fused)(*on_device((q, segments, counted)))
    out, lse, sums = expected(case, q, segments, counted, last)
    atol = 5e-2 if case.dtype is ml_dtypes.bfloat16 else 3e-5 * max(1.0, 5 * case.scale)
    assert got[0].dtype == q.dtype and got[1].dtype == got[2][0].dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(got[0], np.float64), out, atol=atol)
    np.testing.assert_allclose(got[1], lse, atol=atol, rtol=1e-5)
    for ours, theirs in zip(got[2], sums, strict=True):
        theirs = over_heads(theirs, case, reduce)
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=atol)
    assert any(np.any(x > 0) for x in sums) == (case.name != "nothing")


@pytest.mark.parametrize("last", [4, slow(None)])
def test_two_kernels_or_none_equal_the_dense_formula(last):
    """What the reference returns is what a kernel is compared with everywhere else."""
    case = of("window")
    given = build(case)
    options = {"rope": rope_of(case), "window": case.window, "last": last, "reduce": "kv_head"}
    got = jax.jit(lambda q, s, c: attend_mass(q, s, rows=c, **options))(*on_device(given))
    out, lse, sums = expected(case, *given, last)
    np.testing.assert_allclose(got[0], out, atol=3e-5)
    np.testing.assert_allclose(got[1], lse, atol=3e-5)
    for ours, theirs in zip(got[2], sums, strict=True):
        np.testing.assert_allclose(ours, over_heads(theirs, case, "kv_head"), atol=3e-5)


@pytest.mark.slow
def test_gradient_is_that_of_attention_and_nothing_flows_back_from_sums(interpret):
    case = of("grouped")
    q, segments, counted = on_device(build(case))
    how = {"rope": rope_of(case), "tile": SMALL, "interpret": interpret}

    def loss(q, weight):
        out, lse, sums = kernel.attend_mass(q, segments, rows=counted, last=3, **how)
        return jnp.sum(jnp.sin(out)) + jnp.sum(lse) + weight * sum(jnp.sum(x**2) for x in sums)

    def plain(q):
        out, lse = attend(q, segments, rope=rope_of(case))
        return jnp.sum(jnp.sin(out)) + jnp.sum(lse)

    for weight in (0.0, 5.0):
        ours = jax.jit(jax.grad(loss))(q, weight)
        np.testing.assert_allclose(ours, jax.jit(jax.grad(plain))(q), atol=2e-5)


@pytest.mark.parametrize("form", ["softmax", slow("mean_logit")])
def test_a_soft_cap_is_that_of_the_reference(form, interpret):
    case = of("grouped")
    rope = replace(rope_of(case), softcap=0.7)
    given = on_device(build(case))

    def run(implementation):
        how = {"rope": rope, "form": form, "implementation": implementation}
        return jax.jit(lambda q, s, c: attend_mass(q, s, rows=c, **how))(*given)

    ours, theirs = run("pallas_interpret" if interpret else "pallas"), run(None)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), ours, theirs)
    uncapped = attend(*given[:2], rope=rope_of(case))[0]
    assert jnp.max(jnp.abs(uncapped - theirs[0])) > 1e-2


def lowered(shape, segments, **more):
    """Return how many kernels there are for a chunk of a 7B model."""
    how = {"rope": rope_1d(shape[-1]), "implementation": "pallas", **more}
    q, rows = SHAPE((shape[0], shape[1], shape[3]), jnp.bfloat16), SHAPE(shape[:1], bool)
    return kernels_of(lambda q, s, c: attend_mass(q, s, rows=c, **how), q, segments, rows)


def test_one_kernel_of_a_7b_model():
    segments = scored(inputs((13,), QWEN_7B, 4096)[1], QWEN_7B[0], QWEN_7B[2])
    assert lowered(QWEN_7B, segments, last=32, reduce="kv_head") == 1


@pytest.mark.slow
def test_two_kernels_where_sums_outgrow_the_keys():
    segments, long = inputs((), QWEN_7B, 4096)[1], (4096, *QWEN_7B[1:])
    assert lowered(QWEN_7B, segments) == 1
    assert lowered(QWEN_7B, segments, form="mean_logit") == 4
    segments = inputs((), long, 4096)[1]
    assert lowered(long, segments, last=32) == 1
    assert lowered(long, segments) == 3  # attention, and the sums of each segment


def test_what_does_not_fit_is_said():
    q, segments, counted = on_device(build(of("grouped")))
    how = {"rope": rope_of(of("grouped"))}
    with pytest.raises(ValueError, match="one flag per query"):
        attend_mass(q, segments, rows=counted[:3], **how)
    with pytest.raises(ValueError, match="sums over heads; use mass"):
        attend_mass(q, segments, rows=counted, reduce="head", **how)
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        attend_mass(q, segments, rows=counted, implementation="triton", **how)

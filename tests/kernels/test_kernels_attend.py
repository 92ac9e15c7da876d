"""Attention over segments against a dense float64 formula, its gradient and its memory."""

import importlib.util

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from kernel_cases import CASES, build, dense_logits, dense_weights, on_device, rope_of

from jaxmem.kernels.attend import attend, ref
from jaxmem.kernels.segment import Segment
from jaxmem.kernels.tiles import Tile, over_rows
from jaxmem.rope import rope_1d


def run(case, q, segments, implementation=None):
    if case.tile is None or implementation is not None:
        more = {"window": case.window, "implementation": implementation}
        return attend(q, segments, rope=rope_of(case), **more)
    tile = Tile(*case.tile)
    return ref.attend(q, segments, rope=rope_of(case), window=case.window, tile=tile)


OPTIONAL = pytest.mark.skipif(
    importlib.util.find_spec("tokamax") is None, reason="tokamax is not installed"
)


def of_library(case, name="jax_nn"):
    """One case for every way in which the library's function could be called wrongly."""
    known = ("per_head", "dim80", "dim128_bf16", "own_sets", "window", "nothing", "no_slots")
    marks = [] if case.name in known else [pytest.mark.slow]
    return pytest.param(case, name, marks=[*marks, OPTIONAL] if name == "tokamax" else marks)


TOKAMAX = [c for c in CASES if c.name in ("dim80", "own_sets", "window", "nothing")]


@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        *((case, None) for case in CASES),
        *(of_library(case) for case in CASES if not case.scored),
        *(of_library(case, "tokamax") for case in TOKAMAX),
    ],
    ids=lambda x: getattr(x, "name", x),
)
def test_equals_the_dense_formula(case, implementation):
    q, segments, _ = given = build(case)
    a, lse = dense_weights(dense_logits(case, q, segments))
    v = np.concatenate([s.v for s in segments]).astype(np.float64)
    expected = np.einsum("hqn,nhd->qhd", a, v.repeat(case.heads // case.kv_heads, axis=1))

    q, segments, _ = on_device(given)
    out, got_lse = jax.jit(lambda q, s: run(case, q, s, implementation))(q, segments)

    assert out.dtype == q.dtype and got_lse.dtype == jnp.float32
    coarse = case.dtype is ml_dtypes.bfloat16
    # float32 logits of size 1e3 carry errors of 1e-4, and the softmax amplifies nothing more.
    tol = 2e-2 if coarse else 2e-5 * max(1.0, case.scale)
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=tol)
    np.testing.assert_allclose(np.asarray(got_lse).T, lse, atol=tol, rtol=1e-5)
    if case.fill == "nothing":
        assert np.all(np.asarray(out) == 0) and np.all(np.asarray(got_lse) == -np.inf)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("grouped", Tile(8, 16)),
        ("nothing", Tile(64, 64)),
        ("grouped", "jax_nn"),
        pytest.param("grouped", "tokamax", marks=OPTIONAL),
    ],
    ids=str,
)
def test_gradient_equals_that_of_one_tile(name, other):
    case = next(c for c in CASES if c.name == name)
    q, segments, _ = on_device(build(case))

    def loss(how):
        def f(q, k, v):
            parts = [s._replace(k=a, v=b) for s, a, b in zip(segments, k, v, strict=True)]
            if isinstance(how, Tile):
                out, lse = ref.attend(q, parts, rope=rope_of(case), tile=how)
            else:
                out, lse = attend(q, parts, rope=rope_of(case), implementation=how)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0.0))

        kv = [s.k for s in segments], [s.v for s in segments]
        return jax.jit(jax.grad(f, (0, 1, 2)))(q, *kv)

    one, many = loss(Tile(64, 64)), loss(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one, many)
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(one)])
    assert np.all(np.isfinite(flat)) and np.any(flat != 0) == (name != "nothing")


def test_gradient_equals_finite_differences():
    case = next(c for c in CASES if c.name == "scored")
    q, segments, _ = on_device(build(case))

    @jax.jit
    def loss(q, k, v, bias):
        first = segments[0]._replace(k=k, v=v, bias=bias)
        out, lse = attend(q, [first, segments[1]], rope=rope_of(case))
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(jnp.isfinite(lse), lse, 0.0))

    at = (q, segments[0].k, segments[0].v, segments[0].bias)
    grads = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(*at)
    keys = jax.random.split(jax.random.key(1), 4)
    step = [jax.random.normal(k, x.shape) * 1e-2 for k, x in zip(keys, at, strict=True)]
    ahead = loss(*(x + d for x, d in zip(at, step, strict=True)))
    back = loss(*(x - d for x, d in zip(at, step, strict=True)))
    slope = sum(float(jnp.vdot(g, d)) for g, d in zip(grads, step, strict=True))
    assert abs(float(ahead - back) / 2 - slope) < 2e-2 * abs(slope)


def test_first_replaces_the_window_of_a_segment():
    case = next(c for c in CASES if c.name == "window")
    q, segments, _ = on_device(build(case))
    by_hand = [s._replace(first=s.last - case.window + 1) for s in segments]

    @jax.jit
    def both(q, segments, by_hand):
        windowed = attend(q, segments, rope=rope_of(case), window=case.window)[0]
        return windowed, attend(q, by_hand, rope=rope_of(case), window=2)[0]

    windowed, given = both(q, segments, by_hand)
    np.testing.assert_array_equal(given, windowed)


def test_vmap_over_streams_equals_one_by_one():
    case = next(c for c in CASES if c.name == "grouped_blocks")
    q, segments, _ = on_device(build(case))
    q = jnp.stack([q, q[::-1], 2 * q])
    one = jax.jit(lambda q: run(case, q, segments)[0])
    out = jax.jit(jax.vmap(one))(q)
    for i in range(3):
        np.testing.assert_allclose(out[i], one(q[i]), atol=1e-6)


def test_no_array_of_rows_by_keys():
    rows, keys, dim = 4096, 16384, 32

    def shape(*s, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(s, dtype)

    q = shape(rows, 2, dim)
    pos, int32 = shape(keys, 1, 1, dtype=jnp.int32), jnp.int32
    kv, valid = shape(keys, 1, dim), shape(keys, 1, dtype=bool)
    row_pos, last = shape(rows, 1, dtype=int32), shape(rows, dtype=int32)
    segment = Segment(kv, kv, valid, pos, row_pos, last)

    def forward(q, segment):
        return attend(q, [segment], rope=rope_1d(dim))[0]

    grad = jax.grad(lambda q, segment: jnp.sum(forward(q, segment) ** 2))
    for function in (forward, grad):
        compiled = jax.jit(function).lower(q, segment).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < rows * keys * 4 // 8


def test_errors_name_what_came():
    case = CASES[0]
    q, segments, _ = on_device(build(case))
    rope = rope_of(case)
    with pytest.raises(ValueError, match="implementation must be None or one of"):
        attend(q, segments, rope=rope, implementation="fast")
    with pytest.raises(ValueError, match="4 query heads cannot be shared by 3"):
        three = jnp.zeros((5, 3, case.dim))
        attend(q, [Segment(three, three, jnp.ones((5, 1), bool))], rope=rope)
    with pytest.raises(ValueError, match="vmap over streams"):
        attend(q[None], segments, rope=rope)
    with pytest.raises(ValueError, match="head width 16, the embedding rotates 8"):
        attend(q, segments, rope=rope_1d(8))
    with pytest.raises(ValueError, match=r"bias \(30,\); expected \(30, 1\) or \(30, 2\)"):
        attend(q, [segments[0]._replace(bias=jnp.zeros(30))], rope=rope)
    with pytest.raises(ValueError, match="both `until` and `row`"):
        attend(q, [segments[0]._replace(until=jnp.zeros((30, 1), jnp.int32))], rope=rope)
    with pytest.raises(ValueError, match="last for 3 rows"):
        attend(q, [segments[0]._replace(last=jnp.zeros(3, jnp.int32))], rope=rope)


@pytest.mark.parametrize(("rows", "size", "each"), [(300, 256, 150), (513, 256, 171), (9, 4, 3)])
def test_blocks_of_rows_are_evenly_filled(rows, size, each):
    """Rows beyond the last real one are computed for nothing."""
    seen = []
    over_rows(lambda x, _: seen.append(len(x)) or x, jnp.zeros(rows), [], size)
    assert seen[-1] == each and each * -(-rows // size) < rows + -(-rows // size)

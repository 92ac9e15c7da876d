"""Column sums of attention against a dense float64 formula and against published values."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from kernel_cases import CASES, build, dense_logits, dense_weights, on_device, rope_of, split

from jaxmem.kernels.attend import attend
from jaxmem.kernels.received import mass, ref, row_mass
from jaxmem.kernels.segment import Segment
from jaxmem.kernels.tiles import Tile
from jaxmem.rope import rope_1d


def columns(case, q, segments, lse, counted, **options):
    options |= {"rope": rope_of(case), "rows": counted, "window": case.window}
    if case.tile is None:
        return mass(q, segments, lse, **options)
    return ref.mass(q, segments, lse, tile=Tile(*case.tile), **options)


def reduced(per_head, case, reduce):
    """[H, N] -> what `reduce` asks for."""
    if reduce == "head":
        return per_head
    if reduce == "kv_head":
        return per_head.reshape(case.kv_heads, -1, per_head.shape[-1]).mean(1)
    return per_head.mean(0, keepdims=True)


def removal(a, v):
    """[H, Q, N] how far outputs move without one key, and of which columns float32 can tell it."""
    o = np.einsum("hqn,nhd->qhd", a, v)
    moved = np.linalg.norm(o[:, None] - v[None], axis=-1).transpose(2, 0, 1)
    rest = 1.0 - a
    far = a * np.where(rest < ref.REST, np.linalg.norm(v, axis=-1).T[:, None], 0.0)
    far = np.where(rest < ref.REST, far, a / np.maximum(rest, ref.REST) * moved)
    return far, (rest > 0.05) | (rest < ref.REST / 3)


def tolerance(case):
    return 5e-2 if case.dtype is ml_dtypes.bfloat16 else 1e-5 * max(1.0, 5 * case.scale)


# Where other weights are tried beside the sums per head; the other cases differ in their logits.
WEIGHTED = ("grouped", "dim80", "dim128_bf16", "own_sets", "empty_memory", "nothing", "extreme")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_equals_the_dense_formula(case):
    q, segments, counted = given = build(case)
    z = dense_logits(case, q, segments)
    a, _ = dense_weights(z)
    v = np.concatenate([s.v for s in segments]).astype(np.float64)
    v = v.repeat(case.heads // case.kv_heads, axis=1)
    squared, (moved, told) = a**2 * np.sum(v**2, -1).T[:, None], removal(a, v)
    sums = {("A", "head"): a}
    if case.name in WEIGHTED:
        sums |= {("A2v2", "head"): squared, ("caote", "head"): moved}
    if case.name == "grouped":
        sums |= {("A", "head_mean"): a, ("A", "kv_head"): a, ("A2v2", "kv_head"): squared}

    q, segments, counted = on_device(given)

    @jax.jit
    def everything(q, segments, counted):
        out, lse = attend(q, segments, rope=rope_of(case), window=case.window)
        got = {
            f"{w} {r}": columns(case, q, segments, lse, counted, weights=w, reduce=r, out=out)
            for w, r in sums
        }
        if case.groups == 1:
            got["mean"] = columns(case, q, segments, None, counted, form="mean_logit")
        got["rows"] = row_mass(q, segments, lse, rope=rope_of(case), segment=0, window=case.window)
        return got

    got = everything(q, segments, counted)
    rows = np.asarray(counted)
    for (w, r), x in sums.items():
        clear = told[:, rows].all(1) if w == "caote" else np.ones_like(x[:, 0], bool)
        assert clear.mean() > 0.5
        expected = reduced(x[:, rows].sum(1), case, r)
        ours = np.concatenate(got[f"{w} {r}"], axis=-1)
        assert ours.dtype == jnp.float32
        clear = np.broadcast_to(clear if r == "head" else True, ours.shape)
        coarse = case.dtype is ml_dtypes.bfloat16
        close = {"rtol": 5e-2 if coarse else 1e-3, "atol": tolerance(case) * 4}
        np.testing.assert_allclose(ours[clear], expected[clear], **close)
    if case.groups == 1:
        seen = np.isfinite(z).all(0)  # all heads see the same
        logit = np.where(seen, np.where(np.isfinite(z), z, 0.0).mean(0), -np.inf)
        expected = split(dense_weights(logit)[0][rows].sum(0)[None], segments)
        for ours, theirs in zip(got["mean"], expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=tolerance(case) * 4)
    expected = split(a.mean(0), segments)[0].sum(-1)
    np.testing.assert_allclose(got["rows"], expected, atol=tolerance(case))
    if case.fill == "nothing":
        assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(got))


def test_weights_of_all_columns_sum_to_the_counted_rows():
    case = next(c for c in CASES if c.name == "grouped")
    q, segments, counted = on_device(build(case))

    @jax.jit
    def heads(q, segments, counted):
        lse = attend(q, segments, rope=rope_of(case))[1]
        return columns(case, q, segments, lse, counted, reduce="head")

    parts = heads(q, segments, counted)
    total = sum(jnp.sum(x, axis=-1) for x in parts)
    np.testing.assert_allclose(total, np.full(case.heads, int(counted.sum())), rtol=1e-5)


def test_no_gradient_flows_back():
    case = next(c for c in CASES if c.name == "grouped")
    q, segments, counted = on_device(build(case))

    def loss(q):
        lse = attend(q, segments, rope=rope_of(case))[1]
        parts = columns(case, q, segments, lse, counted)
        rows = row_mass(q, segments, lse, rope=rope_of(case), segment=0)
        return sum(jnp.sum(jnp.sin(x)) for x in (*parts, rows))

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(q), 0)


def test_row_mass_counts_the_columns_asked_for():
    case = next(c for c in CASES if c.name == "grouped")
    q, segments, _ = on_device(build(case))

    @jax.jit
    def of(columns):
        lse = attend(q, segments, rope=rope_of(case))[1]
        return row_mass(q, segments, lse, rope=rope_of(case), segment=0, columns=columns)

    early = jnp.arange(30) < 11
    np.testing.assert_allclose(of(early) + of(~early), of(None), atol=1e-6)
    assert float(jnp.max(of(early))) > 0.01


@jax.jit
def importance(q, segments):
    """Both forms, from queries and keys that are already rotated."""
    options = {"rope": rope_1d(q.shape[-1]), "rows": jnp.ones(q.shape[0], bool)}
    lse = attend(q, segments, rope=options["rope"])[1]
    exact = mass(q, segments, lse, **options)[0][0]
    return exact, mass(q, segments, None, form="mean_logit", **options)[0][0]


GOLDEN = [
    "additive_sum", "caps_exceed", "first_chunk", "joint_cap", "later_chunk", "later_chunk_lam05",
    "no_audio_joint", "uniform_memory",
]  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_equals_published_importance(golden, name):
    data = np.load(golden / "omnimem" / f"select_{name}.npz")
    q = jnp.asarray(data["q_chunk"].transpose(1, 0, 2))
    k = jnp.asarray(data["k_pool"].transpose(1, 0, 2))
    n, rows = k.shape[0], q.shape[0]
    last = n - rows + jnp.arange(rows, dtype=jnp.int32)
    segments = [Segment(k, jnp.zeros_like(k), jnp.ones((n, 1), bool), last=last)]
    exact, mean = importance(q, segments)
    np.testing.assert_allclose(exact / rows, data["importance_exact_new"], atol=1e-6)
    np.testing.assert_allclose(mean, data["importance_new"], atol=1e-5)


def test_no_array_of_rows_by_keys():
    rows, keys, dim = 4096, 16384, 32

    def shape(*s, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(s, dtype)

    int32 = jnp.int32
    kv, pos = shape(keys, 1, dim), shape(keys, 1, 1, dtype=int32)
    row_pos, last = shape(rows, 1, dtype=int32), shape(rows, dtype=int32)
    segment = Segment(kv, kv, shape(keys, 1, dtype=bool), pos, row_pos, last)
    given = shape(rows, 2, dim), segment, shape(rows, 2), shape(rows, dtype=bool)

    for form in ("softmax", "mean_logit"):

        def function(q, segment, lse, counted, form=form):
            return mass(q, [segment], lse, rope=rope_1d(dim), rows=counted, form=form)

        compiled = jax.jit(function).lower(*given).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < rows * keys * 4 // 8


def test_errors_name_what_came():
    case = CASES[0]
    q, segments, counted = on_device(build(case))
    lse = jnp.zeros(q.shape[:2])
    call = {"rope": rope_of(case), "rows": counted}
    with pytest.raises(ValueError, match=r"lse must be .* got None"):
        mass(q, segments, None, **call)
    with pytest.raises(ValueError, match="form must be one of"):
        mass(q, segments, lse, form="mean", **call)
    with pytest.raises(ValueError, match="need out"):
        mass(q, segments, lse, weights="caote", **call)
    with pytest.raises(ValueError, match="Gm = 1"):
        wide = [s._replace(valid=jnp.ones((s.k.shape[0], 2), bool)) for s in segments]
        mass(q, wide, None, form="mean_logit", **call)
    with pytest.raises(ValueError, match="segment must be in"):
        row_mass(q, segments, lse, rope=rope_of(case), segment=2)

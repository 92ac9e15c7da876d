"""Every Pallas kernel lowers for CUDA on a machine without a GPU, for the shapes of 7B models.

Lowering proves that the kernels keep to what Triton can express; PTX, registers and shared memory
come only when XLA compiles.
"""

import contextlib
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import pytest

from jaxmem.kernels import dispatch
from jaxmem.kernels.attend import attend
from jaxmem.kernels.attend import pallas as attend_pallas
from jaxmem.kernels.attend_mass import attend_mass
from jaxmem.kernels.delta import delta
from jaxmem.kernels.received import mass, row_mass
from jaxmem.kernels.segment import Segment
from jaxmem.kernels.select import select, top_mask
from jaxmem.kernels.ssd import ssd
from jaxmem.rope import mrope_sectioned, rope_1d

pytestmark = pytest.mark.filterwarnings("ignore:.*Pallas Triton.*:DeprecationWarning")
SHAPE = jax.ShapeDtypeStruct
KERNEL = "__gpu$xla.gpu.triton"
QWEN_7B = (1024, 28, 4, 128)  # T, H, G, D
SSD = (1024, 80, 64, 1, 128), (1024, 16, 64, 16, 64)  # T, H, P, G, N: Mamba-2 2.7B; linear
DELTA = (1024, 32, 128, 16, 128), (1024, 16, 64, 16, 64)  # T, H, V, G, K: Qwen3.5 9B; half the size


def some_gpu():
    """Return a context that names a GPU where JAX asks for one (from 0.11 on)."""
    if jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

    given = {"device_kind": "NVIDIA H100", "num_cores": None, "platform": "gpu"}
    known = inspect.signature(AbstractDevice).parameters
    device = AbstractDevice(**{k: v for k, v in given.items() if k in known})
    kinds = (AxisType.Auto,)
    return use_abstract_mesh(AbstractMesh((1,), ("_",), axis_types=kinds, abstract_device=device))


def kernels_of(function, *shapes):
    """Return how many kernels are in `function` as lowered for CUDA."""
    with some_gpu():
        lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))
    return lowered.as_text().count(KERNEL)


def inputs(sizes, shape, memory, dtype=jnp.bfloat16, axes=1):
    """Return shapes of queries, segments (prefix, memory, chunk), log-sum-exp and counted rows."""
    rows, heads, groups, dim = shape

    def segment(n, chunk):
        kv = SHAPE((n, groups, dim), dtype)
        pos, q_pos = SHAPE((n, 1, axes), jnp.int32), SHAPE((rows, axes), jnp.int32)
        last = SHAPE((rows,), jnp.int32) if chunk else None
        return Segment(kv, kv, SHAPE((n, 1), bool), pos, q_pos, last)

    segments = [segment(n, False) for n in (*sizes, memory)] + [segment(rows, True)]
    lse, counted = SHAPE((rows, heads), jnp.float32), SHAPE((rows,), bool)
    return SHAPE((rows, heads, dim), dtype), segments, lse, counted


def ssd_shapes(rows, heads, dim, groups, size, dtype=jnp.float32):
    """Return shapes of x, dt, a, b, c and state."""
    x, along = SHAPE((rows, heads, dim), dtype), SHAPE((rows, groups, size), dtype)
    dt, a = SHAPE((rows, heads), jnp.float32), SHAPE((heads,), jnp.float32)
    return x, dt, a, along, along, SHAPE((heads, dim, size), jnp.float32)


def delta_shapes(rows, heads, dim, groups, size, dtype=jnp.float32):
    """Return shapes of q, k, v, g, beta and state."""
    v, along = SHAPE((rows, heads, dim), dtype), SHAPE((rows, groups, size), dtype)
    row = SHAPE((rows, heads), jnp.float32)
    return along, along, v, row, row, SHAPE((heads, size, dim), jnp.float32)


@pytest.mark.parametrize("memory", [4096, 8192])
@pytest.mark.parametrize("on_load", [True, False])
def test_attend_of_a_7b_model(memory, on_load):
    q, segments, _, _ = inputs((13,), QWEN_7B, memory, axes=3)
    rope = mrope_sectioned(128, 1e6, (16, 24, 24))
    run = lambda q, s: attend_pallas.attend(q, s, rope=rope, on_load=on_load)
    assert kernels_of(run, q, segments) == 1


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1024, 14, 2, 64), jnp.bfloat16),
        ((1024, 16, 16, 80), jnp.bfloat16),
        ((1, 28, 4, 128), jnp.float32),
    ],
    ids=["64", "80", "one_row"],
)
def test_attend_of_other_heads(shape, dtype):
    q, segments, _, _ = inputs((), shape, 4096, dtype)
    rope = rope_1d(shape[-1])
    assert kernels_of(lambda q, s: attend(q, s, rope=rope, implementation="pallas"), q, segments)


def scored(segments, rows, groups):
    """Return segments whose keys have a number for their logits, and a row that they end at."""
    of = lambda s, kind: SHAPE((s.valid.shape[0], groups), kind)
    row = SHAPE((rows,), jnp.int32)
    more = lambda s: {"bias": of(s, jnp.float32), "until": of(s, jnp.int32), "row": row}
    return [s._replace(**more(s)) for s in segments]


def test_attend_with_scores_of_a_7b_model():
    q, segments, lse, counted = inputs((13,), QWEN_7B, 4096)
    segments = scored(segments, QWEN_7B[0], QWEN_7B[2])
    how = {"rope": rope_1d(128), "implementation": "pallas"}
    assert kernels_of(lambda q, s: attend(q, s, **how), q, segments) == 1
    sums = lambda q, s, lse, c: mass(q, s, lse, rows=c, **how)
    assert kernels_of(sums, q, segments, lse, counted) == len(segments)


def test_attend_inside_grad_vmap_and_scan():
    q, segments, _, _ = inputs((), (64, 4, 2, 64), 256)
    q, segments = jax.tree.map(lambda x: SHAPE((3, 2, *x.shape), x.dtype), (q, segments))

    def loss(q, segments):
        one = lambda q, s: attend(q, s, rope=rope_1d(64), implementation="pallas")[0]
        out = jax.lax.map(lambda x: jax.vmap(one)(*x), (q, segments))
        return jnp.sum(out.astype(jnp.float32) ** 2)

    assert kernels_of(jax.grad(loss), q, segments) == 1


@pytest.mark.parametrize("memory", [4096, 8192])
@pytest.mark.parametrize(
    ("form", "reduce"), [("softmax", "head_mean"), ("softmax", "head"), ("mean_logit", "head_mean")]
)
def test_mass_of_a_7b_model(memory, form, reduce):
    q, segments, lse, counted = inputs((), QWEN_7B, memory)

    def run(q, segments, lse, counted):
        options = {"form": form, "reduce": reduce, "implementation": "pallas"}
        return mass(q, segments, lse, rope=rope_1d(128), rows=counted, **options)

    passes = len(segments) + (form == "mean_logit")  # the log-sum-exp of the mean logits
    assert kernels_of(run, q, segments, lse, counted) == passes


@pytest.mark.parametrize("weights", ["A2v2", "caote"])
@pytest.mark.parametrize("dim", [80, 128])
def test_weighted_mass(dim, weights):
    q, segments, lse, counted = inputs((), (1024, 16, 8, dim), 4096)

    def run(q, segments, lse, counted):
        options = {"rope": rope_1d(dim), "rows": counted, "implementation": "pallas"}
        return mass(q, segments, lse, weights=weights, out=q, **options)

    assert kernels_of(run, q, segments, lse, counted) == len(segments)


@pytest.mark.parametrize("dim", [64, 80])
def test_mass_of_other_heads(dim):
    q, segments, lse, counted = inputs((), (1024, 16, 16, dim), 4096)

    def run(q, segments, lse, counted):
        options = {"rope": rope_1d(dim), "rows": counted, "implementation": "pallas"}
        return mass(q, segments, lse, **options)

    assert kernels_of(run, q, segments, lse, counted) == len(segments)


def test_row_mass_of_a_7b_model():
    q, segments, lse, _ = inputs((), QWEN_7B, 4096)

    def run(q, segments, lse):
        options = {"rope": rope_1d(128), "segment": 0, "implementation": "pallas"}
        return row_mass(q, segments, lse, **options)

    assert kernels_of(run, q, segments, lse) == 1


def test_select_of_one_and_of_many_rows():
    scores, caps = SHAPE((2, 12288), jnp.float32), SHAPE((2,), jnp.int32)
    run = lambda s, c: select(s, c, slots=8192, implementation="pallas")
    assert kernels_of(run, scores, caps) == 2
    layers = SHAPE((28, 2, 12288), jnp.float32), SHAPE((28, 2), jnp.int32)
    assert kernels_of(jax.vmap(run), *layers) == 2
    assert kernels_of(lambda s, c: top_mask(s, c, implementation="pallas"), scores, caps) == 1


def test_nothing_but_a_name_chooses_a_kernel():
    q, segments, _, _ = inputs((), (64, 4, 2, 64), 256)
    assert kernels_of(lambda q, s: attend(q, s, rope=rope_1d(64)), q, segments) == 0


@pytest.mark.parametrize("size", SSD, ids=str)
def test_ssd_forward_and_in_a_gradient(size):
    run = partial(ssd, implementation="pallas")
    assert kernels_of(run, *ssd_shapes(*size)) == 1
    assert kernels_of(gradient(run), *ssd_shapes(*size, jnp.bfloat16)) == 3


@pytest.mark.parametrize("size", DELTA, ids=str)
def test_delta_forward_and_in_a_gradient(size):
    run = partial(delta, implementation="pallas")
    assert kernels_of(run, *delta_shapes(*size)) == 2
    assert kernels_of(gradient(run), *delta_shapes(*size, jnp.bfloat16)) == 5


def test_scans_of_many_streams_lower_too():
    shapes = jax.tree.map(lambda x: SHAPE((3, *x.shape), x.dtype), ssd_shapes(*SSD[1]))
    streams = jax.vmap(partial(ssd, implementation="pallas"))
    assert kernels_of(streams, *shapes) == 1
    assert kernels_of(gradient(streams), *shapes) == 3


def gradient(run):
    return jax.grad(lambda *x: jnp.sum(run(*x)[0].astype(jnp.float32) ** 2), argnums=range(6))


def test_what_none_takes_on_a_gpu(monkeypatch):
    """As measured on an H200 (experiments/gpu): kernels, but for few rows and wide head means."""
    many, few = (inputs((), (rows, *QWEN_7B[1:]), 4096) for rows in (256, 32))
    rope = rope_1d(128)
    scores, caps = SHAPE((2, 4352), jnp.float32), SHAPE((2,), jnp.int32)

    def received(form, given, of=mass):
        run = lambda q, s, lse, c: of(q, s, lse, rope=rope, rows=c, form=form)
        return kernels_of(run, *given)

    def both(form):
        run = lambda q, s, c: attend_mass(q, s, rope=rope, rows=c, form=form)
        return kernels_of(run, many[0], many[1], many[3])

    def attended(x):
        return kernels_of(lambda q, s: attend(q, s, rope=rope), *x[:2])

    def taken():  # of new functions: what is traced once stays
        return {
            "attend": [attended(x) for x in (many, few)],
            "attend_mass": [both(form) for form in ("softmax", "mean_logit")],
            "mass": [received(form, many) for form in ("softmax", "mean_logit")],
            "select": kernels_of(lambda s, c: select(s, c, slots=4096), scores, caps),
            "top_mask": kernels_of(lambda *x: top_mask(*x), scores, caps),
            "ssd": kernels_of(lambda *x: ssd(*x), *ssd_shapes(*SSD[0], jnp.float32)),
            "delta": kernels_of(lambda *x: delta(*x), *delta_shapes(*DELTA[0], jnp.float32)),
        }  # fmt: skip

    none = {name: [0, 0] if name in ("attend", "attend_mass", "mass") else 0 for name in taken()}
    assert taken() == none
    monkeypatch.setattr(dispatch, "on_ampere", lambda: True)
    kernels = {"attend": [1, 0], "attend_mass": [3, 1], "mass": [2, 0], "select": 2, "top_mask": 1}
    assert taken() == kernels | {"ssd": 0, "delta": 2}

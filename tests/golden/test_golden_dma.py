"""The attention layer of Doge (transformers' `DogeAttention`) as a decoder with `Retention`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from golden_files import cases, found

import jaxmem as jm
from jaxmem.decoder.decoder import rms_norm
from jaxmem.memory.parts.retained import retention
from jaxmem.rope import Rope

CLOSE = {"atol": 2e-6, "rtol": 2e-6}


def pytest_generate_tests(metafunc):
    files = found(metafunc.config, "dma/*.npz")
    metafunc.parametrize("file", cases(metafunc.config, files))


def projected(z):
    """Return queries, keys and values of all rows, and the scorer's weights, in float32."""
    x, dim = z["x"], len(z["param.q_norm.weight"])
    heads = lambda n: jnp.asarray((x @ z[f"param.{n}_proj.weight"].T).reshape(len(x), -1, dim))
    norm = lambda n, y: rms_norm(y, {"scale": jnp.asarray(z[f"param.{n}_norm.weight"])}, 1e-6)
    scorer = {"kernel": z["param.dt_proj.weight"].T, "a": z["param.A"]}
    found = norm("q", heads("q")), norm("k", heads("k")), heads("v"), scorer
    return jax.tree.map(lambda y: jnp.asarray(y, jnp.float32), found)


def rope_of(z):
    angles = z["angles"]
    half = angles.shape[1] // 2
    np.testing.assert_allclose(angles, np.arange(len(angles))[:, None] * angles[1])
    return Rope(tuple(map(float, angles[1, :half])), (0,) * half)


@pytest.mark.parametrize(
    "size", [7, pytest.param(40, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)]
)
def test_any_chunking_is_the_recorded_layer(file, size):
    z = weights.read(file)
    q, k, v, scorer = projected(z)
    np.testing.assert_allclose(retention(scorer, v), z["score"], **CLOSE)

    memory = jm.Retention(int(z["window"]))
    groups, dim = k.shape[1:]
    spec = jm.Spec(layers=1, kv_heads=groups, head_dim=dim, width=z["x"].shape[1], chunk=size)
    step = jax.jit(partial(jm.attend, memory, spec, rope=rope_of(z)))
    state, clock, out = memory.init(spec), 0, []
    for at in range(0, len(q), size):
        rows = jm.embeds(jnp.asarray(z["x"][at : at + size], jnp.float32), jm.Modality.TEXT)
        part = [y[at : at + size] for y in (q, k, v)]
        y, state = step(state, *part, rows, clock, retention=scorer)
        out.append(np.asarray(y).reshape(len(y), -1))
        clock = jm.tick(state, clock, rows)[1]
    np.testing.assert_allclose(np.concatenate(out) @ z["param.o_proj.weight"].T, z["y"], **CLOSE)
    assert jm.nbytes(memory, spec) < k.nbytes + v.nbytes


def test_an_unlike_window_is_another_layer(file):
    """The vectors see the mask: one slot less, or no score in the logits, and outputs differ."""
    z = weights.read(file)
    q, k, v, scorer = projected(z)
    spec = jm.Spec(layers=1, kv_heads=k.shape[1], head_dim=k.shape[2], width=32, chunk=40)
    rows = jm.embeds(jnp.asarray(z["x"], jnp.float32), jm.Modality.TEXT)
    for memory in (jm.Retention(7), jm.Retention(8, logits=False)):
        attend = jax.jit(partial(jm.attend, memory, spec, rope=rope_of(z)))
        y, _ = attend(memory.init(spec), q, k, v, rows, 0, retention=scorer)
        got = np.asarray(y).reshape(len(y), -1) @ z["param.o_proj.weight"].T
        assert np.abs(got - z["y"]).max() > 1e-3

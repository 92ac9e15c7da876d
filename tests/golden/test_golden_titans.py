"""Titans' memory against titans-pytorch: outputs, memory and momentum, in one call and two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from golden_files import cases, found

from jaxmem.mixers.titans import Titans, TitansState


def pytest_generate_tests(metafunc):
    files = found(metafunc.config, "titans/*.npz")
    metafunc.parametrize("file", cases(metafunc.config, files))


def layer(z):
    """The recorded weights as the mixer's: those of the rows' norms go into the projections."""
    read, store = (z[f"param.{n}_norm.weight"][:, None] for n in ("retrieve", "store"))
    dense = lambda name, norm: {"kernel": norm * z[f"param.{name}.weight"].T}
    names = {"step": "adaptive_step", "momentum": "momentum", "forget": "decay_factor"}
    found = {"q": dense("to_queries", read)}
    found |= {n: dense(f"to_{name}", store) for n, name in (("k", "keys"), ("v", "values"))}
    for ours, theirs in names.items():
        found[ours] = dense(f"to_{theirs}.0", store) | {"bias": z[f"param.to_{theirs}.0.bias"]}
    width, depth = z["x"].shape[1], len(z["names"]) - 1
    flat = [z[f"param.memory_model_parameters.{i}"].reshape(1, -1) for i in range(depth + 1)]
    found |= {"memory": {"kernel": np.concatenate(flat, 1)}, "out": {"kernel": np.eye(width)}}
    more = {"rows": int(z["chunk"]), "rate": float(z["max_lr"]), "read": "released", "eps": 1e-15}
    return Titans(1, width, depth, **more), found


@pytest.mark.parametrize("cuts", [(26,), pytest.param((13, 13), marks=pytest.mark.slow)], ids=str)
def test_outputs_memory_and_momentum(file, cuts):
    z = weights.read(file)
    with jax.enable_x64():
        mixer, params = layer(z)
        x, out, at = jnp.asarray(z["x"]), [], 0
        state = jax.tree.map(lambda v: v.astype(np.float64), mixer.init(x.shape[1]))
        for size in cuts:
            part = x[at : at + size]
            y, state = jax.jit(mixer.chunk)(params, state, part, jnp.ones(size, bool))
            out.append(np.asarray(y))
            at += size
        state = TitansState(*map(np.asarray, state))
    np.testing.assert_allclose(np.concatenate(out), z["y"], atol=1e-9)
    np.testing.assert_allclose(z["y_split"], z["y"], atol=1e-9)
    for got, kind in (
        (state.memory + params["memory"]["kernel"], "memory"),
        (state.momentum, "momentum"),
    ):
        want = np.concatenate([z[f"{kind}_end.{name}"].ravel() for name in z["names"]])
        np.testing.assert_allclose(got[0], want, atol=1e-9)
    left = len(z["remainder"])
    np.testing.assert_allclose(state.waiting[:left, :-1], z["remainder"], atol=1e-9)
    np.testing.assert_array_equal(state.waiting[:, -1] > 0, np.arange(3) < left)

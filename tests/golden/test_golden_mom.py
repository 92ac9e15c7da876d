"""Mixture of memories against flash-linear-attention's layer, its sort made stable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from golden_files import cases, found

from jaxmem.mixers.mom import MoM


def pytest_generate_tests(metafunc):
    files = found(metafunc.config, "mom/*.npz")
    metafunc.parametrize("file", cases(metafunc.config, files))


def layer(z):
    """The recorded weights [out, in] as the mixer's, those of memories stacked."""
    dense = lambda name: {"kernel": z[f"param.{name}.weight"].T}
    found = {"q": dense("q_proj"), "z": dense("g_proj"), "out": dense("o_proj")}
    count, shared = z["router_logits"].shape[1], "param.shared_k.weight" in z
    for n in "kvab":
        names = [f"{n}_proj.{m}" for m in range(count)] + [f"shared_{n}"] * shared
        found[n] = {"kernel": np.stack([dense(name)["kernel"] for name in names])}
    conv = np.concatenate([z[f"param.{n}_conv1d.w"].T for n in "qkv"], axis=1)
    found |= {"router": dense("gate"), "conv": {"kernel": conv}, "a_log": z["param.A_log"]}
    found |= {"dt_bias": z["param.dt_bias"], "norm": {"scale": z["param.o_norm.weight"]}}
    heads, dim = len(z["param.A_log"]), len(z["param.o_norm.weight"])
    return MoM(heads, dim, memories=count, shared=shared), found


@pytest.mark.parametrize("cuts", [(40,), pytest.param((8,) * 5, marks=pytest.mark.slow)], ids=str)
def test_outputs_in_one_pass_and_cut(file, cuts):
    z = weights.read(file)
    with jax.enable_x64():
        mixer, params = layer(z)
        logits = z["x"] @ params["router"]["kernel"]
        np.testing.assert_allclose(logits, z["router_logits"], atol=1e-6)
        x, out, at = jnp.asarray(z["x"]), [], 0
        state = jax.tree.map(lambda v: v.astype(np.float64), mixer.init(x.shape[1]))
        for size in cuts:
            part = x[at : at + size]
            y, state = jax.jit(mixer.chunk)(params, state, part, jnp.ones(size, bool))
            out.append(np.asarray(y))
            at += size
    np.testing.assert_allclose(np.concatenate(out), z["y"], atol=1e-6)

"""The gated delta rule against transformers' two functions: chunks of 16, and token by token."""

from functools import partial

import jax
import numpy as np
import pytest
import weights
from golden_files import cases, found

from jaxmem.kernels.delta import delta
from jaxmem.mixers.gated_delta import unit


def pytest_generate_tests(metafunc):
    files = found(metafunc.config, "gated_delta/*.npz")
    metafunc.parametrize("file", cases(metafunc.config, files))


@pytest.mark.parametrize("implementation", ["xla", "xla_blocks"])
@pytest.mark.parametrize("block", [1, 16])
def test_outputs_and_states(file, block, implementation):
    z = weights.read(file)
    run = jax.jit(jax.vmap(partial(delta, block=block, implementation=implementation)))
    names = ("v", "g", "beta", "state")
    out, state = run(unit(z["q"]), unit(z["k"]), *(z[name] for name in names))
    for end in ("", "_loop"):
        kind = f"out{end}", f"state_end{end}"
        np.testing.assert_allclose(out, z[kind[0]], atol=1e-6)
        np.testing.assert_allclose(state, z[kind[1]], atol=1e-6)

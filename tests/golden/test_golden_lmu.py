"""The Legendre memory of docs/mixers.md, against its matrices and states from scipy."""

import re
import sys
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights


@pytest.fixture(scope="module")
def example(root):
    """The first block of code of the page, as a module."""
    code = re.search(r"^```python\n(.*?)^```", (root / "docs/mixers.md").read_text(), re.M | re.S)
    module = ModuleType("docs_mixers")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(code[1], module.__dict__)  # type: ignore[index]
    yield module
    del sys.modules[module.__name__]


@pytest.mark.parametrize("name", ["d8", "d32"])
def test_matrices_and_states(example, golden, name):
    z = weights.read(golden / f"lmu/{name}.npz")
    with jax.enable_x64():
        mixer = example.Legendre(len(z["B"]), float(z["theta"]))
        a, b = mixer.system()
        np.testing.assert_allclose(a, z["A"], atol=1e-9)
        np.testing.assert_allclose(b, z["B"].ravel(), atol=1e-9)
        same = {"w": jnp.ones(1), "v": jnp.eye(len(z["B"]))}
        state = mixer.init(1)._replace(m=jnp.zeros(len(z["B"])))
        rows = jnp.asarray(z["u"])[:, None]
        y, end = jax.jit(mixer.chunk)(same, state, rows, jnp.ones(len(rows), bool))
    np.testing.assert_allclose(y, z["m"], atol=1e-9)
    np.testing.assert_array_equal(end.m, y[-1])

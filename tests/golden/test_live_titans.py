"""Rows of Titans that step one by one against titans-pytorch: `pytest -m parity`."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_golden_titans import layer

WIDTH, ROWS = 16, 26


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("depth", [1, 2])
def test_rows_that_step_one_by_one(depth):
    """Its chunks of one row, whose gradients are those of the weights four rows back at most."""
    torch = pytest.importorskip("torch")
    titans = pytest.importorskip("titans_pytorch")
    torch.manual_seed(depth)
    more = {"default_model_kwargs": {"depth": depth, "expansion_factor": 2.0}}
    more["default_step_transform_max_lr"] = 0.5
    theirs = titans.NeuralMemory(WIDTH, chunk_size=1, batch_size=4, **more).double()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        x = torch.randn(1, ROWS, WIDTH, dtype=torch.float64)
        want = theirs(x)[0][0].numpy()
    z = {f"param.{n}": w.detach().numpy() for n, w in theirs.named_parameters()}
    names = [name for name in z if "memory_model_parameters" in name]
    z |= {"x": x[0].numpy(), "names": names, "chunk": 4, "max_lr": 0.5}
    with jax.enable_x64():
        mixer, params = layer(z)
        mixer = replace(mixer, read="each")
        state = jax.tree.map(lambda v: v.astype(np.float64), mixer.init(WIDTH))
        got, _ = jax.jit(mixer.chunk)(params, state, jnp.asarray(z["x"]), jnp.ones(ROWS, bool))
    np.testing.assert_allclose(got, want, atol=1e-10)

"""Linear attention over blocks, against vectors of the published rule."""

import jax
import jax.numpy as jnp
import numpy as np
import weights

from jaxmem.mixers.linear import LinearAttention, attend


def test_blocks_at_absolute_angles(golden):
    """Their pairs are channels 2i and 2i + 1, ours i and i + D/2."""
    z = weights.read(golden / "linear/block.npz")
    blocks, heads, dim, rows = z["q"].shape
    order = np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)])
    state, real = LinearAttention(heads, dim).init(0), jnp.ones(rows, bool)
    step = jax.jit(lambda *a: attend(*a, within="block"))
    for i in range(blocks):
        q, k, v = (jnp.asarray(z[n][i], jnp.float32).transpose(2, 0, 1) for n in "qkv")
        angles = jnp.asarray(z["angles"][i].T, jnp.float32)
        out, state = step(q[..., order], k[..., order], v, real, state, angles)
        np.testing.assert_allclose(out, z["out"][i].transpose(2, 0, 1), atol=2e-6)
    np.testing.assert_allclose(state.memory, z["vk_end"][..., order], atol=2e-6)
    np.testing.assert_allclose(state.total, z["ksum_end"][:, order], atol=2e-6)

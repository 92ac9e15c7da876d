"""Small embedded models with a state, not trained, as files of weights."""

import jax
import numpy as np

from jaxmem.models.tiny import tiny

SMALL = tiny.TinyConfig(  # of four layers the last may attend
    width=32, layers=4, heads=2, kv_heads=1, head_dim=16, mlp_width=128, stem_width=16
)
STATES = 40_448
"""Bytes of the states of four layers with `mamba2`."""


def write(folder, config):
    """Write random weights of a model, quickly drawn, and return their file."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: tiny.init(config, jax.random.key(0)))
    path = folder / f"{tiny.name_of(config)}.safetensors"
    drawn = jax.tree.map(lambda x: 0.2 * rng.normal(size=x.shape), shapes)
    tiny.save(path, drawn, config)
    return path

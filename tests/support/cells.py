"""Cells for the laws of checkpointing: a generic one, a layer of Mamba-2, a recurrent memory."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxmem.mixers.mamba2 import Mamba2

NAMES = ("generic", "mamba2", "recurrent_memory")
LAYERS, WIDTH = 8, 64
FILL = {"generic": 0.0, "mamba2": (0.0, False), "recurrent_memory": 0.0}
MIXER = Mamba2(2, 64, 16, block=128)


def generic(params, x, state):
    """Causal linear attention; rows of zeros write nothing."""
    q, k, v = (x @ params[name] for name in "qkv")
    seen = jnp.tril(jnp.ones((len(x), len(x)), x.dtype))
    y = ((q @ k.T) * seen) @ v + q @ state
    return x + jnp.tanh(y) @ params["o"], state + k.T @ v


def recurrent_memory(params, x, state):
    """Rows that read [memory | rows], and a memory that does (RMT); padding is masked."""
    rows = jnp.concatenate([state, x])
    real = jnp.any(rows != 0, axis=1) | (jnp.arange(len(rows)) < len(state))

    def attend(q):
        q, k, v = q @ params["q"], rows @ params["k"], rows @ params["v"]
        weights = jax.nn.softmax(jnp.where(real[None], q @ k.T, -jnp.inf))
        return (weights @ v) @ params["o"]

    some = jnp.any(x != 0)
    y = jnp.where(real[len(state) :, None], x + attend(x), 0)
    return y, jnp.where(some, jnp.tanh(state + attend(state)), state)


def mamba2(params, x, state, mixer=MIXER):
    h, real = x
    y, state = mixer.chunk(params, state, h, real)
    return (h + y, real), state


def case(name, rows, layers=LAYERS, width=WIDTH, mixer=MIXER, dtype=jnp.float32):
    """Return a cell, and random params [L], x [S] and state [L] for it."""
    key = jax.random.split(jax.random.key(0), 6)
    h = jax.random.normal(key[0], (rows, width), dtype)
    if name == "mamba2":
        params = jax.vmap(partial(mixer.weights, width))(jax.random.split(key[1], layers))
        one = mixer.init(width)
        state = jax.tree.map(lambda a: jnp.zeros((layers, *a.shape), dtype), one)
        params = jax.tree.map(lambda a: a.astype(dtype), params)
        return partial(mamba2, mixer=mixer), params, (h, jnp.ones(rows, bool)), state
    sides = (layers, width, width)
    params = {
        n: 0.3 * width**-0.5 * jax.random.normal(k, sides, dtype)
        for n, k in zip("qkvo", key[1:5], strict=True)
    }
    state = 0.1 * jax.random.normal(key[5], sides, dtype)
    return {"generic": generic, "recurrent_memory": recurrent_memory}[name], params, h, state


def shapes(name, rows, **sizes):
    """Return a cell, and the shapes of `case`."""
    cell = case(name, 1, layers=1)[0]
    if "mixer" in sizes:
        cell = partial(mamba2, mixer=sizes["mixer"])
    return cell, *jax.eval_shape(lambda: case(name, rows, **sizes)[1:])

"""Inputs of the kernels that carry a state, and the same recurrences token by token in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def ssd_inputs(rows, heads=4, groups=2, dim=5, size=3, seed=0, padding=0):
    """Return x, dt, a, b, c and state; the last `padding` rows have dt 0."""
    rng = np.random.default_rng(seed)
    dt = np.logaddexp(0, rng.normal(size=(rows, heads)))
    dt[rows - padding :] = 0
    return (
        rng.normal(size=(rows, heads, dim)),
        dt,
        -np.exp(rng.normal(size=heads)),
        rng.normal(size=(rows, groups, size)),
        rng.normal(size=(rows, groups, size)),
        rng.normal(size=(heads, dim, size)),
    )


def ssd_loop(x, dt, a, b, c, state):
    """Return y and the last state of h <- exp(dt a) h + dt x b^T, y = h c."""
    b, c = (jnp.repeat(v, x.shape[1] // v.shape[1], axis=1) for v in (b, c))

    def step(state, row):
        x, dt, write, read = row
        fresh = jnp.einsum("hp,hn->hpn", dt[:, None] * x, write)
        state = jnp.exp(dt * a)[:, None, None] * state + fresh
        return state, jnp.einsum("hpn,hn->hp", state, read)

    return jax.lax.scan(step, state, (x, dt, b, c))[::-1]


def delta_inputs(rows, heads=4, groups=2, keys=6, values=5, seed=0, padding=0):
    """Return q, k, v, g, beta and state; the last `padding` rows have g 0 and beta 0."""
    rng = np.random.default_rng(seed)

    def unit():
        x = rng.normal(size=(rows, groups, keys))
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    g, beta = -np.logaddexp(0, rng.normal(size=(rows, heads))), rng.random((rows, heads))
    g[rows - padding :] = beta[rows - padding :] = 0
    state = rng.normal(size=(heads, keys, values))
    return unit(), unit(), rng.normal(size=(rows, heads, values)), g, beta, state


def delta_loop(q, k, v, g, beta, state):
    """Return the outputs and the last state of the gated delta rule."""
    k, q = (jnp.repeat(x, v.shape[1] // x.shape[1], axis=1) for x in (k, q))

    def step(state, row):
        read, key, v, g, beta = row
        state = jnp.exp(g)[:, None, None] * state
        wrong = v - jnp.einsum("hkv,hk->hv", state, key)
        state = state + jnp.einsum("hk,hv->hkv", key, beta[:, None] * wrong)
        return state, jnp.einsum("hkv,hk->hv", state, read) / np.sqrt(q.shape[-1])

    return jax.lax.scan(step, state, (q, k, v, g, beta))[::-1]


def cast(inputs, dtype=np.float32):
    """Return inputs as device arrays."""
    return tuple(jnp.asarray(x, dtype) for x in inputs)


def loss(function):
    """Return a number that depends on every output of a recurrence, and on its last state."""

    def of(*inputs):
        y, state = function(*inputs)
        return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state))

    return jax.jit(jax.value_and_grad(of, argnums=tuple(range(6))))

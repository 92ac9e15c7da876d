"""The gated delta rule in plain XLA, in blocks of rows.

With c the cumulative sum of g in a block and L[i, j] = exp(c_i - c_j), what a block writes solves a
triangular system of the state S before it: (I + A) U = beta (v - exp(c) k S), with A[i, j] =
beta_i (k_i . k_j) L[i, j] for j < i, which does not depend on S. Decays and shares scale rows of Q
or V numbers, not of K: those are the widest, and sums over them are most of a gradient's time.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.blocks import decays, grouped, in_blocks, one_by_one, sums, times, wide
from jaxmem.typing import Array, Float

Rows = tuple[Array, Array, Array, Array, Array]
"""q, k [Q, G, K], v [Q, G, R, V], g, beta [Q, G, R]; R value heads share a key head."""
Solved = tuple[Array, Array, Array, Array, Array, Array, Array]
"""(I + A)^-1 beta and scores [G, R, Q, Q], q and k [G, Q, K], v [G, R, Q, V], exp(c) and
exp(c_Q - c) [G, R, Q]: all that a block needs but the state."""


BASE = 8  # rows of the triangles that are inverted row by row


@jax.custom_vjp
def inverse(a: Float[Array, "*H Q Q"]) -> Float[Array, "*H Q Q"]:
    """Return (I + a)^-1 of strictly lower triangles, from small ones to the whole.

    XLA's own solver takes more than ten times as long on a CPU.
    """
    rows, size = a.shape[-1], BASE
    while size < rows:
        size *= 2
    lead, short = a.shape[:-2], size - rows
    a = jnp.pad(a, ((0, 0),) * len(lead) + ((0, short), (0, short)))
    out = _by_rows(_diagonal(a, BASE, 0))
    for half in (BASE * 2**i for i in range((size // BASE).bit_length() - 1)):
        pairs = out.reshape(*lead, -1, 2, half, half)
        top, bottom = pairs[..., 0, :, :], pairs[..., 1, :, :]
        corner = -times(times(bottom, _diagonal(a, half, 1)), top)
        upper = jnp.concatenate([top, jnp.zeros_like(top)], axis=-1)
        out = jnp.concatenate([upper, jnp.concatenate([corner, bottom], axis=-1)], axis=-2)
    return out.reshape(*lead, size, size)[..., :rows, :rows]


def _diagonal(a: Array, size: int, below: int) -> Float[Array, "*H n size size"]:
    """Return the blocks of the diagonal, or those one `below` every second one of it."""
    step = size * (1 + below)
    at = range(0, a.shape[-1], step)
    down = size * below
    cut = lambda i: a[..., i + down : i + down + size, i : i + size]
    return jnp.stack([cut(i) for i in at], axis=-3)


def _by_rows(a: Float[Array, "*H Q Q"]) -> Float[Array, "*H Q Q"]:
    """Return (I + a)^-1 by forward substitution."""
    eye, rows = jnp.eye(a.shape[-1], dtype=a.dtype), []
    for i in range(a.shape[-1]):
        row = jnp.broadcast_to(eye[i], a.shape[:-1])
        for j, other in enumerate(rows):
            row = row - a[..., i, j, None] * other
        rows.append(row)
    return jnp.stack(rows, axis=-2)


def _pull(out: Array, up: Array) -> tuple[Array]:
    turned = jnp.swapaxes(out, -1, -2)
    return (jnp.tril(-times(times(turned, up), turned), -1),)


inverse.defvjp(lambda a: (inverse(a),) * 2, _pull)


def _solve(rows: Rows) -> Solved:
    """Return what a block writes and reads as far as it does not depend on the state."""
    q, k, v, g, beta = (jnp.moveaxis(x, 0, axis) for x, axis in zip(rows, _ROWS, strict=True))
    cum = jnp.cumsum(g, axis=-1)
    decay = decays(cum)
    q = q * q.shape[-1] ** -0.5
    system = jnp.tril(beta[..., None] * sums("gqc,gkc->gqk", k, k)[:, None] * decay, -1)
    turned = inverse(system) * beta[..., None, :]
    scores = sums("gqc,gkc->gqk", q, k)[:, None] * decay
    return turned, scores, q, k, v, jnp.exp(cum), jnp.exp(cum[..., -1:] - cum)


_ROWS = (1, 1, 2, 2, 2)  # where the rows of q, k, v, g and beta go: after the heads


def _apply(state: Float[Array, "G R K V"], solved: Solved) -> tuple[Array, Array]:
    """Return the state after a block, and the block's outputs [Q, G, R, V]."""
    turned, scores, q, k, v, since, left = solved
    both = times(jnp.concatenate([k, q], axis=1)[:, None], state)  # the state is read once
    said, read = jnp.split(both, 2, axis=2)
    u = times(turned, v - since[..., None] * said)
    o = since[..., None] * read + times(scores, u)
    written = times(jnp.swapaxes(k, -1, -2)[:, None], left[..., None] * u)
    return since[..., -1][..., None, None] * state + written, jnp.moveaxis(o, 2, 0)


def _block(state: Array, rows: Rows) -> tuple[Array, Array]:
    return _apply(state, _solve(rows))


def _at_once(state: Array, rows: Rows, size: int) -> tuple[Array, Array]:
    """Return outputs and state with all systems solved at once; the states alone are scanned."""
    count = rows[0].shape[0]
    state, o = lax.scan(_apply, state, jax.vmap(_solve)(in_blocks(rows, min(size, count))))
    return o.reshape(-1, *o.shape[2:])[:count], state


def delta(
    q: Float[Array, "T G K"],
    k: Float[Array, "T G K"],
    v: Float[Array, "T H V"],
    g: Float[Array, "T H"],
    beta: Float[Array, "T H"],
    state: Float[Array, "H K V"],
    *,
    block: int,
    at_once: bool,
) -> tuple[Float[Array, "T H V"], Float[Array, "H K V"]]:
    """See `jaxmem.kernels.delta`."""
    groups, dtype = k.shape[1], wide(v, state)
    q, k, values, g, beta, start = (x.astype(dtype) for x in (q, k, v, g, beta, state))
    rows = q, k, grouped(values, 1, groups), grouped(g, 1, groups), grouped(beta, 1, groups)
    run = _at_once if at_once else partial(one_by_one, _block)
    o, last = run(grouped(start, 0, groups), rows, block)
    return o.reshape(v.shape).astype(v.dtype), last.reshape(state.shape).astype(state.dtype)

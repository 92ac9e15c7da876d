"""The recurrence of Mamba-2 in plain XLA, in blocks of rows."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.blocks import decays, grouped, in_blocks, one_by_one, sums, wide
from jaxmem.typing import Array, Float

Rows = tuple[Array, Array, Array, Array]
"""x [Q, G, R, P], dt [Q, G, R], b and c [Q, G, N] of a block; R heads share a group."""


def _written(
    a: Float[Array, "G R"], rows: Rows
) -> tuple[Float[Array, "G R Q P"], Float[Array, "G R Q"], Float[Array, "G R P N"]]:
    """Return dt x, cumulative log decays, and what a block adds to the state."""
    x, dt, b, _ = rows
    dt = jnp.moveaxis(dt, 0, -1)
    cum = jnp.cumsum(dt * a[..., None], axis=-1)
    u = jnp.moveaxis(x, 0, 2) * dt[..., None]
    left = jnp.exp(cum[..., -1:] - cum)
    return u, cum, sums("grkp,kgn->grpn", u * left[..., None], b)


def _read(
    state: Float[Array, "G R P N"], u: Array, cum: Array, rows: Rows
) -> Float[Array, "Q G R P"]:
    """Return the outputs of a block, from the state before it and the block itself."""
    _, _, b, c = rows
    scores = sums("qgn,kgn->gqk", c, b)
    y = sums("grqk,grkp->grqp", scores[:, None] * decays(cum), u)
    y = y + sums("qgn,grpn->grqp", c, state) * jnp.exp(cum)[..., None]
    return jnp.moveaxis(y, 2, 0)


def _block(a: Array, state: Array, rows: Rows) -> tuple[Array, Array]:
    u, cum, fresh = _written(a, rows)
    y = _read(state, u, cum, rows)
    return jnp.exp(cum[..., -1])[..., None, None] * state + fresh, y


def _at_once(a: Array, state: Array, rows: Rows, size: int) -> tuple[Array, Array]:
    """Return outputs and state with all blocks side by side; the states alone are scanned."""
    count = rows[0].shape[0]
    blocks = in_blocks(rows, min(size, count))
    u, cum, fresh = jax.vmap(partial(_written, a))(blocks)

    def body(state: Array, block: tuple[Array, Array]) -> tuple[Array, Array]:
        decay, fresh = block
        return decay[..., None, None] * state + fresh, state

    last, before = lax.scan(body, state, (jnp.exp(cum[..., -1]), fresh))
    y = jax.vmap(_read)(before, u, cum, blocks)
    return y.reshape(-1, *y.shape[2:])[:count], last


def ssd(
    x: Float[Array, "T H P"],
    dt: Float[Array, "T H"],
    a: Float[Array, "H"],
    b: Float[Array, "T G N"],
    c: Float[Array, "T G N"],
    state: Float[Array, "H P N"],
    *,
    block: int,
    at_once: bool,
) -> tuple[Float[Array, "T H P"], Float[Array, "H P N"]]:
    """See `jaxmem.kernels.ssd`."""
    groups, dtype = b.shape[1], wide(x, state)
    values, dt, a, b, c, start = (v.astype(dtype) for v in (x, dt, a, b, c, state))
    rows = grouped(values, 1, groups), grouped(dt, 1, groups), b, c
    rates = grouped(a, 0, groups)
    run = partial(_at_once, rates) if at_once else partial(one_by_one, partial(_block, rates))
    y, last = run(grouped(start, 0, groups), rows, block)
    return y.reshape(x.shape).astype(x.dtype), last.reshape(state.shape).astype(state.dtype)

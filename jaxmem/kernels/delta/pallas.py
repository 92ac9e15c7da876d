"""The gated delta rule as two Pallas (Triton) kernels, and its gradient by recomputation.

The triangular systems do not depend on the state: the first kernel inverts those of all heads and
tiles at once. In the second a program owns some value channels of one head and walks the tiles of
rows in turn, a few products each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxmem.kernels import pallas_scan as ps
from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kernels.delta import ref
from jaxmem.typing import Array, Float

Rows = tuple[Array, Array, Array, Array, Array]
"""q, k, v, g and beta."""


def _inverse_kernel(tree: Any, out: Any, *, form: ps.Form):
    """Invert I + A of one tile: blocks of the diagonal are joined in pairs, 1, 2, 4 ... rows each.

    As stable as substitution. The product of I + (-A)^(2^i) is not: where keys repeat, powers of A
    hold binomial coefficients, 3e8 at 32 rows, for an inverse with entries of 1.
    """
    k, g, beta = tree
    at = lax.iota(jnp.int32, form.rows)
    row = pl.program_id(1) * form.rows + at
    alike = 0.0
    for n in form.spans:
        key = ps.load(k, row, n)
        alike += ps.dot(key, key, (1, 1))
    _, _, decay = ps.decays(ps.load_row(g, row))
    a = ps.load_row(beta, row)[:, None] * alike * decay
    i, j = at[:, None], at[None, :]
    inverse = jnp.where(i == j, 1.0, 0.0)
    for bits in range(form.rows.bit_length() - 1):  # blocks of 2^bits rows
        corner = (i >> bits + 1 == j >> bits + 1) & (i >> bits > j >> bits)  # lower left of pairs
        below = jnp.where(corner, a, 0.0)
        if bits:
            below = ps.dot(inverse, ps.dot(below, inverse))
        inverse -= below
    out[...] = inverse


def _kernel(tree: Any, o: Any, last: Any, *before: Any, form: ps.Form, scale: float):
    q, k, v, g, beta, inverse, start = tree
    p = pl.program_id(1) * form.columns + lax.iota(jnp.int32, form.columns)

    def body(i: Array, state: ps.Pieces) -> ps.Pieces:
        ps.keep(form, before, i, p, state)
        row = i * form.rows + lax.iota(jnp.int32, form.rows)
        scores, asked, held = 0.0, 0.0, 0.0
        for n, part in zip(form.spans, state, strict=True):
            query, key = ps.load(q, row, n), ps.load(k, row, n)
            scores += ps.dot(query, key, (1, 1))
            asked += ps.dot(query, part)
            held += ps.dot(key, part)
        cum, total, decay = ps.decays(ps.load_row(g, row))
        grown = jnp.exp(cum)[:, None]
        wrong = ps.load(v, row, p).astype(jnp.float32) - grown * held
        u = ps.dot(inverse[i], ps.load_row(beta, row)[:, None] * wrong)
        ps.store(o, row, p, (grown * asked + ps.dot(scores * decay, u)) * scale)
        return ps.written(form, k, row, state, u, cum, total)

    state = lax.fori_loop(0, form.tiles, body, ps.load_state(form, start, p))
    ps.store_state(form, last, p, state)


def _form(v: Array, state: Array, block: int) -> ps.Form:
    return ps.form_of(v.shape[0], state.shape[1], state.shape[2], block)


def _run(rows: Rows, state: Array, block: int, interpret: bool, *, keep: bool) -> list[Array]:
    """Return o, the last state and, with `keep`, the states before every block."""
    q, k, v, g, beta = rows
    form, heads = _form(v, state, block), v.shape[1]
    shared = heads // k.shape[1]
    g, beta = g.T, beta.T  # rows of a head side by side
    one, keys, whole = pt.of_owner(g), ps.of_head(k, shared), pt.of_owner(state)
    size = (heads, form.tiles, form.rows, form.rows)
    inverse = pt.call(
        partial(_inverse_kernel, form=form),
        (k, g, beta),
        (keys, one, one),
        name="delta_inverse",
        grid=(heads, form.tiles),
        out_shape=jax.ShapeDtypeStruct(size, jnp.float32),
        out_specs=pl.BlockSpec((None, None, *size[2:]), lambda h, i: (h, i, 0, 0)),
        warps=ps.WARPS,
        stages=1,
        interpret=interpret,
    )
    outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, state)]
    if keep:
        outs.append(ps.kept(form, state))
    return pt.call(
        partial(_kernel, form=form, scale=k.shape[2] ** -0.5),
        (q, k, v, g, beta, inverse, state),
        (keys, keys, ps.of_head(v), one, one, pt.of_owner(inverse), whole),
        name="delta",
        grid=(heads, pl.cdiv(v.shape[2], form.columns)),
        out_shape=outs,
        out_specs=[ps.of_head(v), whole, *(ps.of_head(x) for x in outs[2:])],
        warps=ps.WARPS,
        stages=1,
        interpret=interpret,
    )


def _primal(rows: Rows, state: Array, block: int, interpret: bool):
    o, last = _run(rows, state, block, interpret, keep=False)
    return o, last


def _forward(rows: Rows, state: Array, block: int, interpret: bool):
    o, last, before = _run(rows, state, block, interpret, keep=True)
    return (o, last), (rows, before)


def _backward(block: int, interpret: bool, kept: Any, up: tuple[Array, Array]):
    del interpret
    rows, before = kept
    size = _form(rows[2], before[0], block).block

    def body(_: Any, rows: Rows, state: Array) -> tuple[Array, Array]:
        return ref.delta(*rows, state, block=size, at_once=False)

    return ps.backward(body, (), rows, before, up, size)[1:]


_delta = jax.custom_vjp(_primal, nondiff_argnums=(2, 3))
_delta.defvjp(_forward, _backward)


def delta(
    q: Float[Array, "T G K"],
    k: Float[Array, "T G K"],
    v: Float[Array, "T H V"],
    g: Float[Array, "T H"],
    beta: Float[Array, "T H"],
    state: Float[Array, "H K V"],
    *,
    block: int,
    interpret: bool = False,
) -> tuple[Float[Array, "T H V"], Float[Array, "H K V"]]:
    """See `jaxmem.kernels.delta`.

    Tiles have 32 rows at most; `block` says how many rows apart the states are that reverse mode
    keeps. `interpret`: run on any device, slowly, for tests.

    Raises:
      NotImplementedError: for types and sizes of a state that the kernels do not take.
    """
    ps.check((q, k, v, g, beta), state)
    decay, share, start = (x.astype(jnp.float32) for x in (g, beta, state))
    o, last = _delta((q, k, v, decay, share), start, block, interpret)
    return o, last.astype(state.dtype)

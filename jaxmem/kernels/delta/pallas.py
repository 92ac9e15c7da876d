"""The gated delta rule as Pallas (Triton) kernels, forward and backward.

The triangular systems do not depend on the state: the first kernel inverts those of all heads and
tiles at once. In the second a program owns some value channels of one head and walks the tiles of
rows in turn, a few products each.

Backwards the same systems, turned, give the cotangents of what is written, from the last tile to
the first and with the cotangent of the state alone. What the rows read needs the states: a second
kernel walks the blocks.
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
from jaxmem.typing import Array, Float

Rows = tuple[Array, Array, Array, Array, Array]
"""q, k, v, g and beta."""


def _inverse_kernel(tree: Any, out: Any, *more: Any, form: ps.Form):
    """Invert I + A of one tile: blocks of the diagonal are joined in pairs, 1, 2, 4 ... rows each.

    As stable as substitution. The product of I + (-A)^(2^i) is not: where keys repeat, powers of A
    hold binomial coefficients, 3e8 at 32 rows, for an inverse with entries of 1. The backward pass
    asks for A without beta and for the products of queries and keys, too.
    """
    q, k, g, beta = tree
    at = lax.iota(jnp.int32, form.rows)
    row = pl.program_id(1) * form.rows + at
    alike, scores = 0.0, 0.0
    for n in form.spans:
        key = ps.load(k, row, n)
        alike += form.dot(key, key, (1, 1))
        if more:
            scores += form.dot(ps.load(q, row, n), key, (1, 1))
    decay = ps.decays(ps.load_row(g, row)).between
    i, j = at[:, None], at[None, :]
    alike = jnp.where(i > j, alike * decay, 0.0)
    if more:
        more[0][...] = alike
        more[1][...] = scores * decay
    a = ps.load_row(beta, row)[:, None] * alike
    inverse = jnp.where(i == j, 1.0, 0.0)
    for bits in range(form.rows.bit_length() - 1):  # blocks of 2^bits rows
        corner = (i >> bits + 1 == j >> bits + 1) & (i >> bits > j >> bits)  # lower left of pairs
        below = jnp.where(corner, a, 0.0)
        if bits:
            below = form.dot(inverse, form.dot(below, inverse))
        inverse -= below
    out[...] = inverse


def _kernel(tree: Any, o: Any, last: Any, *kept: Any, form: ps.Form, scale: float):
    q, k, v, g, beta, inverse, start = tree
    p = pl.program_id(1) * form.columns + lax.iota(jnp.int32, form.columns)

    def body(i: Array, state: ps.Pieces) -> ps.Pieces:
        ps.keep(form, kept[:1], i, p, state)
        row = i * form.rows + lax.iota(jnp.int32, form.rows)
        scores, asked, held = 0.0, 0.0, 0.0
        for n, part in zip(form.spans, state, strict=True):
            query, key = ps.load(q, row, n), ps.load(k, row, n)
            scores += form.dot(query, key, (1, 1))
            asked += form.dot(query, part)
            held += form.dot(key, part)
        decay = ps.decays(ps.load_row(g, row))
        scores, grown = scores * decay.between, decay.grown[:, None]  # no more is held of it
        asked, held = grown * asked, grown * held
        wrong = ps.load(v, row, p).astype(jnp.float32) - held
        u = form.dot(inverse[i], ps.load_row(beta, row)[:, None] * wrong)
        ps.store(o, row, p, (asked + form.dot(scores, u)) * scale)
        if kept:
            ps.store(kept[1], row, p, u)
            # Again, not held since: one register more would spill (float32, sm_80).
            decay = ps.decays(ps.load_row(g, row))
        return ps.written(form, k, row, state, u, decay)

    state = lax.fori_loop(0, form.tiles, body, ps.load_state(form, start, p))
    ps.store_state(form, last, p, state)


def _back_kernel(tree: Any, *outs: Any, form: ps.Form, scale: float):
    """From the last tile to the first: what comes from inside of tiles and from later states.

    `dw` are cotangents of beta (v - S^T k), the right sides of the systems; `ds` and `dkk` of the
    products q k and k k of a tile.
    """
    q, k, g, beta, inverse, alike, scores, u, do, dlast = tree
    dw, dk, ds, dkk, dbeta, dcum, dstates = outs
    at = lax.iota(jnp.int32, form.rows)
    p = pl.program_id(1) * form.columns + lax.iota(jnp.int32, form.columns)

    def body(j: Array, up: ps.Pieces) -> ps.Pieces:
        i = form.tiles - 1 - j
        row = i * form.rows + at
        drawn = 0.0
        for n, part in zip(form.spans, up, strict=True):
            drawn += form.dot(ps.load(k, row, n), part)
        decay = ps.decays(ps.load_row(g, row))
        left, share = decay.left[:, None], ps.load_row(beta, row)
        out, wrote = ps.load(do, row, p).astype(jnp.float32) * scale, ps.load(u, row, p)
        du = form.dot(scores[i], out, (0, 0)) + left * drawn
        right = form.dot(inverse[i], du, (0, 0))
        ps.store(dw, row, p, right)
        dscores = form.dot(out, wrote, (1, 1))
        ps.store(ds, row, at, decay.between * dscores)
        dalike = jnp.where(at[:, None] > at[None, :], -form.dot(right, wrote, (1, 1)), 0.0)
        ps.store(dkk, row, at, share[:, None] * decay.between * dalike)
        dalike *= alike[i]
        ps.store_row(dbeta, row, jnp.sum(dalike, axis=1))
        within = ps.pull_decays(dscores * scores[i] + share[:, None] * dalike)
        ps.store_row(dcum, row, within - jnp.sum(left * wrote * drawn, axis=1))
        for n, part in zip(form.spans, up, strict=True):
            ps.store(dk, row, n, form.dot(wrote * left, part, (1, 1)))
        grown = decay.grown
        out, taken = out * grown[:, None], right * (grown * share)[:, None]
        up = tuple(
            decay.whole * part
            + form.dot(ps.load(q, row, n), out, (0, 0))
            - form.dot(ps.load(k, row, n), taken, (0, 0))
            for n, part in zip(form.spans, up, strict=True)
        )
        ps.keep(form, (dstates,), i, p, up)
        return up

    lax.fori_loop(0, form.tiles, body, ps.load_state(form, dlast, p))


def _read_kernel(tree: Any, *outs: Any, form: ps.Form, scale: float):
    """The tiles of one block in turn: what comes from reading the states before them."""
    q, k, g, beta, u, do, dw, before = tree
    dq, dk, dbeta, dcum = outs
    p = pl.program_id(1) * form.columns + lax.iota(jnp.int32, form.columns)
    which = pl.program_id(2)

    def body(i: Array, state: ps.Pieces) -> ps.Pieces:
        row = i * form.rows + lax.iota(jnp.int32, form.rows)
        decay = ps.decays(ps.load_row(g, row))
        grown, share = decay.grown[:, None], ps.load_row(beta, row)[:, None]
        out = ps.load(do, row, p).astype(jnp.float32) * (grown * scale)
        right = ps.load(dw, row, p) * -grown
        read = taken = jnp.zeros(form.rows, jnp.float32)
        for n, part in zip(form.spans, state, strict=True):
            dread, dtaken = form.dot(out, part, (1, 1)), form.dot(right, part, (1, 1))
            ps.store(dq, row, n, dread)
            ps.store(dk, row, n, share * dtaken)
            read += jnp.sum(ps.load(q, row, n) * dread, axis=1)
            taken += jnp.sum(ps.load(k, row, n) * dtaken, axis=1)
        ps.store_row(dcum, row, read + ps.load_row(beta, row) * taken)
        ps.store_row(dbeta, row, taken)
        return ps.written(form, k, row, state, ps.load(u, row, p), decay)

    end = jnp.minimum((which + 1) * form.every, form.tiles)
    lax.fori_loop(which * form.every, end, body, ps.load_state(form, before, p, which))


def _form(v: Array, state: Array, block: int, interpret: bool) -> ps.Form:
    return ps.form_of(v.shape[0], state.shape[1], state.shape[2], block, interpret)


def _operands(rows: Rows) -> tuple[tuple[Array, ...], tuple[pl.BlockSpec, ...]]:
    """Return q, k, g and beta as the kernels take them, and their specs."""
    q, k, v, g, beta = rows
    g, beta = g.T, beta.T  # rows of a head side by side
    one, keys = pt.of_owner(g), ps.of_head(k, v.shape[1] // k.shape[1])
    return (q, k, g, beta), (keys, keys, one, one)


def _inverse(form: ps.Form, rows: Rows, interpret: bool, *, more: bool) -> list[Array]:
    """Return the inverted systems [H, tiles, Q, Q]; with `more`, A without beta and scores, too."""
    size, count = (rows[2].shape[1], form.tiles, form.rows, form.rows), 3 if more else 1
    given, specs = _operands(rows)
    return ps.call(
        partial(_inverse_kernel, form=form),
        given,
        specs,
        name="delta_inverse",
        grid=size[:2],
        out_shape=[jax.ShapeDtypeStruct(size, jnp.float32)] * count,
        out_specs=[pl.BlockSpec((None, None, *size[2:]), lambda h, i: (h, i, 0, 0))] * count,
        interpret=interpret,
    )


def _run(rows: Rows, state: Array, block: int, interpret: bool, *, keep: bool) -> list[Array]:
    """Return o, the last state and, with `keep`, states before every block and what rows write."""
    v, form = rows[2], _form(rows[2], state, block, interpret)
    (inverse,), whole = _inverse(form, rows, interpret, more=False), pt.of_owner(state)
    (given, specs), heads = _operands(rows), ps.of_head(v)
    outs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, state)]
    if keep:
        outs += ps.kept(form, state), jax.ShapeDtypeStruct(v.shape, jnp.float32)
    return ps.call(
        partial(_kernel, form=form, scale=rows[1].shape[2] ** -0.5),
        (*given[:2], v, *given[2:], inverse, state),
        (*specs[:2], heads, *specs[2:], pt.of_owner(inverse), whole),
        name="delta",
        grid=(v.shape[1], pl.cdiv(v.shape[2], form.columns)),
        out_shape=outs,
        out_specs=[heads, whole, *(ps.of_head(x) for x in outs[2:])],
        interpret=interpret,
    )


def _primal(rows: Rows, state: Array, block: int, interpret: bool):
    o, last = _run(rows, state, block, interpret, keep=False)
    return o, last


def _forward(rows: Rows, state: Array, block: int, interpret: bool):
    o, last, before, u = _run(rows, state, block, interpret, keep=True)
    return (o, last), (rows, u, before)


def _backward(block: int, interpret: bool, kept: Any, up: tuple[Array, Array]):
    rows, u, before = kept
    (q, k, v, _, beta), (do, dlast) = rows, up
    form, groups = _form(v, dlast, block, interpret), k.shape[1]
    systems = _inverse(form, rows, interpret, more=True)
    (given, specs), heads, states = _operands(rows), ps.of_head(v), ps.of_head(before)
    grid = v.shape[1], pl.cdiv(v.shape[2], form.columns)
    keys, scores, numbers = (ps.own(form, v, *n) for n in ((k.shape[2],), (form.rows,), ()))
    shared = keys, scores, scores, numbers, numbers
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    dw, dk, ds, dkk, dbeta, dcum, dstates = ps.call(
        partial(_back_kernel, form=form, scale=k.shape[2] ** -0.5),
        (*given, *systems, u, do, dlast),
        (*specs, *map(pt.of_owner, systems), heads, heads, pt.of_owner(dlast)),
        name="delta_back",
        grid=grid,
        out_shape=[like(u), *shared, like(before)],
        out_specs=[heads, *map(ps.of_program, shared), states],
        interpret=interpret,
    )
    shared = keys, keys, numbers, numbers
    dq, dk_read, dbeta_read, dcum_read = ps.call(
        partial(_read_kernel, form=form, scale=k.shape[2] ** -0.5),
        (*given, u, do, dw, before),
        (*specs, heads, heads, heads, states),
        name="delta_read",
        grid=(*grid, before.shape[0]),
        out_shape=shared,
        out_specs=[*map(ps.of_program, shared)],
        interpret=interpret,
    )
    dq, dk, ds, dkk = (ps.of_groups(x, groups) for x in (dq, dk + dk_read, ds, dkk))
    down, across = "tqgk,tqgn->tkgn", "tqgk,tkgn->tqgn"
    dq += ps.tile_product(across, form, ds, k)
    dk += ps.tile_product(down, form, ds, q)
    dk += ps.tile_product(down, form, dkk, k) + ps.tile_product(across, form, dkk, k)
    dlog = ps.log_cotangents(form, before, dstates, ps.of_rows(dcum + dcum_read))
    dbeta = jnp.sum(dw * v, axis=-1) + ps.of_rows(dbeta + dbeta_read)
    dv = (beta[..., None] * dw).astype(v.dtype)
    drows = dq.astype(q.dtype), dk.astype(k.dtype), dv, dlog, dbeta
    return drows, dstates[0]


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

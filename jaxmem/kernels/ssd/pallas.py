"""The recurrence of Mamba-2 as Pallas (Triton) kernels, forward and backward.

A program owns some channels of one head and walks the tiles of rows in turn. The other form, all
blocks at once with a scan over their states, writes and reads every state and has three passes;
with a head and 32 channels to a program, the models' heads fill a GPU without it.

Backwards, the state's cotangent follows the same recurrence from the last row on, written along c
and read along b: it gives the cotangents of x, dt and b. That of c needs the states, which a second
kernel walks block by block.
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

Rows = tuple[Array, Array, Array, Array]
"""x, dt, b and c."""
WARPS = 4
"""Of the kernel that keeps nothing: half of what the others take, without spilling, and on an H200
1.7 times as fast (experiments/gpu)."""


def _kernel(tree: Any, y: Any, last: Any, *before: Any, form: ps.Form):
    x, dt, rate, b, c, start = tree
    rate = rate[0]
    p = pl.program_id(1) * form.columns + lax.iota(jnp.int32, form.columns)

    def body(i: Array, state: ps.Pieces) -> ps.Pieces:
        ps.keep(form, before, i, p, state)
        row = i * form.rows + lax.iota(jnp.int32, form.rows)
        scores, asked = 0.0, 0.0
        for n, part in zip(form.spans, state, strict=True):
            read = ps.load(c, row, n)
            scores += form.dot(read, ps.load(b, row, n), (1, 1))
            asked += form.dot(read, part)
        step = ps.load_row(dt, row)
        decay = ps.decays(step * rate)
        u = ps.load(x, row, p).astype(jnp.float32) * step[:, None]
        ps.store(y, row, p, decay.grown[:, None] * asked + form.dot(scores * decay.between, u))
        return ps.written(form, b, row, state, u, decay)

    state = lax.fori_loop(0, form.tiles, body, ps.load_state(form, start, p))
    ps.store_state(form, last, p, state)


def _back_kernel(tree: Any, *outs: Any, form: ps.Form):
    """From the last tile to the first: what comes from the scores and from later states.

    `ds` are cotangents of the products c b of a tile; `ddt` leaves out those through the decays.
    """
    x, dt, rate, b, c, dy, dlast = tree
    dx, db, ds, ddt, dcum, dstates = outs
    rate = rate[0]
    at = lax.iota(jnp.int32, form.rows)
    p = pl.program_id(1) * form.columns + lax.iota(jnp.int32, form.columns)

    def body(j: Array, up: ps.Pieces) -> ps.Pieces:
        i = form.tiles - 1 - j
        row = i * form.rows + at
        scores, drawn = 0.0, 0.0
        for n, part in zip(form.spans, up, strict=True):
            along = ps.load(b, row, n)
            scores += form.dot(ps.load(c, row, n), along, (1, 1))
            drawn += form.dot(along, part)
        step = ps.load_row(dt, row)
        decay = ps.decays(step * rate)
        left = decay.left[:, None]
        value, out = (ps.load(v, row, p).astype(jnp.float32) for v in (x, dy))
        du = form.dot(scores * decay.between, out, (0, 0)) + left * drawn
        ps.store(dx, row, p, step[:, None] * du)
        ps.store_row(ddt, row, jnp.sum(value * du, axis=1))
        u = value * step[:, None]
        dscores = form.dot(out, u, (1, 1)) * decay.between
        ps.store(ds, row, at, dscores)
        within = ps.pull_decays(dscores * scores)
        ps.store_row(dcum, row, within - jnp.sum(u * left * drawn, axis=1))
        for n, part in zip(form.spans, up, strict=True):
            ps.store(db, row, n, form.dot(u * left, part, (1, 1)))
        out *= decay.grown[:, None]
        up = tuple(
            decay.whole * part + form.dot(ps.load(c, row, n), out, (0, 0))
            for n, part in zip(form.spans, up, strict=True)
        )
        ps.keep(form, (dstates,), i, p, up)
        return up

    lax.fori_loop(0, form.tiles, body, ps.load_state(form, dlast, p))


def _read_kernel(tree: Any, dc: Any, dcum: Any, *, form: ps.Form):
    """The tiles of one block in turn: what comes from reading the states before them."""
    x, dt, rate, b, c, dy, before = tree
    rate = rate[0]
    p = pl.program_id(1) * form.columns + lax.iota(jnp.int32, form.columns)
    k = pl.program_id(2)

    def body(i: Array, state: ps.Pieces) -> ps.Pieces:
        row = i * form.rows + lax.iota(jnp.int32, form.rows)
        step = ps.load_row(dt, row)
        decay = ps.decays(step * rate)
        out = ps.load(dy, row, p).astype(jnp.float32) * decay.grown[:, None]
        sums = jnp.zeros(form.rows, jnp.float32)
        for n, part in zip(form.spans, state, strict=True):
            dread = form.dot(out, part, (1, 1))
            ps.store(dc, row, n, dread)
            sums += jnp.sum(ps.load(c, row, n) * dread, axis=1)
        ps.store_row(dcum, row, sums)
        u = ps.load(x, row, p).astype(jnp.float32) * step[:, None]
        return ps.written(form, b, row, state, u, decay)

    end = jnp.minimum((k + 1) * form.every, form.tiles)
    lax.fori_loop(k * form.every, end, body, ps.load_state(form, before, p, k))


def _form(x: Array, state: Array, block: int, interpret: bool) -> ps.Form:
    return ps.form_of(x.shape[0], state.shape[1], state.shape[2], block, interpret)


def _operands(rows: Rows, a: Array) -> tuple[tuple[Array, ...], tuple[pl.BlockSpec, ...]]:
    """Return x, dt, a, b and c as the kernels take them, and their specs."""
    x, dt, b, c = rows
    dt = dt.T  # rows of a head side by side
    one, along = pl.BlockSpec((1,), lambda h, *_: (h,)), ps.of_head(b, x.shape[1] // b.shape[1])
    return (x, dt, a, b, c), (ps.of_head(x), pt.of_owner(dt), one, along, along)


def _run(
    rows: Rows, a: Array, state: Array, block: int, interpret: bool, *, keep: bool
) -> list[Array]:
    """Return y, the last state and, with `keep`, the states before every block."""
    x, form = rows[0], _form(rows[0], state, block, interpret)
    (given, specs), whole = _operands(rows, a), pt.of_owner(state)
    outs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, state)]
    if keep:
        outs.append(ps.kept(form, state))
    return ps.call(
        partial(_kernel, form=form),
        (*given, state),
        (*specs, whole),
        name="ssd",
        warps=ps.WARPS if keep else WARPS,
        grid=(x.shape[1], pl.cdiv(x.shape[2], form.columns)),
        out_shape=outs,
        out_specs=[ps.of_head(x), whole, *(ps.of_head(v) for v in outs[2:])],
        interpret=interpret,
    )


def _primal(rows: Rows, a: Array, state: Array, block: int, interpret: bool):
    y, last = _run(rows, a, state, block, interpret, keep=False)
    return y, last


def _forward(rows: Rows, a: Array, state: Array, block: int, interpret: bool):
    y, last, before = _run(rows, a, state, block, interpret, keep=True)
    return (y, last), (rows, a, before)


def _backward(block: int, interpret: bool, kept: Any, up: tuple[Array, Array]):
    rows, a, before = kept
    (x, dt, b, c), (dy, dlast) = rows, up
    form, groups = _form(x, dlast, block, interpret), b.shape[1]
    (given, specs), heads, states = _operands(rows, a), ps.of_head(x), ps.of_head(before)
    grid = x.shape[1], pl.cdiv(x.shape[2], form.columns)
    like = lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype)
    along, numbers = ps.own(form, x, b.shape[2]), ps.own(form, x)
    shared = along, ps.own(form, x, form.rows), numbers, numbers
    dx, db, ds, ddt, dcum, dstates = ps.call(
        partial(_back_kernel, form=form),
        (*given, dy, dlast),
        (*specs, heads, pt.of_owner(dlast)),
        name="ssd_back",
        grid=grid,
        out_shape=[like(x), *shared, like(before)],
        out_specs=[heads, *map(ps.of_program, shared), states],
        interpret=interpret,
    )
    dc, more = ps.call(
        partial(_read_kernel, form=form),
        (*given, dy, before),
        (*specs, heads, states),
        name="ssd_read",
        grid=(*grid, before.shape[0]),
        out_shape=[along, numbers],
        out_specs=[*map(ps.of_program, (along, numbers))],
        interpret=interpret,
    )
    ds, db, dc = (ps.of_groups(v, groups) for v in (ds, db, dc))
    db += ps.tile_product("tqgk,tqgn->tkgn", form, ds, c)
    dc += ps.tile_product("tqgk,tkgn->tqgn", form, ds, b)
    dlog = ps.log_cotangents(form, before, dstates, ps.of_rows(dcum + more))
    drows = dx, ps.of_rows(ddt) + dlog * a[None], db.astype(b.dtype), dc.astype(c.dtype)
    return drows, jnp.sum(dlog * dt, axis=0), dstates[0]


_ssd = jax.custom_vjp(_primal, nondiff_argnums=(3, 4))
_ssd.defvjp(_forward, _backward)


def ssd(
    x: Float[Array, "T H P"],
    dt: Float[Array, "T H"],
    a: Float[Array, "H"],
    b: Float[Array, "T G N"],
    c: Float[Array, "T G N"],
    state: Float[Array, "H P N"],
    *,
    block: int,
    interpret: bool = False,
) -> tuple[Float[Array, "T H P"], Float[Array, "H P N"]]:
    """See `jaxmem.kernels.ssd`.

    Tiles have 32 rows at most; `block` says how many rows apart the states are that reverse mode
    keeps. `interpret`: run on any device, slowly, for tests.

    Raises:
      NotImplementedError: for types and sizes of a state that the kernel does not take.
    """
    ps.check((x, dt, a, b, c), state)
    steps, rates, start = (v.astype(jnp.float32) for v in (dt, a, state))
    # Channels side by side, as they are in x.
    y, last = _ssd((x, steps, b, c), rates, start.swapaxes(1, 2), block, interpret)
    return y, last.swapaxes(1, 2).astype(state.dtype)

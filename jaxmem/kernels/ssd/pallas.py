"""The recurrence of Mamba-2 as one Pallas (Triton) kernel, and its gradient by recomputation.

A program owns some channels of one head and walks the tiles of rows in turn. The other form, all
blocks at once with a scan over their states, writes and reads every state and has three passes;
with a head and 32 channels to a program, the models' heads fill a GPU without it.
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
from jaxmem.kernels.ssd import ref
from jaxmem.typing import Array, Float

Rows = tuple[Array, Array, Array, Array]
"""x, dt, b and c."""


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
            scores += ps.dot(read, ps.load(b, row, n), (1, 1))
            asked += ps.dot(read, part)
        step = ps.load_row(dt, row)
        cum, total, decay = ps.decays(step * rate)
        u = ps.load(x, row, p).astype(jnp.float32) * step[:, None]
        ps.store(y, row, p, jnp.exp(cum)[:, None] * asked + ps.dot(scores * decay, u))
        return ps.written(form, b, row, state, u, cum, total)

    state = lax.fori_loop(0, form.tiles, body, ps.load_state(form, start, p))
    ps.store_state(form, last, p, state)


def _form(x: Array, state: Array, block: int) -> ps.Form:
    return ps.form_of(x.shape[0], state.shape[1], state.shape[2], block)


def _run(
    rows: Rows, a: Array, state: Array, block: int, interpret: bool, *, keep: bool
) -> list[Array]:
    """Return y, the last state and, with `keep`, the states before every block."""
    x, dt, b, c = rows
    form, heads = _form(x, state, block), x.shape[1]
    shared = heads // b.shape[1]
    dt = dt.T  # rows of a head side by side
    given = (x, dt, a, b, c, state)
    one, whole = pl.BlockSpec((1,), lambda h, *_: (h,)), pt.of_owner(state)
    specs = ps.of_head(x), pt.of_owner(dt), one, *[ps.of_head(b, shared)] * 2, whole
    outs = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in (x, state)]
    if keep:
        outs.append(ps.kept(form, state))
    return pt.call(
        partial(_kernel, form=form),
        given,
        specs,
        name="ssd",
        grid=(heads, pl.cdiv(x.shape[2], form.columns)),
        out_shape=outs,
        out_specs=[ps.of_head(x), whole, *(ps.of_head(v) for v in outs[2:])],
        warps=ps.WARPS,
        stages=1,
        interpret=interpret,
    )


def _primal(rows: Rows, a: Array, state: Array, block: int, interpret: bool):
    y, last = _run(rows, a, state, block, interpret, keep=False)
    return y, last


def _forward(rows: Rows, a: Array, state: Array, block: int, interpret: bool):
    y, last, before = _run(rows, a, state, block, interpret, keep=True)
    return (y, last), (rows, a, before)


def _backward(block: int, interpret: bool, kept: Any, up: tuple[Array, Array]):
    del interpret
    rows, a, before = kept
    size = _form(rows[0], before[0], block).block

    def body(a: Array, rows: Rows, state: Array) -> tuple[Array, Array]:
        x, dt, b, c = rows
        y, state = ref.ssd(x, dt, a, b, c, state.swapaxes(1, 2), block=size, at_once=False)
        return y, state.swapaxes(1, 2)

    da, drows, dstate = ps.backward(body, a, rows, before, up, size)
    return drows, da, dstate


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

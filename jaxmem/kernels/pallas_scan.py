"""What the Pallas kernels that carry a state share: tiles of rows, the state, and cotangents.

A program owns some columns of one head's state and walks tiles of rows, the state in registers.
The backward pass has two kernels: one walks all tiles from the last to the first with the cotangent
of the state; the other walks each block forward from the state that was kept before it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kernels.blocks import in_blocks
from jaxmem.kernels.pallas_tiles import power_of_two
from jaxmem.typing import Array, Float

MOST = 128  # largest side of a state that was compiled
ROWS = 32  # of a tile
COLUMNS = 32  # of the state, in a program
PIECE = 32  # entries of the state's other axis that a product takes at a time
WARPS = 8
call = partial(pt.call, warps=WARPS, stages=1)
# One product of float32 holds its operands in registers. In tiles of these sizes, with keys loaded
# piece by piece just before each use and none ahead, nothing spills (experiments/kernels_aot).

Pieces = tuple[Array, ...]
"""A program's columns of the state, [across, columns] in pieces of `PIECE` rows."""

PRODUCTS = lax.Precision.HIGHEST
"""How float32 is multiplied by float32 on a GPU."""
FORGOTTEN = -128.0
"""Log decays from here on are 0 as a decay: float32 ends at exp(-104)."""
STEP = 2.0**-10
"""Sums of 32 multiples of it down to `FORGOTTEN` are exact in float32."""


class Form(NamedTuple):
    """Static sizes of a walk."""

    count: int  # T
    rows: int  # of a tile
    across: int  # the state's other axis, padded
    columns: int  # of the state, in a program
    every: int  # tiles between two states that are kept
    interpret: bool = False

    @property
    def tiles(self) -> int:
        """Tiles of rows."""
        return pl.cdiv(self.count, self.rows)

    @property
    def spans(self) -> list[Array]:
        """Entries of the state's other axis that are in a piece."""
        width = min(PIECE, self.across)
        return [at + lax.iota(jnp.int32, width) for at in range(0, self.across, width)]

    @property
    def block(self) -> int:
        """Rows between two states that are kept."""
        return self.rows * self.every

    def dot(self, a: Array, b: Array, over: tuple[int, int] = (1, 0)) -> Array:
        """Return the product over an axis of each."""
        return dot(a, b, over, self.interpret)


def form_of(count: int, across: int, columns: int, block: int, interpret: bool) -> Form:
    """Return the sizes for T rows and a state [across, columns]; every `block` rows one is kept."""
    rows = min(ROWS, 1 << max(block.bit_length() - 1, 4), power_of_two(count))
    every = max(1, min(block // rows, pl.cdiv(count, rows)))
    columns = min(COLUMNS, power_of_two(columns))
    return Form(count, rows, power_of_two(across), columns, every, interpret)


def check(arrays: tuple[Array, ...], state: Array) -> None:
    """Raise NotImplementedError for what no kernel does."""
    for x in (*arrays, state):
        if x.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
            raise NotImplementedError(f"kernels take 16 and 32-bit floats, got {x.dtype}.")
    if max(state.shape[1:]) > MOST:
        raise NotImplementedError(
            f"kernels take states of at most {MOST} by {MOST} a head, got {state.shape[1:]}."
        )
    if not arrays[0].shape[0]:
        raise NotImplementedError("kernels take at least one row.")


def dot(a: Array, b: Array, over: tuple[int, int], interpret: bool) -> Array:
    """Return the product over an axis of each, exact to float32."""
    if a.dtype != b.dtype or a.dtype == jnp.float32:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    exact = lax.Precision.HIGHEST if interpret else PRODUCTS
    return lax.dot_general(
        a,
        b,
        (((over[0],), (over[1],)), ((), ())),
        precision=exact if a.dtype == jnp.float32 else lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def load(ref: Any, rows: Array, columns: Array, *which: Array) -> Array:
    """Return entries [rows, columns] of a matrix, or of the one that `which` names, 0 outside."""
    i, j = rows[:, None], columns[None, :]
    inside = (i < ref.shape[-2]) & (j < ref.shape[-1])
    return pltriton.load(ref.at[*which, i, j], mask=inside, other=jnp.zeros((), ref.dtype))


def load_row(ref: Any, rows: Array) -> Float[Array, "Q"]:
    """Return entries of a vector, 0 after its end."""
    return pltriton.load(ref.at[rows], mask=rows < ref.shape[0], other=0.0)


def store_row(ref: Any, rows: Array, x: Float[Array, "Q"]) -> None:
    """Write entries of a vector, none after its end."""
    pltriton.store(ref.at[rows], x, mask=rows < ref.shape[0])


def store(ref: Any, rows: Array, columns: Array, x: Array, *which: Array) -> None:
    """Write what lies inside of a matrix, or of the one that `which` names."""
    i, j = rows[:, None], columns[None, :]
    inside = (i < ref.shape[-2]) & (j < ref.shape[-1])
    pltriton.store(ref.at[*which, i, j], x.astype(ref.dtype), mask=inside)


class Decay(NamedTuple):
    """Decays within a tile of Q rows, of the sums c of its log decays."""

    grown: Float[Array, "Q"]  # exp(c_i), from before the tile to a row
    left: Float[Array, "Q"]  # exp(c_Q - c_i), from a row to the end
    whole: Float[Array, ""]  # exp(c_Q)
    between: Float[Array, "Q Q"]  # exp(c_i - c_j) for j <= i, else 0


def decays(log: Float[Array, "Q"]) -> Decay:
    """Return the decays of a tile from the logs of those of its rows, which are not positive.

    Sums of thousands have errors of 1e-4, which differences keep, and a GPU, which adds in pairs,
    does not make them alike in neighbours. So the sums of multiples of `STEP`, which are exact, and
    those of the rest, which are small, are taken apart, and so are their differences.
    """
    at = lax.iota(jnp.int32, log.shape[0])
    log = jnp.maximum(log, FORGOTTEN)
    coarse = STEP * jnp.floor(log / STEP)
    sums = jnp.cumsum(coarse), jnp.cumsum(log - coarse)
    between = sum(c[:, None] - c[None, :] for c in sums)
    # Masked before exp, which overflows above the diagonal.
    between = jnp.exp(jnp.where(at[:, None] >= at[None, :], between, -jnp.inf))
    grown, last = jnp.exp(sums[0] + sums[1]), at == log.shape[0] - 1
    rest = [jnp.sum(c) for c in (coarse, log - coarse)]
    left = jnp.exp(rest[0] - sums[0] + (rest[1] - sums[1]))
    return Decay(grown, left, jnp.sum(jnp.where(last, grown, 0.0)), between)


def pull_decays(x: Float[Array, "Q Q"]) -> Float[Array, "Q"]:
    """Return the cotangents of sums of log decays: x holds decays times their cotangents."""
    at = lax.iota(jnp.int32, x.shape[0])
    # The diagonal, which has no decay, would cancel only up to rounding.
    x = jnp.where(at[:, None] == at[None, :], 0.0, x)
    return jnp.sum(x, axis=1) - jnp.sum(x, axis=0)


def load_state(form: Form, ref: Any, columns: Array, *which: Array) -> Pieces:
    """Return a program's columns of the state."""
    return tuple(load(ref, n, columns, *which) for n in form.spans)


def store_state(form: Form, ref: Any, columns: Array, state: Pieces, *which: Array) -> None:
    """Write a program's columns of the state."""
    for n, part in zip(form.spans, state, strict=True):
        store(ref, n, columns, part, *which)


def keep(form: Form, before: Any, i: Array, columns: Array, state: Pieces) -> None:
    """Write the state before tile i, where a block begins and there is an output for it."""
    if before:

        @pl.when(lax.rem(i, jnp.int32(form.every)) == 0)
        def _():
            which = lax.div(i, jnp.int32(form.every))
            store_state(form, before[0], columns, state, which)


def written(form: Form, along: Any, row: Array, state: Pieces, u: Array, decay: Decay) -> Pieces:
    """Return the state after a tile of which u is written along the rows of `along`."""
    u *= decay.left[:, None]
    return tuple(
        decay.whole * part + form.dot(load(along, row, n), u, (0, 0))
        for n, part in zip(form.spans, state, strict=True)
    )


def of_head(x: Any, shared: int = 1) -> pl.BlockSpec:
    """Return the spec of [T, heads, ...] of which a program sees its head's (grid axis 0)."""
    shape = (x.shape[0], None, *x.shape[2:])
    return pl.BlockSpec(shape, lambda h, *_: (0, h // shared, *(0,) * (x.ndim - 2)))


def kept(form: Form, state: Array) -> jax.ShapeDtypeStruct:
    """Return the shape of the states before every block, [blocks, *state]."""
    return jax.ShapeDtypeStruct((pl.cdiv(form.tiles, form.every), *state.shape), jnp.float32)


def own(form: Form, x: Array, *shape: int) -> jax.ShapeDtypeStruct:
    """Return the shape of what every program says of the rows of x [T, heads, columns]."""
    parts = pl.cdiv(x.shape[2], form.columns)
    return jax.ShapeDtypeStruct((parts, x.shape[1], x.shape[0], *shape), jnp.float32)


def of_program(x: Any) -> pl.BlockSpec:
    """Return the spec of such an array (grid axes: head, columns)."""
    return pl.BlockSpec((None, None, *x.shape[2:]), lambda h, p, *_: (p, h, *(0,) * (x.ndim - 2)))


def of_rows(x: Float[Array, "parts H T"]) -> Float[Array, "T H"]:
    """Return numbers of rows, of all programs together."""
    return jnp.sum(x, axis=0).T


def of_groups(x: Float[Array, "parts H T N"], groups: int) -> Float[Array, "T G N"]:
    """Return rows that heads share, of all programs of a group together."""
    x = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    return jnp.sum(x, axis=(0, 2)).swapaxes(0, 1)


def tile_product(
    how: str, form: Form, scores: Float[Array, "T G Q"], rows: Float[Array, "T G N"]
) -> Float[Array, "T G N"]:
    """Return products of scores and rows of the same tile, by a subscript; exact to float32."""
    given = in_blocks((scores, rows.astype(jnp.float32)), form.rows)
    out = jnp.einsum(how, *given, precision=lax.Precision.HIGHEST)
    return out.reshape(-1, *rows.shape[1:])[: form.count]


def log_cotangents(
    form: Form,
    before: Float[Array, "blocks H N P"],
    up: Float[Array, "blocks H N P"],
    dcum: Float[Array, "T H"],
) -> Float[Array, "T H"]:
    """Return the cotangents of log decays.

    To scale the state before a row is to scale what later rows read and, inversely, what they
    write. So a log decay's cotangent is the product of that state and its cotangent, and from row
    to row it falls by that of the cumulative sum.

    Args:
      form: sizes of the walk.
      before: states before every block.
      up: their cotangents.
      dcum: cotangents of the sums of log decays up to each row.
    """
    blocks = in_blocks(dcum, form.block)
    first = jnp.sum(before * up, axis=(2, 3))[:, None]
    return (first - jnp.cumsum(blocks, axis=1) + blocks).reshape(-1, dcum.shape[1])[: form.count]

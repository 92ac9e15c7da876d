"""What the Pallas kernels of attention and of its column sums share: their operands.

The layout follows what Pallas Triton can do: every value inside a kernel has sides that are powers
of two, nothing is sliced but through its ref, and every load that may reach past an array's end is
masked by hand. Queries and outputs are padded to whole tiles outside the kernel (they are folded
there anyway); keys, values and masks are read where they lie and never copied.

A kernel has C owners of rows. For attention these are the G KV heads, with the queries of the R
heads that share one folded into rows [C, Q R, D]; for column sums per query head they are the H
heads. In the joint form there is one owner whose logits are sums over all KV heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from jaxmem.kernels.segment import Segment
from jaxmem.kernels.tiles import Tile
from jaxmem.rope import Rope, angles
from jaxmem.typing import Array, Float, Int

LOG2E = 1.4426950408889634
LOWEST = -1e30  # stands for -inf where a difference of two must not be NaN
FAR = 2**30  # beyond any key index


def power_of_two(n: int, least: int = 16) -> int:
    """Return the smallest power of two that is >= n and >= `least`.

    Triton's matrix products have no side below 16.
    """
    return max(least, 1 << max(n - 1, 0).bit_length())


@dataclass(frozen=True)
class Form:
    """Static sizes of a kernel over logits."""

    rows: int  # folded rows of an owner, without padding
    owners: int  # C
    groups: int  # G
    dim: int  # D
    tile: Tile
    joint: bool = False
    softcap: float | None = None  # of logits in natural units

    @property
    def half(self) -> int:
        """Channel pairs of a head."""
        return self.dim // 2

    @property
    def wide(self) -> int:
        """Width of the tile that holds half a head."""
        return power_of_two(self.half)

    @property
    def parts(self) -> int:
        """Heads whose logits are summed."""
        return self.groups if self.joint else 1

    @property
    def row_blocks(self) -> int:
        """Tiles of rows of one owner."""
        return pl.cdiv(self.rows, self.tile.rows)

    @property
    def padded(self) -> int:
        """Rows of one owner in whole tiles."""
        return self.row_blocks * self.tile.rows

    @property
    def to_log2(self) -> float:
        """Factor from q . k to logits in units of log 2."""
        return self.dim**-0.5 * LOG2E


def stages(form: Form) -> int:
    """Return how many blocks a loop loads ahead: 1 where many heads fill the shared memory."""
    return 1 if form.parts > 4 else 2


class Part(NamedTuple):
    """What a kernel reads of a segment: arrays, their block specs, or refs to them."""

    k: Any  # [N, G D]
    valid: Any  # [Gm, N] int8
    v: Any | None  # [N, G D]
    cos: Any | None  # [N, Gm D/2] float32; None: the keys are already rotated
    sin: Any | None
    last: Any | None  # [padded rows] int32
    first: Any | None
    bias: Any | None  # [Gm, N] float32, in units of log 2
    until: Any | None  # [Gm, N] int32
    row: Any | None  # [padded rows] int32


def check(q: Array, segments: Sequence[Segment]) -> None:
    """Raise NotImplementedError for what no kernel does."""
    known = (jnp.float32, jnp.bfloat16, jnp.float16)
    for x in (q, *(s.k for s in segments), *(s.v for s in segments)):
        if x.dtype not in known:
            raise NotImplementedError(f"kernels take 16 and 32-bit floats, got {x.dtype}.")
    if q.shape[-1] > 128:
        raise NotImplementedError(f"kernels take heads of at most 128, got {q.shape[-1]}.")


def fold(x: Array, owners: int) -> Array:
    """Return rows of owners, [C, Q heads/C, ...], of x [Q, heads, ...]; queries are outermost."""
    rows, heads, *rest = x.shape
    x = jnp.moveaxis(x.reshape(rows, owners, heads // owners, *rest), 1, 0)
    return x.reshape(owners, rows * (heads // owners), *rest)


def unfold(x: Array, rows: int, heads: int) -> Array:
    """Return x [C, padded rows, ...] as [Q, heads, ...]."""
    owners, _, *rest = x.shape
    x = x[:, : rows * heads // owners].reshape(owners, rows, heads // owners, *rest)
    return jnp.moveaxis(x, 0, 1).reshape(rows, heads, *rest)


def pad(x: Array, axis: int, size: int, value: float = 0) -> Array:
    """Return x with `value` behind its end, so that the axis has that size."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, widths, constant_values=value)


def query_rows(q: Float[Array, "Q H D"], form: Form) -> Float[Array, "C M F"]:
    """Return padded rows of the owners; each half of each head is `form.wide` columns."""
    x = q[:, None] if form.joint else q[:, :, None]  # [Q, heads, parts, D]
    x = fold(x, form.owners).reshape(form.owners, form.rows, form.parts, 2, form.half)
    x = pad(pad(x, 4, form.wide), 1, form.padded)
    return x.reshape(form.owners, form.padded, form.parts * 2 * form.wide)


def part_of(segment: Segment, rope: Rope, form: Form, *, values: bool) -> Part:
    """Return the operands of a segment; its window is written into `first`."""
    n = segment.valid.shape[0]
    cos = sin = None
    if segment.pos is not None:
        angle = angles(rope, segment.pos).reshape(n, -1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)

    def rows(x: Array | None, value: int) -> Array | None:
        if x is None:
            return None
        x = jnp.repeat(x.astype(jnp.int32), form.rows // x.shape[0])
        return pad(x, 0, form.padded, value)

    bias = segment.bias
    if bias is not None and form.joint:
        bias = jnp.mean(bias, axis=1, keepdims=True)
    return Part(
        k=segment.k.reshape(n, -1),
        valid=segment.valid.T.astype(jnp.int8),
        v=segment.v.reshape(n, -1) if values else None,
        cos=cos,
        sin=sin,
        last=rows(segment.last, -1),
        first=rows(segment.first, FAR),
        bias=None if bias is None else bias.T.astype(jnp.float32) * LOG2E,
        until=None if segment.until is None else segment.until.T.astype(jnp.int32),
        row=rows(segment.row, FAR),
    )


def whole(x: Array) -> pl.BlockSpec:
    """Return the spec of an operand that every program sees as a whole."""
    return pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)


def of_owner(x: Array) -> pl.BlockSpec:
    """Return the spec of [C, ...] of which a program sees its owner's part (grid axis 0)."""
    return pl.BlockSpec((None, *x.shape[1:]), lambda c, *_: (c, *(0,) * (x.ndim - 1)))


def part_specs(part: Part, form: Form) -> Part:
    """Return the block specs of a segment's operands."""
    shared = max(form.owners // form.groups, 1)  # owners that share a KV head

    def columns(x: Array | None, width: int) -> pl.BlockSpec | None:
        """Columns of the owner's KV head, or all of them where there is only one set."""
        if x is None:
            return None
        if form.joint or x.shape[1] == width:
            return whole(x)
        return pl.BlockSpec((x.shape[0], width), lambda c, *_: (0, c // shared))

    def keys(x: Array | None) -> pl.BlockSpec | None:
        """A row of numbers of keys: the owner's KV head's, or that of all."""
        if x is None:
            return None
        own = lambda c, *_: (0 if x.shape[0] == 1 else c // shared, 0)
        return pl.BlockSpec((None, x.shape[1]), own)

    return Part(
        k=columns(part.k, form.dim),
        valid=keys(part.valid),
        v=columns(part.v, form.dim),
        cos=columns(part.cos, form.half),
        sin=columns(part.sin, form.half),
        last=None if part.last is None else whole(part.last),
        first=None if part.first is None else whole(part.first),
        bias=keys(part.bias),
        until=keys(part.until),
        row=None if part.row is None else whole(part.row),
    )


def call(
    kernel: Any,
    tree: Any,
    specs: Any,
    *,
    name: str,
    grid: Any,
    out_shape: Any,
    out_specs: Any,
    warps: Any,
    interpret: Any,
    stages: Any = 2,
):
    """Run `kernel(tree of refs, *output refs)` over the grid; None stands for what is absent.

    The compiled program knows the kernel as "jaxmem_" and `name`.

    The parameters of Triton are always given: without them JAX 0.10 would choose another back end.
    """
    leaves, tree_def = jax.tree.flatten(tree)

    def flat(*refs: Any):
        kernel(jax.tree.unflatten(tree_def, refs[: len(leaves)]), *refs[len(leaves) :])

    return pl.pallas_call(
        flat,
        name="jaxmem_" + name,
        grid=grid,
        in_specs=jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, pl.BlockSpec)),
        out_shape=out_shape,
        out_specs=out_specs,
        compiler_params=pltriton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
    )(*leaves)


def key_range(part: Part, form: Form) -> tuple[Int[Array, "row_blocks"], Int[Array, "row_blocks"]]:
    """Return the keys [begin, end) outside of which a tile of rows sees nothing."""
    used = jnp.max(part.valid, axis=0) != 0
    index = jnp.arange(used.shape[0], dtype=jnp.int32)
    begin = jnp.min(jnp.where(used, index, FAR))
    end = jnp.max(jnp.where(used, index + 1, 0))
    begin, end = (jnp.broadcast_to(x, (form.row_blocks,)) for x in (begin, end))
    if part.last is not None:
        end = jnp.minimum(end, jnp.max(part.last.reshape(-1, form.tile.rows), axis=1) + 1)
    if part.first is not None:
        begin = jnp.maximum(begin, jnp.min(part.first.reshape(-1, form.tile.rows), axis=1))
    return begin, end

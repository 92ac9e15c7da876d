"""What runs the Pallas kernel of attention: with its gradient, with column sums, without values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kernels.attend import pallas_columns as columns
from jaxmem.kernels.attend.gradient import pull
from jaxmem.kernels.attend.pallas_kernel import Options, alike, form_of, run
from jaxmem.kernels.segment import Segment, windowed
from jaxmem.kernels.tiles import Tile
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float


def joint_lse(
    q: Float[Array, "Q G D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    tile: Tile | None = None,
    interpret: bool = False,
) -> Float[Array, "Q 1"]:
    """Return the log-sum-exp of head-mean logits; `q` are head means in float32."""
    options = Options(rope, alike(segments), tile, None, interpret)
    return pt.unfold(run(q, segments, options, joint=True)[0], q.shape[0], 1)


def segment_lse(
    q: Float[Array, "Q H D"],
    segment: Segment,
    *,
    rope: Rope,
    tile: Tile | None = None,
    interpret: bool = False,
) -> Float[Array, "Q H"]:
    """Return the log-sum-exp of every row's logits against one segment alone."""
    rows = q.shape[0] * q.shape[1] // segment.k.shape[1]
    # Half the keys of attention in 16 bits: without values, 64 spill at width 80 on sm_80.
    keys = 32 if q.dtype.itemsize == segment.k.dtype.itemsize == 2 else 16
    tile = tile or Tile(min(64, pt.power_of_two(rows)), keys)
    options = Options(rope, (0,), tile, None, interpret)
    return pt.unfold(run(q, [segment], options, values=False)[0], *q.shape[:2])


def _primal(
    q: Array, segments: Sequence[Segment], counted: Array | None, options: Options
) -> tuple[Array, Array, tuple[Array, ...]]:
    rows, heads, dim = q.shape
    lse, out, *sums = run(q, segments, options, counted=counted)
    out, lse = pt.unfold(out, rows, heads)[..., :dim], pt.unfold(lse, rows, heads)
    return out, lse, sums[0] if sums else ()


def _forward(q: Array, segments: Sequence[Segment], counted: Array | None, options: Options):
    out, lse, sums = _primal(q, segments, counted, options)
    return (out, lse, sums), (q, segments, out, lse)


def _backward(options: Options, kept: Any, cotangents: Any):
    q, segments, out, lse = kept
    dout, dlse, _ = cotangents  # nothing flows back from column sums
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - dlse
    delta = jnp.where(jnp.isfinite(lse), delta, 0.0)
    loss = partial(pull, lse=lse, dout=dout.astype(q.dtype), delta=delta, rope=options.rope)
    return *jax.vjp(loss, q, segments)[1](jnp.ones((), jnp.float32)), None


_attend = jax.custom_vjp(_primal, nondiff_argnums=(3,))
_attend.defvjp(_forward, _backward)


def attend(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    window: int | None = None,
    tile: Tile | None = None,
    on_load: bool | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"]]:
    """See `jaxmem.kernels.attend`.

    `tile` overrides the size of the tiles (powers of two, at least 16). `on_load`: rotate keys as
    they are loaded (True), once before into a copy (False), or whichever by the number of tiles of
    rows that read a key (None). `interpret`: run on any device, slowly, for tests.

    Raises:
      NotImplementedError: for types and head widths that the kernel does not take.
    """
    pt.check(q, segments)
    segments = tuple(windowed(s, window) for s in segments if s.k.shape[0])
    if not segments:
        return jnp.zeros_like(q), jnp.full(q.shape[:2], -jnp.inf, jnp.float32)
    options = Options(rope, alike(segments), tile, on_load, interpret)
    return _attend(q, segments, None, options)[:2]


def attend_counted(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    counted: Bool[Array, "Q"],
    options: Options,
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"], tuple[Float[Array, "G N"], ...]]:
    """Return what `attend` does, and sums of the counted rows' weights, over the heads of each G.

    At most `options.most` rows count. Segments have keys, and their window is in `first` already.
    """
    return _attend(q, tuple(segments), counted, options)


def sums_fit(q: Float[Array, "Q H D"], segments: Sequence[Segment], options: Options) -> bool:
    """Return whether partial sums of all tiles take no more room than the keys and values."""
    form, k = form_of(q, segments, options), segments[0].k
    tiles = columns.most_tiles(options.most, q.shape[1] // form.groups, form)
    return 4 * tiles <= 2 * form.dim * k.dtype.itemsize

"""Attention and its column sums as one Pallas (Triton) kernel, or as two where that costs less.

The program that attends a tile of rows walks the keys once more if some of its rows count, and
writes the sums of their weights to a place of the tile's own, which XLA adds up (docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from jaxmem.kernels import pallas_tiles as pt
from jaxmem.kernels.attend.pallas import attend, attend_counted, sums_fit
from jaxmem.kernels.attend.pallas_kernel import Options, alike
from jaxmem.kernels.attend_mass.ref import in_two
from jaxmem.kernels.received.pallas import mass, over_heads
from jaxmem.kernels.segment import Segment, windowed
from jaxmem.kernels.tiles import Tile
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float


def attend_mass(
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    rows: Bool[Array, "Q"],
    last: int | None = None,
    form: str = "softmax",
    reduce: str = "head_mean",
    window: int | None = None,
    tile: Tile | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "Q H D"], Float[Array, "Q H"], tuple[Float[Array, "C N"], ...]]:
    """See `kernels.attend_mass`; `tile` and `interpret` are those of `attend`.

    Keys are rotated once before: every tile that counts would rotate them twice. Two kernels run
    for form "mean_logit", which is another softmax, and where so many tiles of rows may count that
    their partial sums would outgrow the keys and values.

    Raises:
      NotImplementedError: for what `attend` or `mass` does not take.
    """
    pt.check(q, segments)
    held = [windowed(s, window) for s in segments if s.k.shape[0]]
    options = Options(rope, alike(held), tile, False, interpret, last)
    if form != "softmax" or not held or not sums_fit(q, held, options):
        how = {"form": form, "reduce": reduce, "window": window, "interpret": interpret}
        return in_two(attend, mass, q, segments, rope=rope, rows=rows, last=last, **how)
    if last is not None and last < len(rows):
        rows = rows & (jnp.sum(rows) - jnp.cumsum(rows) < last)
    out, lse, sums = attend_counted(q, held, rows, options)
    of_held = iter(sums)
    none = jnp.zeros((held[0].k.shape[1], 0), jnp.float32)
    sums = [next(of_held) if s.k.shape[0] else none for s in segments]
    return out, lse, over_heads(sums, q.shape[1], reduce)

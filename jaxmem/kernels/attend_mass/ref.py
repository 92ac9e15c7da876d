"""Attention, then its column sums: the formulation that is always there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.attend import ref as attention
from jaxmem.kernels.received import ref as received
from jaxmem.kernels.segment import Segment, map_rows
from jaxmem.kernels.select.ref import compact
from jaxmem.rope import Rope
from jaxmem.typing import Array, Bool, Float


def in_two(
    attend: Callable[..., tuple[Array, Array]],
    mass: Callable[..., tuple[Array, ...]],
    q: Float[Array, "Q H D"],
    segments: Sequence[Segment],
    *,
    rope: Rope,
    rows: Bool[Array, "Q"],
    last: int | None,
    form: str,
    reduce: str,
    window: int | None,
    **how: Any,
) -> tuple[Array, Array, tuple[Array, ...]]:
    """Return output, log-sum-exp and column sums by an attention and a mass of one back end.

    Only the rows that count are scored: queries, log-sum-exps and what segments say of rows are
    gathered where fewer than all may count.
    """
    more = {"rope": rope, "window": window, **how}
    out, lse = attend(q, segments, **more)
    given = lax.stop_gradient((q, list(segments), lse))
    if last is not None and last < len(rows):
        index, rows = compact(rows, last)
        cut = lambda x: jnp.take(x, index, axis=0, mode="clip")
        q, segments, scale = given
        given = cut(q), [map_rows(s, cut) for s in segments], cut(scale)
    return out, lse, mass(*given, rows=rows, form=form, reduce=reduce, **more)


attend_mass = partial(in_two, attention.attend, received.mass)
"""See `jaxmem.kernels.attend_mass`."""

"""MovieChat (arXiv 2307.16449): a short memory of frames, averaged into a long one."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.base import Memory, Spec
from jaxmem.memory.features.clusters import Merged, add, empty_merged, mean_dot, shrink
from jaxmem.memory.features.frames import Block, frame_by_frame
from jaxmem.typing import Array


class Held(NamedTuple):
    """Frames as they came, and frames that were averaged."""

    short: Merged
    long: Merged


def moviechat(
    tokens: int,
    *,
    short: int = 18,
    merged: int = 2,
    long: int = 128,
    mode: Literal["global", "breakpoint"] = "global",
) -> Memory:
    """Return MovieChat's memory, scope "feature".

    Frames gather in the short memory. When it is full, the adjacent pair of largest mean dot
    product (over all pairs of tokens, not normalised) becomes its plain mean, again and again
    until `merged` remain; they go to the long memory and the short one begins anew. The released
    long memory grows without end; here a full one merges its most alike neighbours in the same
    way. Text and sound are not kept.

    Args:
      tokens: P, rows of a frame.
      short: frames of the short memory.
      merged: what a full short memory becomes.
      long: frames of the long memory.
      mode: a question reads the long memory and the short one averaged down ("global"), or the
        long memory and the short one as it is ("breakpoint": questions about now).

    Raises:
      ValueError: if a size is not positive, `merged` exceeds `short`, the mode is unknown, or
        chunks are shorter than a frame.
    """
    if min(short, merged, long) < 1 or merged > short:
        raise ValueError(
            f"short, merged and long must be positive and merged at most short, got {short}, "
            f"{merged}, {long}."
        )
    if mode not in ("global", "breakpoint"):
        raise ValueError(f'mode must be "global" or "breakpoint", got {mode!r}.')

    def start(spec: Spec) -> Held:
        shape = (tokens, spec.width)
        return Held(empty_merged(short, shape, spec.dtype), empty_merged(long, shape, spec.dtype))

    def consolidate(held: Held) -> Held:
        small, kept = shrink(held.short, merged), held.long
        for i in range(merged):
            kept = add(kept, small.x[i], mean_dot)[0]
        zero = jax.tree.map(jnp.zeros_like, held.short)
        return Held(zero, kept)

    def step(held: Held, frame: Array) -> Held:
        held = held._replace(short=add(held.short, frame, mean_dot)[0])
        return jax.lax.cond(held.short.count >= short, consolidate, lambda held: held, held)

    def blocks(held: Held) -> list[Block]:
        recent = shrink(held.short, merged) if mode == "global" else held.short
        both = (held.long, recent)
        return [(m.x, jnp.arange(m.x.shape[0], dtype=jnp.int32) < m.count) for m in both]

    return frame_by_frame("moviechat", tokens, start, step, blocks)

"""MovieChat (arXiv 2307.16449): a short memory of frames, averaged into a long one."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.memory.base import Spec
from jaxmem.memory.features.clusters import Merged, add, empty_merged, mean_dot, shrink
from jaxmem.memory.features.frames import Block, FrameByFrame
from jaxmem.memory.parts.options import at_least, one_of
from jaxmem.typing import Array, Float


class Held(NamedTuple):
    """Frames as they came, and frames that were averaged."""

    short: Merged
    long: Merged


@dataclass(frozen=True)
class MovieChat(FrameByFrame):
    """MovieChat: a short-term queue of frames, merged into a long-term memory.

    Frames gather in the short memory. When it is full, the adjacent pair of largest mean dot
    product (over all pairs of tokens, not normalised) becomes its plain mean, again and again
    until `merged` remain; they go to the long memory and the short one starts again. The released
    long memory grows without end; here a full one merges its most similar neighbours in the same
    way. Text and audio are not kept.

    Attributes:
      short: frames of the short memory.
      merged: what a full short memory becomes.
      long: frames of the long memory.
      mode: a question reads the long memory and the short one averaged down ("global"), or the long
        memory and the short one as it is ("breakpoint": questions about now).
      tokens: P, rows of a frame; None: those of `Spec.frame`.

    Raises:
      ValueError: if a size is not positive, `merged` exceeds `short`, the mode is unknown, or, when
        the stream begins, chunks are shorter than a frame.
    """

    sized: ClassVar[tuple[str, ...]] = ("short", "merged", "long")
    """What `resized` decides."""

    short: int = 18
    _: KW_ONLY
    merged: int = 2
    long: int = 128
    mode: Literal["global", "breakpoint"] = "global"

    def __post_init__(self):
        at_least(self.name, 1, merged=self.merged, long=self.long, tokens=self.tokens)
        at_least(self.name, self.merged, short=self.short)
        one_of(self.name, ("global", "breakpoint"), mode=self.mode)

    def resized(self, slots: int, spec: Spec) -> MovieChat:
        """Return the same memory in so many rows: a quarter of the frames in the short memory.

        A ninth of these remain when it is full, as released (18 and 2).
        """
        frames = max(1, slots // self.tokens_of(spec))
        short = max(2, frames // 4)
        merged = max(1, short // 9)
        return replace(self, short=short, merged=merged, long=max(1, frames - short))

    def start(self, spec: Spec) -> Held:
        empty = lambda n: empty_merged(n, (self.tokens_of(spec), spec.width), spec.dtype)
        return Held(empty(self.short), empty(self.long))

    def step(self, held: Held, frame: Float[Array, "P E"]) -> Held:
        held = held._replace(short=add(held.short, frame, mean_dot)[0])
        full = held.short.count >= self.short
        return jax.lax.cond(full, self._consolidated, lambda held: held, held)

    def _consolidated(self, held: Held) -> Held:
        """Return the short memory empty, and what became of it in the long one."""
        small, kept = shrink(held.short, self.merged), held.long
        for i in range(self.merged):
            kept = add(kept, small.x[i], mean_dot)[0]
        return Held(jax.tree.map(jnp.zeros_like, held.short), kept)

    def blocks(self, held: Held) -> list[Block]:
        recent = shrink(held.short, self.merged) if self.mode == "global" else held.short
        both = (held.long, recent)
        return [(m.x, jnp.arange(m.x.shape[0], dtype=jnp.int32) < m.count) for m in both]

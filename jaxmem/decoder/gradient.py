"""How a gradient passes the layers of a chunk: what is kept for it, and where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from jaxmem.decoder.stretches import Stretch, cut_at
from jaxmem.kernels.select import KEPT
from jaxmem.typing import PyTree

T = TypeVar("T", bound=PyTree)


class Passing(NamedTuple):
    """Where a gradient ends in the layers of one stretch."""

    inputs: bool = True  # it passes what the layers get of each other
    outputs: bool = True  # it passes what they make of a chunk

    def enter(self, h: T) -> T:
        """Return the input of a layer, a constant where no gradient passes it."""
        return h if self.inputs and self.outputs else jax.lax.stop_gradient(h)

    def leave(self, out: T) -> T:
        """Return what a layer makes of a chunk, or is made of: constants where none passes it.

        Of constants nothing is computed again, nor backwards.
        """
        return out if self.outputs else jax.lax.stop_gradient(out)


class Gradient(NamedTuple):
    """What a chunk step is told of the gradient to come; without it, it is plain streaming.

    Every layer is computed again in the backward pass, from its input and its memory. What a memory
    chose is kept, so that nothing is scored or sorted twice.

    Attributes:
      keep: names (`jax.ad_checkpoint.checkpoint_name`) of what is kept.
      middle: S, of the published cut (OmniMem): inputs of the layers below S are constants, and
        what the layers from S on make of a chunk has a gradient in the last one before a question
        only. 0: the gradient passes everywhere.
      last: whether this is such a chunk; it counts with `middle`.
    """

    keep: tuple[str, ...] = (KEPT,)
    middle: int = 0
    last: bool = True

    def remat(self, cell: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of one layer that is computed again in the backward pass."""
        policy = jax.checkpoint_policies.save_only_these_names(*self.keep)
        return jax.checkpoint(cell, prevent_cse=False, policy=policy)

    def cut(self, order: Sequence[Stretch]) -> tuple[Stretch, ...]:
        """Return the stretches so that each lies on one side of the middle."""
        return cut_at(order, self.middle)

    def at(self, stretch: Stretch) -> Passing:
        """Return where the gradient ends in the layers of a stretch of `cut`."""
        below = stretch.first < self.middle
        return Passing(not below, below or not self.middle or self.last)

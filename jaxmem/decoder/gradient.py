"""How a gradient passes the layers of a chunk: what is kept for it, and where it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmem.kernels.select import KEPT
from jaxmem.typing import Array, Bool, Int, PyTree


class Gradient(NamedTuple):
    """What a chunk step is told of the gradient to come; without it, it is plain streaming.

    Every layer is computed again in the backward pass, from its input and its memory. What a memory
    chose is kept, so that nothing is scored or sorted twice.

    Attributes:
      keep: names (`jax.ad_checkpoint.checkpoint_name`) of what is kept.
      middle: S, of the published cut (OmniMem): inputs of the layers below S are constants, and
        what the layers from S on put out has a gradient in the last chunk before a question only.
        0: the gradient passes everywhere.
      last: whether this is such a chunk; needed with `middle`.
    """

    keep: tuple[str, ...] = (KEPT,)
    middle: int = 0
    last: Bool[Array, ""] | None = None

    def remat(self, cell: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of one layer that is computed again in the backward pass."""
        policy = jax.checkpoint_policies.save_only_these_names(*self.keep)
        return jax.checkpoint(cell, prevent_cse=False, policy=policy)

    def enter(self, number: Int[Array, ""] | int, h: Array) -> Array:
        """Return the input of a layer, a constant below the middle."""
        return passing(jnp.asarray(number) >= self.middle, h) if self.middle else h

    def leave(self, number: Int[Array, ""] | int, out: PyTree) -> PyTree:
        """Return what a layer puts out, constants from the middle on before the last chunk."""
        if not self.middle:
            return out
        assert self.last is not None
        return passing((jnp.asarray(number) < self.middle) | self.last, out)


def passing(which: Bool[Array, ""], tree: PyTree) -> PyTree:
    """Return a tree as it is, whose gradient passes where `which` is true."""

    def one(x: Array) -> Array:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return jnp.where(which, x, jax.lax.stop_gradient(x))

    return jax.tree.map(one, tree)

"""The move of what selection keeps: rows of every array of a pool, into fresh arrays."""

from __future__ import annotations

from typing import TypeVar

import jax

from jaxmem.kernels import dispatch
from jaxmem.kv import take
from jaxmem.typing import Bool, Int

_MOVE = {"xla": take, **dispatch.pallas("jaxmem.kernels.move.pallas", "move")}

T = TypeVar("T")


def move(
    slots: T,
    index: Int[jax.Array, "K"],
    keep: Bool[jax.Array, "K"],
    *,
    implementation: str | None = None,
) -> T:
    """Return rows `index` of every leaf, with zeros for rows that are not kept.

    The reference is `jaxmem.kv`, one gather per leaf. Nothing is compacted in place: the
    programs of a GPU run in any order and would read rows that were overwritten.

    Args:
      slots: any pytree whose leaves have one leading axis N: keys, values, positions, kinds.
      index: rows to move, as `jaxmem.kernels.select` returns them.
      keep: which of them are real.
      implementation: see `jaxmem.kernels`.

    Returns:
      The same structure with a leading axis K; differentiable by `slots`.

    Raises:
      ValueError: if shapes do not fit, or there is no such implementation.
    """
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(slots)}
    if len(lengths) > 1 or lengths == {()}:
        raise ValueError(f"leaves must have one leading axis N in common, got {sorted(lengths)}.")
    if index.ndim != 1 or keep.shape != index.shape:
        raise ValueError(
            f"index and keep must both be [K], got {index.shape} and {keep.shape}; "
            "vmap over more axes."
        )
    return dispatch.call(_MOVE, implementation, slots, index, keep)

"""The clock of arrival numbers, moved back now and then so that it never passes 32 bits.

`KV.index` only orders tokens, so all numbers may move down together. Entries of a bank are not
rewritten (they may lie in host memory): a block remembers how often the clock had moved when it was
written, and its numbers are moved when it is read.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.kv import EMPTY, KV
from jaxmem.memory.bank.bank import Bank
from jaxmem.memory.bank.block_table import BlockTable
from jaxmem.memory.bank.epochs import EDGE, FLOOR, STEP
from jaxmem.memory.exchange import Embeds
from jaxmem.typing import Array, Int, PyTree


def tick(
    state: PyTree, clock: Int[Array, ""] | int, embeds: Embeds
) -> tuple[PyTree, Int[Array, ""]]:
    """Return the states of a decoder and its clock, ready for the next chunk.

    Call it once after every chunk, with the states of all layers: they and the clock are moved
    back together now and then, so a stream may be longer than 32 bits can count.

    Args:
      state: one `State`, or any pytree of them; banks in it stay as they are.
      clock: arrival number of the chunk's first row.
      embeds: the chunk, its padding not counted.
    """
    fresh = jnp.sum(embeds.modality != EMPTY, dtype=jnp.int32)
    return rebase(state, after(jnp.asarray(clock, jnp.int32), fresh))


def after(clock: Int[Array, ""], fresh: Int[Array, ""]) -> Int[Array, ""]:
    """Return the clock after a chunk of `fresh` tokens; one of none leaves it.

    One number per chunk stays free, for a memory that adds a summary token of its own.
    """
    return clock + fresh + jnp.minimum(fresh, 1)


def rebase(state: PyTree, clock: Int[Array, ""]) -> tuple[PyTree, Int[Array, ""]]:
    """Return states and their clock, all moved down by STEP once the clock has passed EDGE.

    Only arrival numbers are touched; tokens older than the range of the numbers keep their order at
    its lower end.
    """
    wanted = lambda x: isinstance(x, KV | BlockTable | Bank)
    leaves, treedef = jax.tree.flatten(state, is_leaf=wanted)
    old = [_numbers(leaf) for leaf in leaves]
    far = clock >= EDGE
    new = jax.lax.cond(far, lambda x: [_older(leaf) for leaf in x], lambda x: x, old)
    leaves = [_with_numbers(leaf, mine) for leaf, mine in zip(leaves, new, strict=True)]
    return jax.tree.unflatten(treedef, leaves), jnp.where(far, clock - STEP, clock)


def _numbers(leaf: PyTree) -> PyTree:
    """Return the arrays of a leaf that move: numbers with modalities, and epochs."""
    if isinstance(leaf, KV):
        return leaf.index, leaf.modality, None
    if isinstance(leaf, BlockTable):
        return leaf.open.index, leaf.open.modality, leaf.epoch
    return None


def _older(numbers: PyTree) -> PyTree:
    if numbers is None:
        return None
    index, modality, epoch = numbers
    place = jnp.arange(index.shape[-2], dtype=jnp.int32)[:, None]
    place = jnp.broadcast_to(place, index.shape)
    moved = jnp.maximum(index, np.int32(FLOOR + STEP) + place) - np.int32(STEP)
    index = jnp.where(modality != EMPTY, moved, index)
    return index, modality, None if epoch is None else epoch + 1


def _with_numbers(leaf: PyTree, numbers: PyTree) -> PyTree:
    if isinstance(leaf, KV):
        return leaf._replace(index=numbers[0])
    if isinstance(leaf, BlockTable):
        return leaf._replace(open=leaf.open._replace(index=numbers[0]), epoch=numbers[2])
    return leaf

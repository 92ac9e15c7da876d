"""What attention and its column sums share: logits of a tile, and loops over tiles.

Logits are [C, R, Q, N]: C heads that own keys, R query heads that share each of them. Head-mean
logits are one head of width G * D (C = R = 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxmem.kernels.segment import Segment, key_block, map_rows, rotated_keys, visible
from jaxmem.rope import Rope
from jaxmem.typing import Array, Float, Int, PyTree

ROWS = 256  # query rows of a tile
LOGITS = 2**20  # about how many logits a tile holds, over all heads


class Tile(NamedTuple):
    """Static size of a tile."""

    rows: int
    keys: int


def tile_of(rows: int, heads: int) -> Tile:
    """Return the tile for so many query rows and heads."""
    block = min(rows, ROWS)
    keys = 2 ** (LOGITS // (block * heads)).bit_length() // 2
    return Tile(block, max(256, keys))


def head_mean(q: Float[Array, "Q H D"], groups: int) -> Float[Array, "Q G D"]:
    """Return queries whose one logit over all KV heads is the mean of the H logits.

    mean_h q_h . k_g(h) = sum_g (1/H sum_{h in g} q_h) . k_g, and rotation is linear, so the sum may
    be taken before it.
    """
    rows, heads, dim = q.shape
    per_group = q.astype(jnp.float32).reshape(rows, groups, heads // groups, dim)
    return jnp.sum(per_group, axis=2) / heads


def logits(
    q: Float[Array, "Q H D"], segment: Segment, rope: Rope, *, joint: bool = False
) -> Float[Array, "C R Q N"]:
    """Return masked float32 logits of rotated queries against a segment's keys.

    Keys are rotated here. `joint`: one head over all KV heads, with head means [Q, G, D] as
    queries.
    """
    rows, heads, dim = q.shape
    k = rotated_keys(segment, rope)
    n, groups, _ = k.shape
    if joint:
        # A product for each KV head. As one product, XLA on a CPU transposes the keys first; with
        # heads side by side in one row it is faster, but slows the attention that shares them.
        k = k.astype(jnp.float32)
        each = [jnp.einsum("qd,nd->qn", q[:, g], k[:, g]) for g in range(groups)]
        s = sum(each[1:], start=each[0])[None, None]
    else:
        shared = heads // groups
        q = q.reshape(rows, groups, shared, dim).transpose(1, 2, 0, 3)
        q = q.reshape(groups, shared * rows, dim)
        s = jnp.einsum("gqd,ngd->gqn", q, k, preferred_element_type=jnp.float32)
        s = s.reshape(groups, shared, rows, n)
    s = s * dim**-0.5
    if rope.softcap is not None:
        s = rope.softcap * jnp.tanh(s / rope.softcap)
    if segment.bias is not None:
        bias = segment.bias.astype(jnp.float32)
        bias = jnp.mean(bias, axis=1, keepdims=True) if joint else bias
        s = s + bias.T[:, None, None, :]
    return jnp.where(visible(segment)[:, None], s, -jnp.inf)


def starts(n: int, size: int) -> Int[Array, "blocks"]:
    """Return where the blocks of `size` begin that cover n entries."""
    return jnp.arange(0, n, size, dtype=jnp.int32)


def fold_keys(function: Callable[..., Any], carry: Any, segment: Segment, size: int):
    """Return `carry` after `carry = function(carry, block)` over the key blocks of a segment.

    Two blocks are taken as one: on a CPU that saves up to a fifth of the time, more than blocks do.
    """
    n = segment.valid.shape[0]
    if n == 0:
        return carry
    if n <= 2 * size:
        return function(carry, segment)

    # Without a checkpoint, reverse mode would store the logits of every tile: [Q, N].
    @jax.checkpoint
    def body(carry: Any, start: Any):
        return function(carry, key_block(segment, start, size)), None

    return lax.scan(body, carry, starts(n, size))[0]


def map_keys(function: Callable[..., Any], segment: Segment, size: int) -> Float[Array, "C N"]:
    """Return `function(block)` [C, block] of all key blocks, side by side."""
    n = segment.valid.shape[0]
    if n <= size:
        return function(segment)
    at = starts(n, size)
    blocks = lax.map(lambda start: function(key_block(segment, start, size)), at)
    full = jnp.moveaxis(blocks[:-1], 0, 1).reshape(blocks.shape[1], -1)
    tail = blocks[-1][:, full.shape[1] + size - n :]  # the last block reaches back
    return jnp.concatenate([full, tail], axis=1)


def pad_rows(tree: PyTree, size: int) -> PyTree:
    """Pad the leading axis of every leaf with zeros to whole blocks of `size`."""

    def pad(x: Array) -> Array:
        short = -x.shape[0] % size
        return jnp.pad(x, ((0, short), *((0, 0),) * (x.ndim - 1))) if short else x

    return jax.tree.map(pad, tree)


def row_block(tree: PyTree, start: Int[Array, ""], size: int) -> PyTree:
    """Return rows `start` to `start + size` of every leaf; rows are padded to whole blocks."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), tree)


def evenly(rows: int, size: int) -> int:
    """Return the rows of each of as few blocks of at most `size` as there can be, evenly filled.

    300 rows in blocks of 256 would be computed as 512.
    """
    return -(-rows // -(-rows // size))


def over_rows(
    function: Callable[..., Any], tree: PyTree, segments: Sequence[Segment], size: int
) -> PyTree:
    """Return `function(rows of tree, segments as these rows see them)` over blocks of rows.

    The leading axis of every leaf, and of every result, is that of the rows.
    """
    rows = jax.tree.leaves(tree)[0].shape[0]
    if rows <= size:
        return function(tree, segments)
    size = evenly(rows, size)
    tree = pad_rows(tree, size)
    segments = [map_rows(s, partial(pad_rows, size=size)) for s in segments]

    @jax.checkpoint
    def body(start: Int[Array, ""]) -> PyTree:
        cut = partial(row_block, start=start, size=size)
        return function(cut(tree), [map_rows(s, cut) for s in segments])

    results = lax.map(body, starts(rows, size))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:rows], results)


def sum_rows(
    function: Callable[..., Any], tree: PyTree, segments: Sequence[Segment], size: int
) -> PyTree:
    """Return `function(rows of tree, segments as these rows see them)` summed over blocks of rows.

    Rows are padded with zeros to whole blocks: `function` must not count such rows.
    """
    rows = jax.tree.leaves(tree)[0].shape[0]
    if rows <= size:
        return function(tree, segments)
    size = evenly(rows, size)
    tree = pad_rows(tree, size)
    segments = [map_rows(s, partial(pad_rows, size=size)) for s in segments]

    def block(start: Int[Array, ""]) -> PyTree:
        cut = partial(row_block, start=start, size=size)
        return function(cut(tree), [map_rows(s, cut) for s in segments])

    def body(total: PyTree, start: Int[Array, ""]) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, block(start)), None

    at = starts(rows, size)
    shapes = jax.eval_shape(block, at[0])
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.scan(body, zero, at)[0]

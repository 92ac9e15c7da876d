"""What the vision encoders share: patches and their order, 2-D rotary, attention in groups, blocks.

Patches lie frame by frame; in a frame cell by cell of `merge` x `merge` patches, the cells in
raster order, so that the patches that become one token are neighbours (Qwen2-VL). A grid is (F, h,
w): frames (of `temporal` pictures each), rows and columns of patches. Grids are static: which patch
attends to which is worked out in numpy while a program is traced.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.decoder.decoder import linear
from jaxmem.kernels.attend import attend
from jaxmem.kernels.segment import Segment
from jaxmem.memory.base import at_layer
from jaxmem.rope import Rope, angles, rope_1d, rotate
from jaxmem.typing import Array, Bool, Float, Int, Params

Grid = tuple[int, int, int]
Grids = Sequence[Grid]
Gelu = Literal["exact", "tanh", "quick"]
"""By the error function, its tanh approximation, or x sigmoid(1.702 x)."""


def as_grids(grids: Any, merge: int, patches: int | None = None) -> tuple[Grid, ...]:
    """Return grids, (F, h, w) of every picture or video, as a tuple of integers.

    Raises:
      ValueError: if a side is no multiple of `merge`, or the patches do not fit the grids.
    """
    found = tuple((int(f), int(h), int(w)) for f, h, w in grids)
    for grid in found:
        if min(grid) < 1 or grid[1] % merge or grid[2] % merge:
            raise ValueError(
                f"grid {grid} (frames, rows, columns of patches) cannot be cut into cells of "
                f"{merge} x {merge}: resize pictures to multiples of {merge} patches."
            )
    covered = sum(f * h * w for f, h, w in found)
    if patches is not None and covered != patches:
        raise ValueError(
            f"the grids {found} cover {covered} patches, but {patches} came: pass one grid for "
            "every picture and video, in their order."
        )
    return found


def patchify(
    pixels: Float[Array, "n Y X C"], *, patch: int, temporal: int, merge: int
) -> Float[Array, "N I"]:
    """Cut pictures into patches in the encoders' order.

    Args:
      pixels: n normalised pictures; an odd picture out is repeated by the caller.
      patch: side of a patch in pixels.
      temporal: consecutive pictures that share a patch.
      merge: side of a cell in patches.

    Returns:
      N = n/temporal * Y/patch * X/patch rows of C * temporal * patch * patch numbers, channel
      slowest and column fastest.

    Raises:
      ValueError: if pictures or pixels do not divide.
    """
    n, rows, columns, channels = pixels.shape
    cell = patch * merge
    if n % temporal or rows % cell or columns % cell:
        raise ValueError(
            f"{n} pictures of {rows} x {columns} pixels cannot be cut into patches: pass a "
            f"multiple of {temporal} pictures with sides that are multiples of {cell}."
        )
    x = pixels.reshape(
        n // temporal, temporal, rows // cell, merge, patch, columns // cell, merge, patch, channels
    )
    x = x.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return x.reshape(-1, channels * temporal * patch * patch)


def patch_places(grid: Grid, merge: int) -> Int[np.ndarray, "N 2"]:
    """Return (row, column) of every patch of a grid, in the encoders' order."""
    frames, h, w = grid
    place = np.indices((h, w)).transpose(1, 2, 0).reshape(h // merge, merge, w // merge, merge, 2)
    one = place.transpose(0, 2, 1, 3, 4).reshape(h * w, 2)
    return np.tile(one, (frames, 1)).astype(np.int32)


def all_places(grids: Grids, merge: int) -> Int[np.ndarray, "N 2"]:
    """Return (row, column) of every patch of several grids."""
    return np.concatenate([patch_places(grid, merge) for grid in grids])


def rotary(head_dim: int, theta: float, grids: Grids, merge: int) -> Float[Array, "N 1 D/2"]:
    """Return the 2-D rotary angles of patches, with the axis of heads.

    The first half of the pairs reads the row, the other half the column; frequencies are those of a
    1-axis embedding of width D/2, for each of the two (Qwen2-VL, 2.1).
    """
    half = rope_1d(head_dim // 2, theta).inv_freq
    rope = Rope(half + half, (0,) * len(half) + (1,) * len(half))
    return angles(rope, jnp.asarray(all_places(grids, merge)))[:, None]


class Groups(NamedTuple):
    """Patches that see each other: n groups of at most g, all patches in exactly one."""

    index: Int[Any, "n g"]  # patches of each group; 0 where the group is smaller than g
    valid: Bool[Any, "n g"]
    back: Int[Any, "N"]  # where each patch lies among the n * g


def groups_of(members: Sequence[np.ndarray]) -> Groups:
    """Return groups from the patch numbers of each; empty ones are left out."""
    members = [m for m in members if len(m)]
    size = max(len(m) for m in members)
    index = np.zeros((len(members), size), np.int32)
    valid = np.zeros((len(members), size), bool)
    for i, m in enumerate(members):
        index[i, : len(m)], valid[i, : len(m)] = m, True
    back = np.zeros(int(valid.sum()), np.int32)
    back[index[valid]] = np.flatnonzero(valid.reshape(-1))
    return Groups(index, valid, back)


def frame_groups(grids: Grids) -> Groups:
    """Return the groups of attention within each frame."""
    sizes = [h * w for f, h, w in grids for _ in range(f)]
    ends = np.cumsum(sizes)
    return groups_of([np.arange(end - n, end) for n, end in zip(sizes, ends, strict=True)])


def window_groups(grids: Grids, merge: int, side: int) -> Groups:
    """Return the groups of attention within windows of `side` x `side` cells of a frame.

    Windows begin at the upper left corner; those at the right and lower border may be smaller.
    """
    members, first = [], 0
    for frames, h, w in grids:
        row, column = patch_places((1, h, w), merge).T // (merge * side)
        window = row * (int(column.max()) + 1) + column
        for _ in range(frames):
            members += [first + np.flatnonzero(window == i) for i in range(int(window.max()) + 1)]
            first += h * w
    return groups_of(members)


def attend_all(
    q: Float[Array, "n H D"],
    k: Float[Array, "m H D"],
    v: Float[Array, "m H D"],
    valid: Bool[Array, "m"] | None = None,
) -> Float[Array, "n H D"]:
    """Return attention of every row to all valid rows (None: to all), as they are: not rotated."""
    still = Rope((0.0,) * (q.shape[-1] // 2), (0,) * (q.shape[-1] // 2))
    valid = jnp.ones(k.shape[0], bool) if valid is None else valid
    return attend(q, [Segment(k, v, valid[:, None])], rope=still)[0]


def self_attention(
    weights: Params,
    heads: int,
    x: Float[Array, "N E"],
    turn: Float[Array, "N 1 D/2"] | None,
    groups: Groups,
) -> Float[Array, "N E"]:
    """Return a block's attention of normalised rows, projected, without norm and residual.

    The weights are linear maps "qkv", or "q", "k" and "v", and "proj"; `turn`: rotary angles.
    """
    if "qkv" in weights:
        parts = jnp.split(linear(x, weights["qkv"]), 3, axis=-1)
    else:
        parts = [linear(x, weights[name]) for name in ("q", "k", "v")]
    q, k, v = (p.reshape(p.shape[0], heads, -1) for p in parts)
    if turn is not None:
        q, k = rotate(q, turn), rotate(k, turn)
    index = jnp.asarray(groups.index)
    out = jax.vmap(attend_all)(q[index], k[index], v[index], jnp.asarray(groups.valid))
    out = out.reshape(-1, *q.shape[1:])[jnp.asarray(groups.back)]
    return linear(out.reshape(out.shape[0], -1), weights["proj"])


def gelu_mlp(
    weights: Params, x: Float[Array, "*N E"], gelu: Gelu = "exact"
) -> Float[Array, "*N E"]:
    """Return linear map "fc1", GELU, linear map "fc2"."""
    x = linear(x, weights["fc1"])
    if gelu == "quick":
        x = x * jax.nn.sigmoid(1.702 * x)
    else:
        x = jax.nn.gelu(x, approximate=gelu == "tanh")
    return linear(x, weights["fc2"])


def layer_norm(x: Float[Array, "*N E"], weight: Params, eps: float) -> Float[Array, "*N E"]:
    """Return (x - mean) / std * scale + bias, in float32, in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    shape = (1,) * (x.ndim - 1) + (-1,)
    scale, bias = (weight[name].astype(jnp.float32).reshape(shape) for name in ("scale", "bias"))
    return (wide * scale + bias).astype(x.dtype)


def through_blocks(
    blocks: Params,
    h: Float[Array, "N E"],
    step: Callable[[Params, Array, Any], Array],
    kinds: Sequence[Any],
    taps: Sequence[int] = (),
) -> tuple[Array, list[Array]]:
    """Pass features through stacked blocks; a run of blocks of one kind is one loop.

    Args:
      blocks: weights with leading axis of blocks.
      h: input.
      step: (weights of one block, h, kind) -> h.
      kinds: static kind of every block.
      taps: blocks whose outputs are wanted beside that of the last, ascending.
    """
    depth, tapped, start = len(kinds), [], 0
    for stop in range(1, depth + 1):
        if stop < depth and stop - 1 not in taps and kinds[stop] == kinds[start]:
            continue

        def body(h: Array, index: Array, kind: Any = kinds[start]) -> tuple[Array, None]:
            return step(at_layer(blocks, index), h, kind), None

        h = jax.lax.scan(body, h, jnp.arange(start, stop, dtype=jnp.int32))[0]
        if stop - 1 in taps:
            tapped.append(h)
        start = stop
    return h, tapped

"""Resampling of small grids of features as matrices, by the rules of torch's `interpolate`.

Half-pixel centres, no anti-aliasing, borders repeated. `jax.image.resize` differs: its cubic has
a = -0.5 where torch has -0.75, and it renormalises at the borders instead of repeating them.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmem.typing import Array, Float

Kind = Literal["linear", "cubic"]


def _taps(t: np.ndarray, kind: Kind) -> np.ndarray:
    """Return the weights of the neighbours around a point, `t` in [0, 1) after the left one."""
    if kind == "linear":
        return np.stack([1 - t, t], -1)
    a = -0.75
    near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1  # |x| <= 1
    far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a  # 1 < |x| < 2
    return np.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], -1)


def resize_matrix(size: int, new: int, kind: Kind) -> Float[np.ndarray, "new size"]:
    """Return the matrix that resamples `size` points of a line to `new` points."""
    centre = (np.arange(new) + 0.5) * (size / new) - 0.5
    if kind == "linear":
        centre = centre.clip(0)  # as torch does; the same as repeating the border
    left = np.floor(centre).astype(int)
    weights = _taps(centre - left, kind)
    reach = weights.shape[-1]
    matrix = np.zeros((new, size))
    for i in range(reach):
        at = (left + i - (reach // 2 - 1)).clip(0, size - 1)
        np.add.at(matrix, (np.arange(new), at), weights[:, i])
    return matrix.astype(np.float32)


def resize_grid(x: Float[Array, "*n Y X E"], size: tuple[int, int], kind: Kind) -> Array:
    """Return grids of features resampled to `size` (rows, columns), in float32 and x's dtype."""
    rows, columns = x.shape[-3:-1]
    if (rows, columns) == size:
        return x
    down, across = resize_matrix(rows, size[0], kind), resize_matrix(columns, size[1], kind)
    exact = jax.lax.Precision.HIGHEST
    wide = jnp.einsum("ry,...yxe->...rxe", down, x.astype(jnp.float32), precision=exact)
    wide = jnp.einsum("cx,...rxe->...rce", across, wide, precision=exact)
    return wide.astype(x.dtype)

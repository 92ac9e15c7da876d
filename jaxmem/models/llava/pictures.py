"""Pictures of LLaVA-OneVision: the whole of each in one tile, and tiles of its full resolution.

The tiles are put together with a newline after every row.
"""

import math

import jax.numpy as jnp

from jaxmem.models.encoders.resize import resize_grid
from jaxmem.models.llava.onevision import LlavaConfig, project, with_row_ends
from jaxmem.typing import Array, Float, Params


def best_size(config: LlavaConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of `config.sizes` that keeps most of a picture, wasting least."""
    height, width = size

    def kept(new: tuple[int, int]) -> tuple[int, int]:
        scale = min(new[1] / width, new[0] / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        return pixels, pixels - new[0] * new[1]

    return max(config.sizes, key=kept)


def image_layout(config: LlavaConfig, size: tuple[int, int]) -> tuple[int, int]:
    """Return the rows and columns of tokens of a tiled picture of `size` pixels, no newlines."""
    (_, rows), (_, columns) = _unpadded(config, size)
    ratio = math.sqrt(rows * columns / (config.tiles * config.vision.grid**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def _unpadded(
    config: LlavaConfig, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (first, count) of the rows and of the columns of the tiles that are no padding."""
    best, grid, side = best_size(config, size), config.vision.grid, config.vision.side
    rows, columns = (length // side * grid for length in best)
    if size[1] / size[0] > columns / rows:
        skip = (rows - int(round(size[0] * (columns / size[1]), 7))) // 2
        return (skip, rows - 2 * skip), (0, columns)
    skip = (columns - int(round(size[1] * (rows / size[0]), 7))) // 2
    return (0, rows), (skip, columns - 2 * skip)


def image_features(
    params: Params, config: LlavaConfig, tiles: Float[Array, "n Y X C"], size: tuple[int, int]
) -> Float[Array, "m E"]:
    """Return the tokens of one picture.

    Args:
      tiles: the whole picture, then the tiles of `best_size` in raster order; or only the whole
        one (prompts of several pictures).
      size: (height, width) of the picture in pixels before it was resized.

    Raises:
      ValueError: if the number of tiles is not the one that the size asks for.
    """
    x, newline = project(params, config, tiles), params["newline"]
    whole = x[0].reshape(-1, x.shape[-1])
    if tiles.shape[0] == 1:
        return jnp.concatenate([whole, newline[None]])
    down, across = (length // config.vision.side for length in best_size(config, size))
    if tiles.shape[0] != 1 + down * across:
        raise ValueError(
            f"a picture of {size} pixels has 1 + {down} x {across} tiles, got {tiles.shape[0]}."
        )
    n, grid = x.shape[-1], config.vision.grid
    x = x[1:].reshape(down, across, grid, grid, n).transpose(0, 2, 1, 3, 4)
    (top, rows), (left, columns) = _unpadded(config, size)
    x = x.reshape(down * grid, across * grid, n)[top : top + rows, left : left + columns]
    x = resize_grid(x, image_layout(config, size), "linear")
    return jnp.concatenate([whole, with_row_ends(x, newline).reshape(-1, n)])


def image_tokens(config: LlavaConfig, size: tuple[int, int], *, tiled: bool = True) -> int:
    """Return the tokens of a picture, newlines included."""
    whole = config.vision.grid**2
    if not tiled:
        return whole + 1
    rows, columns = image_layout(config, size)
    return whole + rows * (columns + 1)

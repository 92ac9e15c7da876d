"""Preprocessor settings of a checkpoint directory: the size of its pictures, and their pixels."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.models.hf.config import read_json
from jaxmem.typing import Array, Float, UInt

NAMES = ("video_preprocessor_config.json", "preprocessor_config.json")
TOGETHER = "processor_config.json"
"""Newer versions of transformers write all settings into one file."""
LONGEST = 200
"""Pictures whose sides differ by more than this factor are refused, as in the released code."""


class Pixels(NamedTuple):
    """How pixels 0..255 are normalised: (x * scale - mean) / std."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, frames: UInt[Array, "n Y X C"]) -> Float[Array, "n Y X C"]:
        """Return normalised pictures, float32."""
        mean, std = (np.array(x, np.float32).reshape(1, 1, 1, -1) for x in (self.mean, self.std))
        return (frames.astype(jnp.float32) * self.scale - mean) / std


def read_settings(directory: str | Path) -> dict[str, Any]:
    """Return the settings for videos, or for pictures where there are none; {} without a file."""
    folder = Path(directory)
    if (folder / TOGETHER).is_file():
        parts = read_json(folder, TOGETHER)
        for key in ("video_processor", "image_processor"):
            if isinstance(parts.get(key), dict):
                return parts[key]
    return next((read_json(folder, name) for name in NAMES if (folder / name).is_file()), {})


def pixels_of(settings: Mapping[str, Any]) -> Pixels:
    """Return the normalisation; without any in the settings, to -1..1."""
    mean, std = (settings.get(name) or [0.5] * 3 for name in ("image_mean", "image_std"))
    return Pixels(settings.get("rescale_factor") or 1 / 255, tuple(mean), tuple(std))


class Limits(NamedTuple):
    """Pixels of one frame."""

    least: int
    most: int


def limits_of(settings: Mapping[str, Any], *, whole_videos: bool) -> Limits:
    """Return how many pixels a frame may have.

    Args:
      whole_videos: the limits count all frames of a video (Qwen3-VL). A stream has no number of
        frames, so each gets what the settings leave to one of the longest video (`max_frames`).

    Raises:
      ValueError: if the settings do not say.
    """
    size = settings.get("size") or {}
    found = [
        settings.get(name, size.get(side))
        for name, side in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge"))
    ]
    if None in found:
        raise ValueError(
            "the directory does not say how large frames may be: expected min_pixels and "
            "max_pixels, or size.shortest_edge and size.longest_edge, in one of "
            f"{', '.join((*NAMES, TOGETHER))}; download the preprocessor files too."
        )
    share = settings.get("max_frames", 768) if whole_videos else 1
    return Limits(*(int(x) // share for x in found))


def smart_resize(height: int, width: int, *, cell: int, limits: Limits) -> tuple[int, int]:
    """Return the (height, width) that frames are resized to: multiples of `cell` within limits.

    The sides are rounded to cells; beyond a limit both are scaled alike, then rounded inwards
    (the released Qwen2-VL processors).

    Args:
      height: native, in pixels; `width` likewise.
      cell: side in pixels of what becomes one token.
      limits: of height times width.

    Raises:
      ValueError: if one side is more than 200 times the other.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(
            f"frames of {height} x {width} pixels are too narrow: one side may be at most "
            f"{LONGEST} times the other."
        )
    sides = [max(cell, round(side / cell) * cell) for side in (height, width)]
    if math.prod(sides) > limits.most:
        shrink = math.sqrt(height * width / limits.most)
        sides = [max(cell, math.floor(x / shrink / cell) * cell) for x in (height, width)]
    elif math.prod(sides) < limits.least:
        grow = math.sqrt(limits.least / (height * width))
        sides = [math.ceil(x * grow / cell) * cell for x in (height, width)]
    return sides[0], sides[1]

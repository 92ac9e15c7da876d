"""Preprocessor settings of a checkpoint directory: the size of its pictures, and their pixels."""

import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxmem.models.hf.config import optional_json
from jaxmem.models.hf.keys import number, refusal, section, sizes
from jaxmem.typing import Array, Float, UInt

NAMES = ("video_preprocessor_config.json", "preprocessor_config.json")
TOGETHER = "processor_config.json"
"""Newer versions of transformers write all settings into one file."""
PARTS = ("video_processor", "image_processor")
OF_VIDEOS, FILE = "of videos", "file"
Triple = tuple[float, float, float]
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""Means and standard deviations of families, where a file does not say."""
FASTEST = 1000
"""Pictures a second of a stream, at most, and seconds from one to the next."""
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
    """Return the settings for videos, or for pictures where there are none; {} without a file.

    The key `OF_VIDEOS` says which they are, and `FILE` where they stand.
    """
    folder, parts = Path(directory), optional_json(directory, TOGETHER)
    found = [(PARTS.index(key) == 0, TOGETHER, section(parts, key, TOGETHER)) for key in PARTS]
    found += [(i == 0, name, optional_json(folder, name)) for i, name in enumerate(NAMES)]
    read = ({**part, OF_VIDEOS: videos, FILE: name} for videos, name, part in found if part)
    return next(read, {})


def file_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the file that settings are from."""
    return settings.get(FILE, NAMES[1])


def picture_rate(fps: float) -> Fraction:
    """Return pictures per second as a ratio; ValueError if nobody looks that often, or rarely."""
    if not 1 / FASTEST <= fps <= FASTEST:
        raise ValueError(f"fps must be between {1 / FASTEST:g} and {FASTEST}, got {fps:g}.")
    return Fraction(fps).limit_denominator(1001)


def pixels_of(settings: Mapping[str, Any], mean_std: tuple[Triple, Triple] = HALF) -> Pixels:
    """Return the normalisation; what the settings leave out is 1 / 255 and `mean_std`.

    Raises:
      ValueError: if they hold something else than such numbers.
    """
    key, where = "rescale_factor", file_of(settings)
    scale = number({**settings, key: settings.get(key) or 1 / 255}, key, where, above=0)
    mean, std = mean_std
    return Pixels(
        scale, _colours(settings, "image_mean", mean), _colours(settings, "image_std", std, above=0)
    )


def _colours(
    settings: Mapping[str, Any], key: str, default: Triple, above: float = -math.inf
) -> tuple[float, ...]:
    """Return a number for each colour."""
    found = settings.get(key) or default
    if (
        not isinstance(found, list | tuple)
        or len(found) != len(default)
        or any(isinstance(x, bool) or not isinstance(x, int | float) for x in found)
        or not all(above < x < math.inf for x in found)
    ):
        expected = f"{len(default)} numbers" + (f" above {above:g}" if above == 0 else "")
        raise refusal(key, found, f"a list of {expected}", file_of(settings))
    return tuple(found)


class Limits(NamedTuple):
    """Pixels of one frame."""

    least: int
    most: int


def limits_of(
    settings: Mapping[str, Any],
    *,
    whole_videos: bool,
    released: Limits | None = None,
    max_pixels: int | None = None,
) -> Limits:
    """Return how many pixels a frame may have.

    Args:
      settings: of the preprocessor.
      whole_videos: the limits count all frames of a video (Qwen3-VL). A stream has no number of
        frames, so each gets what the settings leave to one of the longest video (`max_frames`).
      released: what the released pipeline gives a frame; limits that the directory has for pictures
        count only as far as they are narrower.
      max_pixels: of a frame, given by hand.

    Raises:
      ValueError: if nobody says.
    """
    found = _stored_limits(settings, whole_videos)
    if settings and released is not None and (found is None or not settings.get(OF_VIDEOS)):
        found = _narrowed(released, found)
    if max_pixels is not None:
        return Limits(min(found.least if found else 1, max_pixels), max_pixels)
    if found is None:
        raise ValueError(
            "the directory does not say how large frames may be: expected min_pixels and "
            "max_pixels, or size.shortest_edge and size.longest_edge, in one of "
            f"{', '.join((*NAMES, TOGETHER))}; download the preprocessor files too, or give "
            "max_pixels."
        )
    return found


def _stored_limits(settings: Mapping[str, Any], whole_videos: bool) -> Limits | None:
    """Return the limits of the settings, or None."""
    where, size, found = file_of(settings), settings.get("size"), {}
    sides = size if isinstance(size, Mapping) else {}  # one number is a size of other pictures
    for name, side in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        key, part = (name, settings) if name in settings else (side, sides)
        if key not in part:
            return None
        found[key] = int(number(part, key, where))
    key, frames = list(found)[1], 1
    if whole_videos:
        frames = sizes({"max_frames": 768, **settings}, {"share": "max_frames"}, where)["share"]
    least, most = (pixels // frames for pixels in found.values())
    if most < 1:
        expected = "at least one pixel" + (f" of each of {frames} frames" if whole_videos else "")
        raise refusal(key, found[key], expected, where)
    return Limits(least, most)


def _narrowed(released: Limits, stored: Limits | None) -> Limits:
    """Return the limits within both, or those of the directory where there are none."""
    if stored is None:
        return released
    both = Limits(max(released.least, stored.least), min(released.most, stored.most))
    return both if both.least <= both.most else stored


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

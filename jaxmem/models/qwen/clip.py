"""How the pictures of a stream become the patches that the Qwen encoders take.

A piece of a stream is a whole number of frames of patches, each of `temporal` pictures.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from jaxmem.models.encoders.vision_parts import Grid, patchify
from jaxmem.models.hf.preprocessor import (
    CLIP,
    HALF,
    Limits,
    Pixels,
    file_of,
    limits_of,
    picture_rate,
    pixels_of,
    smart_resize,
)
from jaxmem.typing import Array, Float, UInt

Size = tuple[int, int]
"""(height, width) in pixels."""
FRAME_TOKENS = (128, 768)
"""Least and most tokens of a frame of a video in the released pipeline (qwen-vl-utils).

The limits in preprocessor_config.json are for pictures."""


@dataclass(frozen=True)
class Clip:
    """How a stream's pictures become patches."""

    fps: Fraction  # pictures per second
    patch: int  # side of a patch in pixels
    temporal: int  # pictures per frame of patches
    merge: int  # side of the cell of patches that becomes one token
    per_piece: int  # frames of patches in a piece
    pixels: Pixels  # their normalisation
    limits: Limits  # pixels of a frame

    @property
    def seconds(self) -> Fraction:
        """Return the time from one frame of patches to the next."""
        return self.temporal / self.fps

    def resized(self, height: int, width: int) -> Size:
        """Return the size that pictures of a native size are brought to."""
        return smart_resize(height, width, cell=self.patch * self.merge, limits=self.limits)

    def grid(self, size: Size, pieces: int) -> Grid:
        """Return (F, h, w) of pieces, in patches."""
        return (pieces * self.per_piece, size[0] // self.patch, size[1] // self.patch)

    def cells(self, size: Size) -> tuple[int, int]:
        """Return the rows and columns of tokens of a frame."""
        return tuple(n // self.merge for n in self.grid(size, 1)[1:])  # type: ignore[return-value]

    def tokens(self, size: Size) -> int:
        """Return the tokens that a piece's frames become."""
        return self.per_piece * math.prod(self.cells(size))

    def patches(self, frames: UInt[Array, "C F Y X 3"]) -> tuple[Float[Array, "N I"], Grid]:
        """Return the patches of a chunk's frames, and their grid."""
        pieces, _, *size, _ = frames.shape
        x = self.pixels(frames.reshape(-1, *frames.shape[2:]))
        x = patchify(x, patch=self.patch, temporal=self.temporal, merge=self.merge)
        return x, self.grid((size[0], size[1]), pieces)


def read_clip(
    settings: Mapping[str, Any],
    vision: Any,
    fps: float,
    *,
    piece_seconds: Fraction | None = None,
    max_pixels: int | None = None,
    whole_videos: bool = False,
    released: tuple[int, int] | None = None,
) -> Clip:
    """Return how a checkpoint wants pictures.

    Args:
      vision: config of the encoder, with `patch`, `temporal` and `merge`.
      fps: pictures per second.
      piece_seconds: length of a piece; None: one frame of patches.
      max_pixels: of a frame; None: as the directory says.
      whole_videos: see `preprocessor.limits_of`.
      released: tokens of a frame, at least and at most, in the released pipeline; None: as the
        directory says.

    Raises:
      ValueError: if the settings are missing or those of another encoder, or a piece would not hold
        a whole number of frames, or the rate is none of a stream.
    """
    for key, mine in (("patch", "patch_size"), ("temporal", "temporal_patch_size")):
        found = getattr(vision, key)
        if settings.get(mine, found) != found:
            raise ValueError(
                f"{mine} is {settings[mine]!r} in the preprocessor's settings "
                f"({file_of(settings)}), but {found!r} in vision_config of config.json: use the "
                "two files of one checkpoint."
            )
    cell = (vision.patch * vision.merge) ** 2
    limits = limits_of(
        settings,
        whole_videos=whole_videos,
        released=None if released is None else Limits(*(tokens * cell for tokens in released)),
        max_pixels=max_pixels,
    )
    rate = picture_rate(fps)
    count = 1 if piece_seconds is None else rate * piece_seconds / vision.temporal
    if count < 1 or count != int(count):
        raise ValueError(
            f"this model takes pieces of {float(piece_seconds or 0):g} s, which must hold a "
            f"multiple of {vision.temporal} pictures: at {fps:g} pictures a second they do not. "
            f"Take {vision.temporal / float(piece_seconds or 1):g}, or a multiple."
        )
    return Clip(
        fps=rate,
        patch=vision.patch,
        temporal=vision.temporal,
        merge=vision.merge,
        per_piece=int(count),
        pixels=pixels_of(settings, HALF if whole_videos else CLIP),
        limits=limits,
    )

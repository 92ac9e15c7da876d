"""Single pictures in bytes: decoded as a file's frames are, with their size checked before that."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from jaxmem.data.media.video import Size, drawn, orientation

MOST_PIXELS = 16_000_000
"""Of a picture, unless told otherwise."""
_BEGINNINGS = {b"\xff\xd8\xff": "mjpeg", b"\x89PNG\r\n\x1a\n": "png"}


def decode_picture(data: bytes, size: Size, most: int = MOST_PIXELS) -> np.ndarray:
    """Return a JPEG, PNG or WebP picture upright and fitted to a size, as frames of a file are.

    Args:
      data: of the whole picture.
      size: (h, w) of what is returned; the aspect ratio is not kept.
      most: pixels that it may have, where the decoder rounds rows up to a multiple of 64; it
        allocates nothing for more.

    Returns:
      uint8 [h, w, 3], RGB.

    Raises:
      ValueError: if it is no such picture, damaged, or has more pixels.
    """
    frame = _decoded(data, _codec(data), most)
    return np.ascontiguousarray(drawn(VideoReformatter(), frame, size, orientation(frame)))


def _codec(data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for beginning, codec in _BEGINNINGS.items():
        if data.startswith(beginning):
            return codec
    raise ValueError(
        f"a picture of {len(data):,} bytes is no JPEG, PNG or WebP: encode it as one of these."
    )


def _decoded(data: bytes, codec: str, most: int) -> av.VideoFrame:
    context: Any = av.CodecContext.create(codec, "r")
    context.options = {"max_pixels": str(most)}
    context.thread_count = 1
    try:
        frames = [*context.decode(av.Packet(data)), *context.decode(None)]
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise ValueError(
            f"a picture of {len(data):,} bytes cannot be decoded ({codec}: {error}): it is "
            f"damaged, or has more than the {most:,} pixels that are taken; send a whole and "
            "smaller one."
        ) from error
    if not frames:
        raise ValueError(
            f"a picture of {len(data):,} bytes holds nothing that can be shown: it is damaged."
        )
    return frames[0]


def fitted(picture: np.ndarray, size: Size) -> np.ndarray:
    """Return an RGB picture uint8 [h, w, 3] in another size, scaled as frames of a file are."""
    if picture.shape[:2] == tuple(size):
        return picture
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return np.ascontiguousarray(drawn(VideoReformatter(), frame, size, (False, False, False)))


def encode_png(picture: np.ndarray) -> bytes:
    """Return an RGB picture uint8 [h, w, 3] as a PNG file."""
    context: Any = av.CodecContext.create("png", "w")
    context.height, context.width = picture.shape[:2]
    context.pix_fmt, context.time_base = "rgb24", Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])

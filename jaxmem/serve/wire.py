"""What clients send, read with its limits: bodies, pictures, sound, numbers."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np

from jaxmem.data.media.picture import decode_picture
from jaxmem.serve.limits import Limits, RefusedError, shown
from jaxmem.serve.served import Served

MOST_SECONDS = 1e12
"""Of a time that a client gives: its clock may begin anywhere."""


def read_json(data: str | bytes) -> dict[str, Any]:
    """Return the object that a message or a body is; an empty body is an empty one.

    Raises:
      RefusedError: if it is none.
    """
    if not data.strip():
        return {}
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"this is no JSON ({error}): send an object.", "bad_json") from error
    if not isinstance(found, dict):
        raise RefusedError(f"expected an object, got {shown(found)}.", "bad_json")
    return found


async def read_body(chunks: AsyncIterator[bytes], most: int) -> bytes:
    """Return a body of at most so many bytes.

    Raises:
      RefusedError: if it has more; the rest is not read.
    """
    parts, total = [], 0
    async for chunk in chunks:
        total += len(chunk)
        if total > most:
            raise too_large("a body", most)
        parts.append(chunk)
    return b"".join(parts)


def too_large(what: str, most: int) -> RefusedError:
    """Return the refusal of something that has too many bytes."""
    return RefusedError(f"{what} of more than {most:,} bytes is not taken.", "too_large", 413)


def read_base64(given: object, what: str, most: int) -> bytes:
    """Return the bytes of a base64 text, or of a data: address.

    Raises:
      RefusedError: if it is none, or has too many.
    """
    if not isinstance(given, str):
        raise RefusedError(f"{what} must be base64 text, got {shown(given)}.")
    text = given.partition(",")[2] if given.startswith("data:") else given
    if len(text) > most * 4 / 3 + 8:
        raise too_large(what, most)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(f"{what} is no base64 ({error}).") from error


def read_number(given: Any, what: str) -> float | None:
    """Return a time in seconds; None where none is given.

    Raises:
      RefusedError: if it is none.
    """
    if given is None:
        return None
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if not number or not abs(given) <= MOST_SECONDS:
        raise RefusedError(f"{what} must be a number of seconds, got {shown(given)}.")
    return float(given)


def read_pace(given: object) -> float | None:
    """Return seconds of stream a second; None where none are given.

    Raises:
      RefusedError: if they are none.
    """
    pace = read_number(given, "pace")
    if pace is not None and not pace > 0:
        raise RefusedError(f"pace must be seconds of stream a second, got {pace:g}.")
    return pace


def read_sound(data: bytes) -> np.ndarray:
    """Return samples float32 [n] of 16 bits each, low byte first.

    Raises:
      RefusedError: if there is half a sample.
    """
    if len(data) % 2:
        raise RefusedError(f"audio has {len(data):,} bytes, which is half a sample: send PCM16.")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768


def push(
    served: Served, picture: np.ndarray | None, samples: np.ndarray | None, at: float | None
) -> tuple[int, int]:
    """Give a picture or sound, or both, to all sessions that see a stream.

    Args:
      served: one of them.
      picture: uint8 [h, w, 3].
      samples: float32 [n] of 16 kHz.
      at: their time; None: they came now.

    Returns:
      Pieces that were complete by that, and chunks that were dropped for them, in this session.

    Raises:
      ValueError: as `Served.push`.
    """
    now, found = time.monotonic(), (0, 0)
    served.live.check_open()
    for one in served.group:
        counts = one.push(picture, samples, at, now)
        found = counts if one is served else found
    return found


def read_pushed(
    served: Served, message: Mapping[str, Any], limits: Limits
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the picture and the samples of a message with `image` and `audio` in base64.

    Raises:
      ValueError: if it holds none, or something that cannot be decoded.
    """
    picture = samples = None
    image, audio = message.get("image"), message.get("audio")
    if image is None and audio is None:
        raise RefusedError("there is no picture and no sound: give image or audio as base64.")
    if audio is not None:
        samples = read_sound(read_base64(audio, "audio", limits.frame_bytes))
    if image is not None:
        picture = read_picture(served, read_base64(image, "image", limits.frame_bytes), limits)
    return picture, samples


def read_picture(served: Served, data: bytes, limits: Limits) -> np.ndarray:
    """Return an encoded picture uint8 [h, w, 3] in the size that a session's model sees.

    Raises:
      ValueError: if it is damaged or has too many pixels.
    """
    size = served.media.size
    assert isinstance(size, tuple)
    return decode_picture(data, size, limits.pixels)

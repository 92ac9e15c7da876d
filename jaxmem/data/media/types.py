"""What a media reader gives out: pieces, what is known of the source, and how it ended."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jaxmem.data.media.video import Size


class Piece(NamedTuple):
    """One piece of media. All pieces of a reader have the same shapes."""

    start: float  # media time in seconds; 0 is the first decoded picture or sample
    frames: np.ndarray  # uint8 [F, h, w, 3], RGB, upright
    samples: np.ndarray  # float32 [sample_rate * piece_seconds], mono
    has_video: bool  # any of `frames` is real rather than black padding
    has_audio: bool  # any of `samples` is real rather than silent padding
    valid_seconds: float  # less than the piece's length only in a ragged last piece


class End(NamedTuple):
    """Where and why the media ended."""

    time: float  # media time in seconds
    reason: str
    kind: str  # "end", "stop" (the caller's limit), "damaged" or "stalled"


@dataclass(frozen=True)
class MediaInfo:
    """What is known about a source once its first frames are decoded."""

    source: str
    format: str
    duration: float | None  # declared seconds of media time; None: unknown or guessed
    start_time: float  # the source's own stamp of media time 0, seconds
    video_codec: str | None
    native_size: Size | None  # (h, w), upright
    size: Size  # (h, w) of the pieces' frames; (0, 0): no video and no size asked for
    frame_rate: float | None  # as the container claims it; may be nonsense
    rotation: int  # degrees counter-clockwise that the frames were turned by
    audio_codec: str | None
    audio_rate: int | None  # samples per second, native
    audio_layout: str | None
    video_streams: int
    audio_streams: int

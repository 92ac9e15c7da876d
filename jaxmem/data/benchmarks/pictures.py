"""Videos that are stored as pictures: a folder of them, or an array of frames (.npy), silent."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import av
import numpy as np

from jaxmem.data.benchmarks.videos import PICTURES
from jaxmem.data.media.events import Event, Log
from jaxmem.data.media.types import End, MediaInfo, Piece
from jaxmem.data.media.video import Size


class Pictures:
    """Reads pictures as `jaxmem.data.media.media.open_media` reads a film: pieces with frames.

    The frame of a time is the last picture that is shown by then.

    Attributes:
      info: what is known of them.
      end: where they ended; None: not yet.
    """

    def __init__(
        self,
        path: Path,
        stored: float,
        *,
        fps: float,
        piece_seconds: float,
        size: Size | Callable[[int, int], Size],
        sample_rate: int,
        start: float = 0.0,
        stop: float | None = None,
    ):
        """Look at the first picture.

        Args:
          path: of a folder whose pictures are in the order of their names, or of an array
            [N, h, w, 3] of uint8.
          stored: pictures a second.
          fps: frames a second to give out; `piece_seconds`, `size`, `sample_rate`, `start` and
            `stop` likewise: those of `open_media`.

        Raises:
          ValueError: if there is no picture.
        """
        self._stored, self._frames, self._seconds = (
            stored,
            round(fps * piece_seconds),
            piece_seconds,
        )
        self._samples = round(sample_rate * piece_seconds)
        self._pictures = _array(path) if path.suffix == ".npy" else _names(path)
        first = self._picture(0)
        if first is None:
            raise ValueError(f"{path}: its first picture cannot be read")
        native = (first.height, first.width)
        self._size = size(*native) if callable(size) else size
        length = len(self._pictures) / stored
        self._at, self._stop = start, length if stop is None else min(stop, length)
        self._shown: np.ndarray | None = None
        self._log = Log()
        self.end: End | None = None
        self.info = MediaInfo(
            source=str(path), format="pictures", duration=length, start_time=0.0,
            video_codec="pictures", native_size=native, size=self._size, frame_rate=stored,
            rotation=0, audio_codec=None, audio_rate=None, audio_layout=None, video_streams=1,
            audio_streams=0,
        )  # fmt: skip

    @property
    def events(self) -> list[Event]:
        """What happened: pictures that cannot be read; the one before stays."""
        return self._log.events

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        if self._at >= self._stop - 1e-6:
            self.end = self.end or End(self._at, "the pictures are over", "end")
            raise StopIteration
        start, step = self._at, self._seconds / self._frames
        frames = [self._frame(start + (i + 0.5) * step) for i in range(self._frames)]
        self._at += self._seconds
        valid = min(self._seconds, self._stop - start)
        silence = np.zeros(self._samples, np.float32)
        return Piece(start, np.stack(frames), silence, True, False, valid)

    def _frame(self, time: float) -> np.ndarray:
        number = min(math.floor(time * self._stored + 1e-6), len(self._pictures) - 1)
        found = self._picture(number)
        if found is not None:
            height, width = self._size
            found = found.reformat(width=width, height=height, format="rgb24")
            self._shown = found.to_ndarray()
        else:
            self._log(time, "damaged", f"picture {number} cannot be read")
        return np.zeros((*self._size, 3), np.uint8) if self._shown is None else self._shown

    def _picture(self, number: int) -> Any:
        """Return a picture as PyAV has it; None if it cannot be read."""
        one = self._pictures[number]
        if isinstance(one, np.ndarray):
            return av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24")
        try:
            with av.open(str(one)) as container:
                return next(container.decode(video=0))
        except (av.FFmpegError, OSError, StopIteration, IndexError):
            return None

    def close(self) -> None:
        """Let go of the pictures."""
        self._pictures = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _array(path: Path) -> Any:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no array: {error}") from error
    if found.ndim != 4 or found.shape[-1] != 3 or found.dtype != np.uint8 or not len(found):
        shape = f"{found.shape} of {found.dtype}"
        raise ValueError(f"{path} holds {shape}, expected frames [N, h, w, 3] of uint8")
    return found


def _names(path: Path) -> list[Path]:
    found = [one for one in sorted(path.iterdir()) if one.suffix.lower() in PICTURES]
    if not found:
        raise ValueError(f"{path}: there is no picture in the folder")
    return found

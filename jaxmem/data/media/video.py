"""The video track: the picture shown at a time. See docs/media.md."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import ColorRange, VideoReformatter

from jaxmem.data.media.demux import Clock, Decoder, Packets
from jaxmem.data.media.events import Log
from jaxmem.data.media.library import ONE_THREAD, SCALING
from jaxmem.data.media.timeline import AHEAD

Size = tuple[int, int]

HOLD = 10.0
"""Seconds that the last good picture is held at most while no key frame comes."""
GAP = 1.0
"""Seconds without pictures, beyond the usual distance of frames, that make an event."""
EPS = 1e-6  # s; stamps are rounded to the container's time base


class _Shot(NamedTuple):
    """A decoded frame; native pixels, not RGB."""

    time: float  # media time in seconds
    frame: Any
    turn: tuple[bool, bool, bool]  # its `orientation`


def orientation(frame: Any) -> tuple[bool, bool, bool]:
    """(transpose, then flip left-right, then flip up-down) that shows a frame upright.

    From the frame's display matrix (x' = a x + c y, y' = b x + d y, y down), to the nearest of the
    eight orientations.
    """
    try:
        matrix = np.frombuffer(bytes(frame.side_data[SideData.DISPLAYMATRIX]), np.int32)
    except KeyError:
        return False, False, False
    except Exception:  # one entry that the library does not know hides all others
        return _TURNS[round(frame.rotation / 90) % 4]
    a, b, _, c, d = matrix[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


_TURNS = (
    (False, False, False),
    (True, False, True),
    (False, True, True),
    (True, True, False),
)
"""`orientation` for 0, 90, 180 and 270 degrees counter-clockwise."""


class VideoTrack:
    """The picture shown at any non-decreasing sequence of times."""

    def __init__(
        self,
        packets: Packets,
        log: Log,
        size: Size | Callable[[int, int], Size] | None,
        limit: float | None,
    ) -> None:
        self.clock = Clock("video", log, packets.beyond)
        self.decoder = Decoder(packets, "video", log)
        self.stream = self.decoder.stream
        self.log = log
        self.limit = math.inf if limit is None else float(limit)
        self._wanted = size
        self.size: Size | None = None  # of the pictures given out
        self.native: Size | None = None  # upright, of the latest frame
        self.rotation: int | None = None  # degrees counter-clockwise, of the latest frame
        self._turn = (False, False, False)  # its `orientation`
        self._scaler = VideoReformatter()
        rate = self.stream.average_rate
        # Some containers claim 1000 or 90000 frames per second.
        self.interval = 1 / float(rate) if rate and 1 <= rate <= 300 else 0.04
        self.restart()

    def restart(self) -> None:
        """Forgets all frames: for a first start, and after a seek."""
        self.decoder.restart()
        self._end = 0.0
        self.first: float | None = None
        self._time = 0.0  # of the newest decoded frame
        self._held: float | None = None  # since when a good picture is held, media time in s
        self._unsure: float | None = None  # a time asked for before all frames for it had come
        self._next: _Shot | None = None
        self._shown: _Shot | None = None
        self._picture: np.ndarray | None = None  # of _shown, once asked for

    @property
    def ended(self) -> bool:
        """Whether the picture in hand is the last one."""
        if self._next is not None:
            return self._next.time >= self.limit - EPS
        return self.decoder.ended

    @property
    def end(self) -> float:
        """Media time in seconds at which the newest decoded frame stops being shown."""
        return min(self._end, self.limit)

    def prime(self) -> float | None:
        """Decodes the first frame; its raw stamp in seconds (0.0 without one), None if none."""
        frame = self.decoder.next(self.end)
        if frame is None:
            return None
        stamp = self.decoder.stamp(frame)
        self._look(frame)
        self._next = _Shot(0.0, frame, self._turn)
        return 0.0 if stamp is None else stamp

    def place(self) -> None:
        """Gives the primed frame its media time, once the clock's origin is known."""
        if self._next is not None:
            self._next = self._date(self._next.frame, None)

    def advance(self, until: float) -> None:
        """Decodes up to and with the first frame after `until`, as far as frames come."""
        while True:
            if self._next is None:
                frame = self.decoder.next(self.end)
                if frame is None:
                    return
                shot = self._date(frame, self._end if self.first is not None else None)
                if self._is_held(shot):
                    continue
                self._next = shot
            if self._next.time > until + EPS or self._next.time >= self.limit - EPS:
                return
            self._shown, self._next = self._next, None
            self._picture = None

    def _is_held(self, shot: _Shot) -> bool:
        """Whether the last good picture is held instead of a frame built on damaged ones."""
        if self.decoder.broken is None or self._shown is None:
            if self._held is not None:
                self.log.lose("pictures", shot.time - self._held)
            self._held = None
            return False
        if self._held is None:
            self._held = shot.time
        if shot.time - self._held <= HOLD:
            return True
        self.decoder.broken = None  # no key frame may ever come
        return self._is_held(shot)

    def picture(self, t: float, before: float) -> np.ndarray | None:
        """uint8 [h, w, 3] shown at `t`: the last frame whose stamp is <= t.

        Ahead of the first frame, the first one if its stamp is < `before`; else None.
        """
        self.advance(t)
        if self._next is None and not self.decoder.ended:
            self._unsure = t
        if self._shown is not None:
            if self._picture is None:
                self._picture = self._draw(self._shown)
            return self._picture
        if self._next is not None and self._next.time < min(before, self.limit) - EPS:
            self._shown, self._next = self._next, None
            self._picture = self._draw(self._shown)
            return self._picture
        return None

    def _date(self, frame: Any, expected: float | None) -> _Shot:
        """Gives a frame its media time; also keeps `first`, `end` and the frame interval."""
        t = self.clock(self.decoder.stamp(frame), expected)
        if self.first is None:
            self.first = t
        else:
            gap = t - self._time
            t = max(t, self._time)  # a late frame is shown at once
            if 0.001 <= gap <= 1.0:
                self.interval = gap
        base = frame.time_base or self.stream.time_base
        length = float(frame.duration * base) if frame.duration and base else 0.0
        length = length if length <= AHEAD else 0.0
        if expected is not None and t - expected > GAP + self.interval:
            missing = f"{t - expected:.3f} s without pictures; the last one is held"
            self.log(expected, "video_gap", missing)
            self.log.lose("pictures", t - expected)
        if self._unsure is not None and t <= self._unsure:
            self.log(t, "video_late", "pictures came after the time they belong to was given out")
        self._unsure = None
        self._time = t
        self._end = t + (length if length > 0 else self.interval)
        self._look(frame)
        return _Shot(t, frame, self._turn)

    def _look(self, frame: Any) -> None:
        """Notices the frame's native size, and chooses the size of the pictures once."""
        if frame.rotation != self.rotation:
            # Not for every frame: looking at side data makes a reference cycle, and the frame
            # then holds its memory until the garbage collector runs.
            self.rotation, self._turn = frame.rotation, orientation(frame)
        native = (frame.height, frame.width)
        if self._turn[0]:
            native = native[::-1]
        if native == self.native:
            return
        if self.native is not None:
            self.log(
                self._time,
                "resolution",
                f"{self.native[0]}x{self.native[1]} -> {native[0]}x{native[1]} (h x w); pictures "
                f"stay {self.size}",
            )
        self.native = native
        if self.size is None:
            self.size = check_size(
                self._wanted(*native) if callable(self._wanted) else self._wanted or native
            )

    def _draw(self, shown: _Shot) -> np.ndarray:
        assert self.size is not None  # set when the first frame was seen
        t, frame, turn = shown
        try:
            return drawn(self._scaler, frame, self.size, turn)
        except (av.FFmpegError, ValueError, MemoryError) as error:
            self.log(t, "damaged", f"video: a frame cannot be converted to RGB ({error})")
            return np.zeros((*self.size, 3), np.uint8)


def drawn(
    scaler: VideoReformatter, frame: Any, size: Size, turn: tuple[bool, bool, bool]
) -> np.ndarray:
    """Scales, converts and turns a frame; nothing in RGB is ever larger than the picture.

    Args:
      scaler: may be used again for the frames that follow.
      frame: as it was decoded.
      size: (h, w) of the picture.
      turn: its `orientation`.

    Returns:
      uint8 [h, w, 3].
    """
    transpose, mirror, flip = turn
    h, w = size[::-1] if transpose else size
    picture = scaler.reformat(
        frame,
        width=w,
        height=h,
        format="rgb24",
        interpolation=SCALING,
        dst_color_range=ColorRange.JPEG,
        **ONE_THREAD,
    ).to_ndarray()
    if transpose:
        picture = picture.transpose(1, 0, 2)
    if mirror:
        picture = picture[:, ::-1]
    return picture[::-1] if flip else picture


def check_size(size: Any) -> Size:
    """`size` as two positive ints (h, w); a ValueError if it is something else."""
    try:
        h, w = (int(n) for n in size)
    except (TypeError, ValueError):
        h = w = 0
    if h < 1 or w < 1:
        raise ValueError(
            f"size must be (height, width) in pixels, both positive, got {size!r}; or None for "
            "the native size, or a function (h, w) -> (h, w)"
        )
    return h, w

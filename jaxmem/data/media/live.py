"""A reader that may be closed while another thread reads, and that opens a lost source again."""

import math
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxmem.data.media.events import Event
from jaxmem.data.media.reader import MediaReader
from jaxmem.data.media.source import Found, Waiting, close
from jaxmem.data.media.types import End, Piece

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # s, before a lost source is opened again
ATTEMPTS = 10  # without a single piece, then a lost source is given up; `keep_on` sets no end
LOST, RESUMED = "stalled", "resumed"  # kinds of events
_JOIN = 0.1  # s that `close` waits for a thread that reads


class LiveReader(MediaReader):
    """`MediaReader` for sources that keep one waiting.

    FFmpeg must not be closed while a thread is inside it. Whoever calls `close` meanwhile leaves
    that to the thread, which does it on its way out.
    """

    def __init__(
        self,
        *arguments: Any,
        found: Found,
        closing: threading.Event,
        **settings: Any,
    ) -> None:
        """Reads as `MediaReader` does.

        `closing` ends all waiting; `again`, if set, opens a lost source from `start` to `stop`.
        """
        self._found, self._closing = found, closing
        self.again: Callable[..., MediaReader] | None = None
        self._forever = False
        self._inside = threading.Lock()
        self._closed = False
        self._part: MediaReader | None = None  # the source, opened again
        self._told = 0  # events of that
        self._shift = 0.0  # of its media time
        self._attempts = 0  # since the last piece
        super().__init__(*arguments, **settings)

    def __next__(self) -> Piece:
        with self._inside:
            try:
                if self._closing.is_set():
                    raise StopIteration
                return self._read()
            finally:
                if self._closing.is_set():
                    self._close()

    def keep_on(self, told: Callable[[Event], None]) -> None:
        """Opens a lost source again for as long as it takes, and tells all events as they come."""
        self._forever, self._log.told = True, told

    def close(self) -> None:
        """Closes the source, or lets the thread that reads it do so; never waits for data."""
        self._closing.set()
        if self._inside.acquire(timeout=_JOIN):
            try:
                self._close()
            finally:
                self._inside.release()
        elif self.end is None:
            self.end = End(self._reached, "closed by the caller", "stop")

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._part is not None:
                self._part.close()
            super().close()
            close(self._found)

    @property
    def waits(self) -> bool:
        """Whether the source gives its media as time goes by: an address, a device, a pipe."""
        return self._found.remote or isinstance(self._found.opened, Waiting)

    @property
    def _reached(self) -> float:
        """Media time in seconds up to which pieces were given out."""
        return self._start + self._count * self._seconds

    def _read(self) -> Piece:
        while True:
            try:
                piece = super().__next__() if self._part is None else self._continue(self._part)
                self._attempts = 0
                return piece
            except StopIteration:
                if self._resume():
                    continue
                why = getattr(self._found.opened, "late", None)  # of a growing file
                if why is not None and self.end is not None:
                    self._log(self.end.time, LOST, why)
                raise

    def _continue(self, part: MediaReader) -> Piece:
        """The next piece of a source that was opened again, with its events and its end."""
        try:
            piece = next(part)
        except StopIteration:
            part.close()
            assert part.end is not None  # a reader that is over says why
            at, reason, kind = part.end
            if kind == "stop" and not self._closing.is_set():  # the part's time begins anew
                reason = f"stop={self._stop:g} s was reached"
            self.end = End(at + self._shift, reason, kind)
            raise
        finally:
            for event in part.events[self._told :]:
                self._log(event.time + self._shift, event.kind, event.message)
            self._told = len(part.events)
        self._count += 1
        return piece._replace(start=piece.start + self._shift)

    def _resume(self) -> bool:
        """Opens a lost source again; False if it is not lost, or stays so."""
        end, recorded = self.end, self.info.duration is not None
        lost = end is not None and (end.kind in ("stalled", "damaged") or not recorded)
        if self.again is None or end is None or not lost or end.kind == "stop":
            return False
        why = "the source ended" if end.kind == "end" else end.reason
        self._log(end.time, LOST, f"{why}; opening the source again")
        begin = time.monotonic()
        while self._forever or self._attempts < ATTEMPTS:
            pause = min(FIRST_PAUSE * 2 ** min(self._attempts, ATTEMPTS), LONGEST_PAUSE)
            self._attempts += 1
            if self._closing.wait(pause):
                return False
            # A recording goes on from there, a live source is what it is now.
            start, self._shift = (self._reached, 0.0) if recorded else (0.0, self._reached)
            stop = None if math.isinf(self._stop) else self._stop - self._shift
            try:
                self._part, self._told = self.again(start=start, stop=stop), 0
            except ValueError:
                continue
            self.end = None
            waited = time.monotonic() - begin
            self._log(self._reached, RESUMED, f"after {waited:.1f} s without the source")
            return True
        self.end = end._replace(reason=f"{why}; opening it again failed ({ATTEMPTS} attempts)")
        return False

"""Ctrl-C as a request: what is running is finished, and the stream so far stays answerable."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stop:
    """A handler of the interrupt signal; `wanted` says whether it came.

    A step of a stream donates its carry, so cutting the step short would lose the stream. The first
    interrupt is therefore only noted while something runs; a second one, or one that comes while
    the media is waited for, raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._idle = False

    def __call__(self, number: int, frame: object) -> None:
        """Handle the signal."""
        del number, frame
        again, self.wanted = self.wanted, True
        if self._idle or again:
            raise KeyboardInterrupt

    def next(self, iterator: Iterator[T]) -> T | None:
        """Return the next item; None at the end, or when the wait for it is interrupted."""
        try:
            self._idle = True
            return next(iterator, None)
        except KeyboardInterrupt:
            return None
        finally:
            self._idle = False


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Handle Ctrl-C while the context is open (on the main thread, the only one that gets it)."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)

"""Ctrl-C as a request: what is running is finished, and the stream so far stays answerable."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from jaxmem.data.media.prefetch import left_running

T = TypeVar("T")

ABORTED = 130
"""Exit status of a run that was interrupted before anything was streamed."""
NOTHING = "interrupted before there was anything to report"
PATIENCE = 0.8
"""Seconds until a compiler, which does not hear the signal, is cut off; there is nothing to lose.
"""


class Stop:
    """A handler of the interrupt signal; `wanted` says whether it came.

    A step of a stream donates its carry, so cutting the step short would lose the stream. The first
    interrupt is therefore only noted while something runs; a second one, or one that comes while
    the media is waited for, raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.streamed = False  # there is something to report
        self.tidy: Callable[[], object] = lambda: None  # what a sudden end must do
        self._idle = False

    def __call__(self, number: int, frame: object) -> None:
        """Handle the signal."""
        del number, frame
        again, self.wanted = self.wanted, True
        if self._idle or again:
            raise KeyboardInterrupt

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Let the first interrupt raise as well: while there is nothing yet that could be lost."""
        try:
            self._idle = True
            yield
        finally:
            self._idle = False
        if self.wanted:  # noted before
            raise KeyboardInterrupt

    def next(self, iterator: Iterator[T]) -> T | None:
        """Return the next item; None at the end, or when the wait for it is interrupted."""
        try:
            with self.raising():
                return next(iterator, None)
        except KeyboardInterrupt:
            return None


@contextmanager
def interruptible() -> Iterator[Stop]:
    """Handle Ctrl-C while the context is open (on the main thread, the only one that gets it)."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before, hook = signal.signal(signal.SIGINT, stop), sys.unraisablehook

    def once_more(swallowed: Any) -> None:
        """Repeat an interrupt that was raised inside a library's callback, which swallowed it."""
        if not issubclass(swallowed.exc_type, KeyboardInterrupt):
            hook(swallowed)
            return
        stop.wanted = False
        threading.Timer(0.05, _interrupt_main).start()

    sys.unraisablehook = once_more
    try:
        with _cut_off(stop):
            yield stop
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook


@contextmanager
def _cut_off(stop: Stop) -> Iterator[None]:
    """End the process soon after an interrupt that the main thread is too busy to see."""
    if os.name != "posix":
        yield
        return
    out, into = os.pipe()
    os.set_blocking(into, False)
    before = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    left = threading.Event()

    def watch() -> None:
        times = 0
        while came := os.read(out, 1):
            if came[0] != signal.SIGINT:
                continue
            times += 1
            if left.wait(PATIENCE):
                break
            # The handler has not even run, or has run before and does not now.
            if not stop.streamed and (times > 1 or not stop.wanted):
                stop.tidy()
                print(f"\n{NOTHING}", file=sys.stderr, flush=True)
                os._exit(ABORTED)
        os.close(out)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        left.set()
        os.close(into)


def _interrupt_main() -> None:
    """Send the signal to the main thread, so that it wakes up if it waits."""
    number = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and number is not None:
        signal.pthread_kill(number, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)


def leave_threads_behind(status: int, running: Callable[[], bool] = left_running) -> None:
    """End the process without tidying up, if a thread is then still `running` inside a library.

    Such a thread cannot be stopped, and the library must not be torn down under it.
    """

    def leave() -> None:
        if running():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    if running():
        atexit.register(leave)

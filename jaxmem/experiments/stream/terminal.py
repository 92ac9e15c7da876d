"""Questions typed on the terminal, read on a thread of their own while the stream runs."""

from __future__ import annotations

import codecs
import os
import queue
import re
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

POLL_SECONDS = 0.2
ESCAPE = re.compile(r"\x1b(\[[0-9;]*[A-Za-z~]|O.)")
"""What the keys of arrows and functions send."""


class Terminal:
    """Lines of a source that blocks, read ahead on a daemon thread."""

    def __init__(self, read: Callable[[], str | None], terminal: Keyboard | None = None):
        """Start to read: `read` waits for a line and returns it, or None after the last one."""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._terminal = terminal

        def loop() -> None:
            while (line := read()) is not None:
                self._lines.put(line.strip())
            self._lines.put(None)

        self._thread = threading.Thread(target=loop, name="jaxmem-typed", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the terminal back, and stop reading it."""
        if self._terminal is not None:
            self._terminal.close()
            self._thread.join(5 * POLL_SECONDS)

    @property
    def unfinished(self) -> str:
        """Return what has been typed of the next line, where the terminal does not show it."""
        return "" if self._terminal is None else self._terminal.unfinished

    def taken(self) -> list[str]:
        """Return the lines typed since the last call, without waiting; empty ones are left out."""
        lines = []
        while True:
            try:
                line = self._lines.get_nowait()
            except queue.Empty:
                return lines
            if line is None:
                self._lines.put(None)  # for whoever asks next
                return lines
            if line:
                lines.append(line)

    def until_empty(self, ready: Callable[[], None]) -> Iterator[str]:
        """Yield lines as they are typed until an empty one, the end of the source, or Ctrl-C.

        `ready` is called before each wait, to print a sign that a line is waited for.
        """
        if self._terminal is not None:
            self._terminal.restore()
        while True:
            try:
                ready()
                line = self._lines.get()
            except KeyboardInterrupt:
                return
            if not line:
                return
            yield line


class Keyboard:
    """A terminal read byte by byte, so that what is typed can be shown beside a moving bar."""

    def __init__(self, number: int, *, hidden: bool):
        """Take over the terminal of a file descriptor.

        `hidden`: it shows nothing of what is typed; `unfinished` is there to be shown.
        """
        import termios
        import tty

        self.unfinished, self._number, self._closed = "", number, False
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._lines: deque[str | None] = deque()
        self._before: Any = None
        if hidden:
            self._before = termios.tcgetattr(number)
            tty.setcbreak(number, termios.TCSADRAIN)  # Ctrl-C still interrupts

    def restore(self) -> None:
        """Let the terminal show and edit lines by itself, as before."""
        if self._before is not None:
            import termios

            before, self._before = self._before, None
            termios.tcsetattr(self._number, termios.TCSADRAIN, before)

    def close(self) -> None:
        """Restore the terminal, and let `read` return soon."""
        self._closed = True
        self.restore()

    def read(self) -> str | None:
        """Return the next line; None at the end, or when the terminal was closed."""
        while not self._lines and not self._closed:
            if not in_foreground(self._number):  # reading would stop the process
                time.sleep(POLL_SECONDS)
            elif select.select([self._number], [], [], POLL_SECONDS)[0] and not self._closed:
                self._take()
        return None if self._closed else self._lines.popleft()

    def _take(self) -> None:
        try:
            found = os.read(self._number, 4096)
        except OSError:  # the terminal is gone
            found = b""
        if not found:
            self._lines.append(None)
        for sign in ESCAPE.sub("", self._decode(found)):
            if sign in "\r\n":
                self._lines.append(self.unfinished)
                self.unfinished = ""
            elif sign in "\x7f\b":
                self.unfinished = self.unfinished[:-1]
            elif sign == "\x15":  # Ctrl-U
                self.unfinished = ""
            elif sign == "\x04" and not self.unfinished:  # Ctrl-D
                self._lines.append(None)
            elif sign.isprintable():
                self.unfinished += sign


def in_foreground(number: int) -> bool:
    """Return whether this process may read the terminal."""
    try:
        return os.tcgetpgrp(number) == os.getpgrp()
    except OSError:
        return False


@contextmanager
def typed_lines(*, wanted: bool, hidden: bool) -> Iterator[Terminal | None]:
    """Read lines of standard input while the context is open.

    None: not `wanted`, or standard input is no terminal that can be read so (a job in the
    background, a system without `termios`). `hidden`: see `Keyboard`.
    """
    terminal = None
    if wanted and sys.stdin.isatty():
        try:
            if in_foreground(sys.stdin.fileno()):
                terminal = Keyboard(sys.stdin.fileno(), hidden=hidden)
        except (ImportError, OSError, AttributeError):
            terminal = None
    if terminal is None:
        yield None
        return
    typed = Terminal(terminal.read, terminal)
    try:
        yield typed
    finally:
        typed.close()

"""What a source is: file, address, device, pipe or growing file, in the form that PyAV takes."""

import os
import re
import select
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = re.compile(rf"\A({_ADDRESS.pattern})[^/?#]*@")
# Forms of FFmpeg without a double slash.
_PREFIXES = ("async:", "bluray:", "cache:", "concat:", "concatf:", "crypto:", "data:", "fd:")
_STANDARD_INPUT = ("-", "pipe:", "pipe:0")
_LISTS = (".m3u8", ".m3u", ".mpd", ".sdp")  # files that say where the media is
_POLL = 0.1  # s


def without_secret(text: str) -> str:
    """Returns an address, or a text that begins with one, without its name and password."""
    return _SECRET.sub(r"\1", text, count=1)


class Found(NamedTuple):
    """A source as PyAV takes it."""

    name: str  # for messages
    opened: Any
    seekable: bool  # whether seeking is worth a try
    remote: bool  # an address or a device, which PyAV's time limit is for


class Waiting:
    """A file whose next bytes may be long in coming; without `seek`, which pipes lack as well."""

    def __init__(
        self,
        number: int,
        timeout: float | None,
        closing: threading.Event,
        *,
        at_end: Callable[[bool], str] = lambda begun: "",
        grows: bool = False,
    ) -> None:
        """Reads a file descriptor.

        `at_end` says, once nothing more is there, what is waited for, if anything; it is told
        whether anything was read. A file that `grows` ends there when time is up, others fail.
        """
        self._number, self._timeout, self._closing = number, timeout, closing
        self._at_end, self._grows, self._begun = at_end, grows, False
        self.late: str | None = None  # why a growing file is taken to be complete

    def read(self, size: int) -> bytes:
        """At most `size` bytes, none at the end; a TimeoutError if none came in time."""
        begin, why = time.monotonic(), self._at_end(self._begun) or "no data came"
        while self.late is None and not self._closing.is_set():
            data = self._take(size)
            if data:
                self._begun = True
                return data
            if data is not None:
                why = self._at_end(self._begun)
                if not why:
                    return b""
                self._closing.wait(_POLL)
            if self._timeout is not None and time.monotonic() - begin > self._timeout:
                why = f"{why} for {self._timeout:g} s"
                if not self._grows:
                    raise TimeoutError(why)
                self.late = why
        return b""

    def _take(self, size: int) -> bytes | None:
        """What is there, b"" at the end of what is there, None if nothing came for a moment."""
        if not self._grows and not select.select([self._number], [], [], _POLL)[0]:
            return None
        try:
            return os.read(self._number, size)
        except BlockingIOError:
            return None

    def close(self) -> None:
        """Closes the file, unless it is standard input."""
        if self._number > 2:
            os.close(self._number)
            self._number = -1


class _ReadOnly:
    """A file without `seek`, where its descriptor is not to be had or cannot be waited for."""

    def __init__(self, file: Any) -> None:
        self.read = file.read


def find(
    source: Any,
    *,
    format: str | None,
    follow: bool,
    reconnect: bool,
    timeout: float | None,
    closing: threading.Event,
) -> Found:
    """What `open_media` calls a source, as PyAV takes it: no local path is given as an address.

    Raises:
      ValueError: it is nothing of that kind, there is no such file, or `follow` or `reconnect`
        makes no sense for it.
    """
    found, file = _find(source, format, follow, timeout, closing)
    wrong = "follow" if follow and not file else ""
    if reconnect and not found.remote:
        wrong = "reconnect"
    if wrong:
        close(found)
        what = "a file that grows" if wrong == "follow" else "an address or a device"
        raise ValueError(f"{found.name}: {wrong} is for {what}; leave it out")
    return found


def _find(
    source: Any, format: str | None, follow: bool, timeout: float | None, closing: threading.Event
) -> tuple[Found, bool]:
    """The source, and whether it is a regular file."""
    if isinstance(source, str) and source in _STANDARD_INPUT:
        opened, seekable = _standard_input(timeout, closing)
        return Found("<standard input>", opened, seekable, False), False
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        if path.startswith("file:"):
            path = re.sub("^file:(//)?", "", path)
        if path:
            return _path(path, format, follow, timeout, closing)
    elif callable(getattr(source, "read", None)):
        seekable = getattr(source, "seekable", None)
        can_seek = hasattr(source, "seek") and hasattr(source, "tell")
        can_seek = can_seek and (seekable is None or bool(seekable()))
        name = str(getattr(source, "name", f"<{type(source).__name__}>"))
        return Found(name, source, can_seek, False), False
    raise ValueError(
        f"source must be a path, an address, '-' or an object with read(), got {source!r}"
    )


def _path(
    path: str, format: str | None, follow: bool, timeout: float | None, closing: threading.Event
) -> tuple[Found, bool]:
    """A path, address or name of a device, and whether it is a regular file."""
    try:
        mode = 0 if format == "lavfi" else os.stat(path).st_mode
    except (OSError, ValueError):
        mode = 0
    whole = os.path.abspath(path)  # begins with no scheme, whatever the name
    if stat.S_ISREG(mode) and follow:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        what = lambda begun: "nothing was added to the file"
        file = Waiting(number, timeout, closing, at_end=what, grows=True)
        return Found(path, file, False, False), True
    if stat.S_ISREG(mode):
        return Found(path, whole, True, path.lower().endswith(_LISTS)), True
    if stat.S_ISFIFO(mode):
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        nobody = lambda begun: "" if begun else "nobody writes to this pipe: no data came"
        return Found(path, Waiting(number, timeout, closing, at_end=nobody), False, False), False
    address = _ADDRESS.match(path) or path.startswith((*_PREFIXES, "pipe:", "subfile,"))
    if (format is not None and not format.startswith("image2")) or address:
        name, seekable = without_secret(path), path.startswith(("http:", "https:"))
        return Found(name, path, seekable, True), False
    if "%" in path and not mode:  # numbered pictures
        return Found(path, whole, False, False), False
    if not mode:
        raise ValueError(
            f"{path}: cannot be opened: No such file. An address has the form scheme://..., a "
            "device needs its format= (on the command line --format), for example v4l2"
        )
    if stat.S_ISCHR(mode):
        raise ValueError(
            f"{path} is a device: say of which kind with format= (on the command line --format), "
            "for example v4l2 for a camera"
        )
    return Found(path, whole, False, False), False


def _standard_input(timeout: float | None, closing: threading.Event) -> tuple[Any, bool]:
    """What is read, and whether it can be sought."""
    try:
        number = sys.stdin.fileno()
    except (OSError, ValueError, AttributeError):
        number = -1
    if number < 0 or os.name != "posix":
        return _ReadOnly(sys.stdin.buffer), False
    if stat.S_ISREG(os.fstat(number).st_mode):  # `< talk.mp4`, whose index may lie at its end
        return open(number, "rb", closefd=False), True
    return Waiting(number, timeout, closing), False


def close(found: Found) -> None:
    """Closes what `find` opened; what the caller opened stays."""
    if isinstance(found.opened, Waiting):
        found.opened.close()

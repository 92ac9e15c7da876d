"""Open sessions in a folder, so that they outlast their server.

They are saved every so often, and when the server ends.

Sessions that see one stream are saved together, under the name of the first. What is in the folder
belongs to one server at a time: the one whose mark lies beside it. A server that finds another mark
there was taken for dead, and lets its copy go.
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmem.serve.keeping import folders
from jaxmem.serve.limits import RefusedError, checked_name
from jaxmem.serve.reading import Reading
from jaxmem.serve.saved import SavedSession, read_sessions, write_sessions
from jaxmem.serve.served import Served

EVERY = 60.0
"""Seconds between two saves of a session that goes on."""
FIRST = 5.0
"""Seconds after which a new one is saved first, at the latest."""


class TakenError(ValueError):
    """Another server goes on with the sessions."""


class Lasting:
    """The saves of a server's open sessions. Its methods may be called on any thread."""

    def __init__(self, path: Path, every: float | None = None):
        """Save to a folder, which is made.

        Args:
          path: of the folder; servers may share it.
          every: seconds between two saves of a stream; None: it is saved at the end only.

        Raises:
          OSError: if the folder cannot be made.
        """
        self.path, self._every = path.absolute(), every
        self.path.mkdir(parents=True, exist_ok=True)
        self._mark = uuid.uuid4().hex
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._tried: dict[str, tuple[float, Any]] = {}  # when, and how the sessions stood
        self._mine: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Return the names of the streams in the folder, other servers' included."""
        return folders(self.path)

    def due(self, sessions: Sequence[Served]) -> bool:
        """Return whether the sessions of a stream have changed since they were saved, long ago."""
        if self._every is None:
            return False
        now, stream, stand = time.monotonic(), sessions[0].stream, _stand(sessions)
        first = (now + min(self._every, FIRST) - self._every, None)
        when, before = self._tried.setdefault(stream, first)
        fewer = before is not None and [x[0] for x in before] != [x[0] for x in stand]
        return fewer or (stand != before and now - when >= self._every)

    def write(self, sessions: Sequence[Served], readings: Mapping[str, Reading]) -> None:
        """Save the sessions of a stream.

        Raises:
          TakenError: if another server goes on with them.
          ValueError: if one has ended.
          OSError: if they cannot be written.
        """
        stream = sessions[0].stream
        with self._locks[stream]:
            for one in sessions:
                one.live.check_open()
            self._tried[stream] = (time.monotonic(), _stand(sessions))
            if stream not in self._mine:
                self.claim(stream)
            elif not self._has(stream):
                self._mine.discard(stream)
                self._tried.pop(stream)
                raise TakenError("it goes on at another server")
            write_sessions(self.path / stream, sessions, readings)

    def read(self, name: object) -> list[SavedSession]:
        """Return the sessions of a stream; whoever goes on with them claims it.

        Raises:
          ValueError: if there are none, or their save is damaged.
        """
        stream = checked_name(name)
        if not (self.path / stream).is_dir():
            raise RefusedError(f"no session {stream} was left in the folder.", "unknown", 404)
        return read_sessions(self.path / stream)

    def claim(self, stream: str) -> None:
        """Have a stream belong to this server.

        Raises:
          OSError: if the folder cannot be written.
        """
        with self._locks[stream]:
            temporary = self.path / f"{stream}.{self._mark}"
            temporary.write_text(self._mark)
            temporary.replace(self._marked(stream))
            self._mine.add(stream)

    def drop(self, stream: str) -> None:
        """Remove a stream whose sessions have ended, unless it belongs to another server."""
        with self._locks[stream]:
            self._tried.pop(stream, None)
            if stream in self._mine and self._has(stream):
                shutil.rmtree(self.path / stream, ignore_errors=True)
                self._marked(stream).unlink(missing_ok=True)
            self._mine.discard(stream)
        self._locks.pop(stream, None)

    def _marked(self, stream: str) -> Path:
        return self.path / f"{stream}.server"

    def _has(self, stream: str) -> bool:
        try:
            return self._marked(stream).read_text() == self._mark
        except FileNotFoundError:
            return False


def _stand(sessions: Sequence[Served]) -> list[tuple[Any, ...]]:
    """Return what changes when sessions change."""
    return [(one.id, one.seen, one.busy, len(one.questions.waiting)) for one in sessions]

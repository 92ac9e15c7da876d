"""The open sessions of a server: begun where there is room, found by their ids, ended in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jaxmem.serve.engines import Engines
from jaxmem.serve.limits import Limits, RefusedError, checked_name, shown
from jaxmem.serve.listeners import Publish
from jaxmem.serve.live import Live
from jaxmem.serve.question import new_id
from jaxmem.serve.saved import SavedSession
from jaxmem.serve.served import Served
from jaxmem.serve.wanting import Wanted, read_wanted

STOPPING = "the server stops"


class Table:
    """Sessions over a server's engines. Its methods may be called on any thread.

    Attributes:
      engines: that the sessions' streams run on.
      limits: of what clients may do.
      usual: the memory of clients that name none.
      stopping: whether nothing new is begun any more.
      listener: hears the messages of all sessions that begin from then on.
    """

    def __init__(self, engines: Engines, limits: Limits, usual: Wanted):
        """Begin without sessions."""
        self.engines, self.limits, self.usual = engines, limits, usual
        self.stopping = False
        self.listener: Publish = lambda message: None
        self._sessions: dict[str, Served] = {}
        self._lock = threading.RLock()  # of what is in tables
        self._beginning: set[str] = set()  # names of those that wait for an engine

    @property
    def sessions(self) -> list[Served]:
        """Return the open sessions, the oldest first."""
        with self._lock:
            return list(self._sessions.values())

    def get(self, id: object) -> Served:
        """Return a session by its id.

        Raises:
          RefusedError: if there is none.
        """
        with self._lock:
            found = self._sessions.get(id) if isinstance(id, str) else None
        if found is None:
            raise RefusedError(
                f"there is no session {shown(id)}: it has ended, or never was; begin another one.",
                "no_session",
                404,
            )
        return found

    def wanted(self, given: Mapping[str, Any]) -> Wanted:
        """Return the memory that a message or a body names (`wanting.read_wanted`)."""
        return read_wanted(given, self.usual)

    def create(
        self,
        wanted: Sequence[Wanted],
        id: object = None,
        *,
        brief: bool = False,
        lasting: bool = True,
    ) -> list[Served]:
        """Begin a session for every memory; together they see one stream.

        Args:
          wanted: their memories.
          id: of the first; None: any.
          brief: as in `Served`.
          lasting: whether they are saved so that they outlast the server.

        Raises:
          ValueError: if there are too many, or no room for them; none is begun then.
        """
        name = new_id() if id is None else checked_name(id)
        stream = name if lasting else ""
        with all_or_none(self.close, "another memory of it could not begin") as made:
            for one in wanted:
                own = new_id() if made else name
                made.append(self.open(one, own, brief=brief, stream=stream))
        return made

    def open(
        self,
        wanted: Wanted,
        id: object,
        *,
        saved: SavedSession | None = None,
        brief: bool = False,
        stream: str | None = None,
    ) -> Served:
        """Begin one session.

        Args:
          wanted: its memory.
          id: its name; None: any.
          saved: what it goes on with; None: nothing.
          brief: as in `Served`.
          stream: as in `Served`; None: the name.

        Raises:
          ValueError: if there is no room for it.
        """
        name = new_id() if id is None else checked_name(id)
        where, part = (None, None) if saved is None else (saved.where, saved.id)
        make = lambda: self.engines.open(wanted, where, part)
        served = self.begin(name, wanted, make, brief=brief, stream=stream)
        if saved is not None:
            served.live.take_gaps(saved.gaps)
            served.questions.remember(saved.questions, saved.standing)
        return served

    def begin(self, name: str, wanted: Wanted, make: Callable[[], Live], **more: Any) -> Served:
        """Begin a session of the stream that a function makes, if there is room for one.

        The function may have to wait for the compiler; other sessions begin meanwhile.

        Args:
          name: its id.
          wanted: its memory.
          make: makes the stream; it is not called if there are too many sessions.
          more: of `Served`.

        Raises:
          ValueError: if there is no room.
        """
        with self._lock:
            self._check_room(name)
            self._beginning.add(name)
        try:
            served = Served(name, wanted, make(), self.limits, **more)
            served.publish.add(self.listener)
            with self._lock:
                self._sessions[name] = served
        finally:
            with self._lock:
                self._beginning.discard(name)
        if self.stopping:
            self.close(served, STOPPING)
            self.check_running()
        return served

    def _check_room(self, name: str) -> None:
        self.check_running()
        taken = {*self._sessions, *self._beginning, *(one.stream for one in self.sessions)}
        if name in taken:
            raise RefusedError(f"there is a session {name} already; name another.", "taken", 409)
        if len(self._sessions) + len(self._beginning) >= self.limits.sessions:
            raise RefusedError(
                f"{self.limits.sessions} sessions are open, more are not taken: close one, or wait "
                "until one ends.",
                "full",
                503,
            )

    def check_running(self) -> None:
        """Refuse what would begin while the server stops."""
        if self.stopping:
            raise RefusedError(f"{STOPPING}: try again when it runs again.", "stopping", 503)

    def close(self, served: Served, why: str) -> None:
        """End a session."""
        with self._lock:
            if self._sessions.get(served.id) is served:
                del self._sessions[served.id]
        served.close(why)

    def tidy(self) -> None:
        """End the sessions that nothing was heard of for too long, or whose engine failed."""
        now, limits = time.monotonic(), self.limits
        for one in self.sessions:
            seen = one.publish.left if one.plays else max(one.seen, one.publish.left)
            if one.live.closed is not None:
                self.close(one, one.live.closed)
            elif one.questions.writing or (one.busy and not one.plays):
                continue
            elif one.brief and not one.publish.lookers and now - seen > limits.linger:
                self.close(one, f"nobody looked at it for {limits.linger:g} s")
            elif not one.busy and now - one.seen > limits.silence:
                self.close(one, f"it was silent for {limits.silence:g} s")


@contextmanager
def all_or_none(end: Callable[[Served, str], None], why: str) -> Iterator[list[Served]]:
    """Collect sessions that see one stream: all of them begin, or those that did are ended."""
    made: list[Served] = []
    try:
        yield made
    except BaseException:
        for one in made:
            end(one, why)
        raise
    for one in made:
        one.peers = made

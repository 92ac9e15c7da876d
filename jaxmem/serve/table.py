"""The open sessions of a server: begun where there is room, found by their ids, ended in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxmem.serve.engines import Engines
from jaxmem.serve.limits import Limits, RefusedError, checked_name, shown
from jaxmem.serve.listeners import Publish
from jaxmem.serve.live import Live
from jaxmem.serve.question import new_id
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
        self._opening = threading.RLock()  # sessions begin one by one, which may take a compiler

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
        self, wanted: Sequence[Wanted], id: object = None, *, brief: bool = False
    ) -> list[Served]:
        """Begin a session for every memory; together they see one stream.

        Args:
          wanted: their memories.
          id: of the first; None: any.
          brief: as in `Served`.

        Raises:
          ValueError: if there are too many, or no room for them; none is begun then.
        """
        made: list[Served] = []
        try:
            for one in wanted:
                made.append(self.open(one, id if not made else None, brief=brief))
        except BaseException:
            for served in made:
                self.close(served, "another memory of it could not begin")
            raise
        for served in made:
            served.peers = made
        return made

    def open(
        self, wanted: Wanted, id: object, *, saved: Path | None = None, brief: bool = False
    ) -> Served:
        """Begin one session.

        Args:
          wanted: its memory.
          id: its name; None: any.
          saved: folder of the saved stream that it goes on with.
          brief: as in `Served`.

        Raises:
          ValueError: if there is no room for it.
        """
        name = new_id() if id is None else checked_name(id)
        return self.begin(name, wanted, lambda: self.engines.open(wanted, saved), brief)

    def begin(self, name: str, wanted: Wanted, make: Callable[[], Live], brief: bool) -> Served:
        """Begin a session of the stream that a function makes, if there is room for one.

        Raises:
          ValueError: if there is none; the function is not called then.
        """
        with self._opening:
            self._check_room(name)
            served = Served(name, wanted, make(), self.limits, brief=brief)
            served.publish.add(self.listener)
            with self._lock:
                self._sessions[name] = served
        return served

    def _check_room(self, name: str) -> None:
        self.check_running()
        if name in self._sessions:
            raise RefusedError(f"there is a session {name} already; name another.", "taken", 409)
        if len(self._sessions) >= self.limits.sessions:
            raise RefusedError(
                f"{len(self._sessions)} sessions are open, more are not taken: close one, or wait "
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

"""All a server does with its sessions: it keeps, branches and ends them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxmem.serve.engines import Engines
from jaxmem.serve.keeping import Keeping
from jaxmem.serve.lasting import Lasting, TakenError
from jaxmem.serve.limits import Limits, RefusedError, checked_name
from jaxmem.serve.question import new_id
from jaxmem.serve.reading import Reading
from jaxmem.serve.served import Served
from jaxmem.serve.sources import Allowed
from jaxmem.serve.table import STOPPING, all_or_none
from jaxmem.serve.wanting import Wanted
from jaxmem.serve.watching import Watching

RUNNING = ".running"
"""Folder of open sessions in the one for saves: names of those that clients save have no dot."""
NO_SAVES = ("this server keeps no sessions: start it with --saves DIR.", "no_saves", 409)
log = logging.getLogger("jaxmem.serve")


class Hub(Watching):
    """The sessions of a server, over its engines. Its methods may be called on any thread.

    Attributes:
      keeping: where clients save sessions; None: nowhere.
      lasting: where open ones are saved, so that they outlast the server.
    """

    def __init__(
        self,
        engines: Engines,
        limits: Limits | None = None,
        *,
        usual: Wanted = Wanted("omnimem", "96"),  # noqa: B008  it is a constant
        allowed: Allowed | None = None,
        saves: Path | None = None,
        every: float | None = None,
    ):
        """Begin without sessions.

        Args:
          engines: a server's.
          limits: None: those of the class.
          usual: the memory of clients that name none.
          allowed: None: no source but the demo.
          saves: folder for saved sessions.
          every: of `Lasting`.
        """
        super().__init__(engines, limits or Limits(), usual, allowed)
        self.keeping = None if saves is None else Keeping(saves, self.limits.saves)
        self.lasting = None if saves is None else Lasting(saves / RUNNING, every)

    def branch(self, id: object, new: object = None) -> Served:
        """Return a new session that goes on from where another one is, without its source."""
        old, name = self.get(id), new_id() if new is None else checked_name(new, "id of the branch")
        session = old.live.session()
        make = lambda: old.live.engine.open(session)
        branch = self.begin(name, old.wanted, make, brief=old.brief)
        branch.live.take_gaps(old.live.gaps.plain())
        branch.take_pushed(old)
        branch.questions.remember(old.questions.plain(), ())
        return branch

    def close(self, served: Served, why: str) -> None:
        """End a session for good: nothing of it is left in the folder of open ones.

        What failed by itself stays in the folder: a server that starts again goes on with it.
        """
        failed = served.live.closed is not None
        self._end(served, why)
        if self.lasting is not None and not failed and not served.group:
            self.lasting.drop(served.stream)

    def _end(self, served: Served, why: str) -> None:
        super().close(served, why)

    # Keeping.

    def _kept(self) -> Keeping:
        if self.keeping is None:
            raise RefusedError(*NO_SAVES)
        return self.keeping

    def save(self, served: Served) -> str:
        """Save a session, and return the name to restore it by.

        Raises:
          ValueError: if the server keeps none, or keeps too many.
          OSError: if it cannot be written.
        """
        return self._kept().write(served)

    def restore(self, name: object, id: object = None, *, brief: bool = False) -> Served:
        """Return a new session that goes on from a saved one.

        Raises:
          ValueError: if there is none of that name, or another model saved it.
        """
        saved = self._kept().read(name)
        return self.open(saved.wanted, id, saved=saved, brief=brief)

    # Outlasting the server.

    def keep_up(self) -> None:
        """Save the open sessions for which it is time."""
        if self.lasting is None or self.stopping:
            return
        for group in _groups(self.sessions):
            warm = all(one.live.engine.warm for one in group)  # nothing else waits for a compiler
            if not warm or not self.lasting.due(group):
                continue
            try:
                self.lasting.write(group, self._readings)
            except TakenError as error:
                for one in group:
                    self._end(one, str(error))
            except (ValueError, OSError) as error:
                if all(one.live.closed is None for one in group):
                    log.warning("session %s could not be saved: %s", group[0].stream, error)

    def go_on(self, name: object) -> tuple[list[Served], list[str]]:
        """Go on with the sessions of a stream that another server had open.

        Returns:
          The sessions, and what they could not go on with, in words.

        Raises:
          ValueError: if nothing of that name was left, it is open here, or there is no room.
        """
        if self.lasting is None:
            raise RefusedError(*NO_SAVES)
        if any(one.stream == name for one in self.sessions):
            raise RefusedError(f"the session {name} is open here already.", "taken", 409)
        saved, failed = self.lasting.read(name), []
        with all_or_none(self._end, "another memory of it could not go on") as made:
            for one in saved:
                made.append(self.open(one.wanted, one.id, saved=one, stream=str(name)))
            self.lasting.claim(str(name))
        sources = [one.source for one in saved]
        for i, source in enumerate(sources):
            if source is None or source in sources[:i]:
                continue
            together = [one for one, other in zip(made, sources, strict=True) if other == source]
            try:
                found, after = self.allowed.find(source["name"]), source["after"]
                self.read(together, found, pace=source["pace"], after=after)
            except (ValueError, OSError) as error:
                failed.append(f"session {name} does not go on with its source: {error}")
        return made, failed

    def resume(self) -> list[str]:
        """Go on with all sessions of the server before; return what could not go on, in words."""
        failed = []
        left = set() if self.lasting is None else set(self.lasting.names)
        for name in sorted(left - {one.stream for one in self.sessions}):
            try:
                failed += self.go_on(name)[1]
            except (ValueError, OSError) as error:
                failed.append(f"session {name}: {error}")
        return failed

    # Ending.

    def stop(self, grace: float = 10.0) -> list[str]:
        """End everything: answers get `grace` seconds to finish, and sessions are saved.

        Returns:
          What could not be saved, in words.
        """
        self.stopping = True
        sources = dict(self._readings)
        end = time.monotonic() + grace
        for reading in set(sources.values()):
            reading.stop(max(end - time.monotonic(), 0.1))
        for one in self.sessions:
            one.questions.drop_planned(STOPPING)
        while time.monotonic() < end and any(one.questions.writing for one in self.sessions):
            time.sleep(0.02)
        failed, sessions = [], self.sessions
        for one in sessions:
            one.questions.end(STOPPING)
        if self.lasting is not None:
            failed = self._save_all(self.lasting, sessions, sources)
        for one in sessions:
            self._end(one, STOPPING)
        self.engines.close()
        self._folder.cleanup()
        return failed

    def _save_all(
        self, lasting: Lasting, sessions: Sequence[Served], sources: Mapping[str, Reading]
    ) -> list[str]:
        """Save sessions at the end; return what could not be saved, in words."""
        failed = []
        for group in _groups(sessions):
            try:
                for one in group:
                    one.settle()
                lasting.write(group, sources)
            except (ValueError, OSError) as error:
                failed.append(f"session {group[0].stream} could not be saved: {error}")
        return failed

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.stopping:
            self.stop(0.0)


def _groups(sessions: Sequence[Served]) -> list[list[Served]]:
    """Return the open sessions that are saved, those of one stream together."""
    found = {one.stream: one.group for one in sessions if one.stream}
    return [group for group in found.values() if group]

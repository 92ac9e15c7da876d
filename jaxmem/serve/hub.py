"""All a server does with its sessions: it reads their sources, keeps, branches and ends them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from jaxmem.serve.demo_world import DEMO
from jaxmem.serve.engines import Engines
from jaxmem.serve.keeping import Keeping
from jaxmem.serve.limits import Limits, RefusedError, checked_name
from jaxmem.serve.question import new_id
from jaxmem.serve.reading import Reading
from jaxmem.serve.served import Served
from jaxmem.serve.sources import Allowed, Source
from jaxmem.serve.table import STOPPING, Table
from jaxmem.serve.wanting import Wanted


class Hub(Table):
    """The sessions of a server, over its engines. Its methods may be called on any thread.

    Attributes:
      allowed: sources that clients may name.
      keeping: where sessions are saved; None: nowhere.
    """

    def __init__(
        self,
        engines: Engines,
        limits: Limits | None = None,
        *,
        usual: Wanted = Wanted("omnimem", "96"),  # noqa: B008  it is a constant
        allowed: Allowed | None = None,
        saves: Path | None = None,
    ):
        """Begin without sessions.

        Args:
          engines: a server's.
          limits: None: those of the class.
          usual: the memory of clients that name none.
          allowed: None: no source but the demo.
          saves: folder for saved sessions.
        """
        super().__init__(engines, limits or Limits(), usual)
        self.allowed = allowed or Allowed()
        self.keeping = None if saves is None else Keeping(saves, self.limits.saves)
        self._readings: dict[str, Reading] = {}
        self._folder = TemporaryDirectory(prefix="jaxmem-")

    def join(self, served: Served, wanted: Wanted) -> Served:
        """Begin a session with another memory that sees the stream of one from now on.

        Raises:
          ValueError: as by `create`.
        """
        new = self.open(wanted, None, brief=served.brief)
        served.peers[:] = [*served.group, new]
        new.peers = served.peers
        with self._lock:
            reading = self._readings.get(served.id)
            if reading is not None and reading.add(new):
                self._readings[new.id] = reading
        for looker in served.publish.lookers:
            new.publish.add(looker, looks=True)
            looker({"type": "session.added", "session": new.plain()})
        return new

    def branch(self, id: object, new: object = None) -> Served:
        """Return a new session that goes on from where another one is, without its source."""
        old, name = self.get(id), new_id() if new is None else checked_name(new, "id of the branch")
        session = old.live.session()
        branch = self.begin(name, old.wanted, lambda: old.live.engine.open(session), old.brief)
        branch.live.take_gaps(old.live.gaps.plain())
        branch.take_pushed(old)
        branch.questions.remember(old.questions.plain(), ())
        return branch

    def close(self, served: Served, why: str) -> None:
        """End a session, and its source if no other one sees it."""
        super().close(served, why)
        with self._lock:
            reading = self._readings.pop(served.id, None)
        if reading is not None and all(one.live.closed is not None for one in reading.sessions):
            reading.stop()

    # Sources.

    def read(
        self,
        sessions: Sequence[Served],
        source: Source,
        *,
        pace: float | None = None,
        after: int = 0,
    ) -> None:
        """Have sessions read a source by themselves.

        Raises:
          ValueError: if it cannot be opened, or one of them reads another.
        """
        self.check_running()
        pace = 1.0 if source.kind == DEMO and pace is None else pace

        def done() -> None:
            self._forget(reading)
            if Path(source.where).parent == Path(self._folder.name):  # it was uploaded
                Path(source.where).unlink(missing_ok=True)

        more = {"pace": pace, "after": after, "done": done}
        reading = Reading(source, self.engines.model, sessions, **more)
        with self._lock:
            self._readings |= {one.id: reading for one in sessions}
        reading.start()

    def _forget(self, reading: Reading) -> None:
        with self._lock:
            self._readings = {k: x for k, x in self._readings.items() if x is not reading}

    def stop_reading(self, served: Served) -> None:
        """End the source of a session and its peers, if there is one."""
        with self._lock:
            reading = self._readings.get(served.id)
        if reading is not None:
            reading.stop(5.0)
            self._forget(reading)

    def upload(self) -> Path:
        """Return the path of a new file to write what a client uploads to.

        Raises:
          RefusedError: if too many are kept.
        """
        folder = Path(self._folder.name)
        if len(list(folder.iterdir())) >= self.limits.uploads:
            raise RefusedError(
                f"{self.limits.uploads} uploaded files are being read already; wait for one.",
                "busy",
                429,
            )
        path = folder / new_id()
        path.touch(mode=0o600)
        return path

    # Keeping.

    def _kept(self) -> Keeping:
        if self.keeping is None:
            raise RefusedError(
                "this server keeps no sessions: start it with --saves DIR.", "no_saves", 409
            )
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
        kept = self._kept()
        saved = kept.read(name)
        served = self.open(saved.wanted, id, saved=saved.folder, brief=brief)
        served.live.take_gaps(saved.gaps)
        served.questions.remember(saved.questions, saved.standing)
        return served

    def resume(self) -> list[str]:
        """Go on with the sessions of the server before; return what could not go on, in words."""
        if self.keeping is None:
            return []
        failed, left = [], dict(self.keeping.take_list())
        for name in left:
            try:
                self.restore(name, name)
            except (ValueError, OSError) as error:
                failed.append(f"session {name}: {error}")
        for name, source in left.items():
            served = self._sessions.get(name)
            if served is None:
                continue
            if served.peers[1:] or served.busy:  # it came with another one
                continue
            found = [self._sessions[x] for x in source["peers"] if x in self._sessions]
            for one in found:
                one.peers = found
            if "name" not in source:
                continue
            together = [x for x in found if left[x.id] == source]
            try:
                read = self.allowed.find(source["name"])
                self.read(together, read, pace=source["pace"], after=source["after"])
            except (ValueError, OSError) as error:
                failed.append(f"session {name} does not go on with its source: {error}")
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
        if self.keeping is not None:
            failed = self.keeping.write_all(sessions, sources)
        for one in sessions:
            self.close(one, STOPPING)
        self.engines.close()
        self._folder.cleanup()
        return failed

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *error: object) -> None:
        if not self.stopping:
            self.stop(0.0)

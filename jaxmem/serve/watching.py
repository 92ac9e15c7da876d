"""The open sessions of a server with what they read by themselves: files, cameras, a demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from jaxmem.serve.demo_world import DEMO
from jaxmem.serve.engines import Engines
from jaxmem.serve.limits import Limits, RefusedError
from jaxmem.serve.question import new_id
from jaxmem.serve.reading import Reading
from jaxmem.serve.served import Served
from jaxmem.serve.sources import Allowed, Source
from jaxmem.serve.table import Table
from jaxmem.serve.wanting import Wanted


class Watching(Table):
    """Sessions, and the sources that they read. Its methods may be called on any thread.

    Attributes:
      allowed: sources that clients may name.
    """

    def __init__(self, engines: Engines, limits: Limits, usual: Wanted, allowed: Allowed | None):
        """Begin without sessions; `allowed`: None: no source but the demo."""
        super().__init__(engines, limits, usual)
        self.allowed = allowed or Allowed()
        self._readings: dict[str, Reading] = {}
        self._folder = TemporaryDirectory(prefix="jaxmem-")

    def join(self, served: Served, wanted: Wanted) -> Served:
        """Begin a session with another memory that sees the stream of one from now on.

        Raises:
          ValueError: as by `create`.
        """
        new = self.open(wanted, None, brief=served.brief, stream=served.stream)
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

    def close(self, served: Served, why: str) -> None:
        """End a session, and its source if no other one sees it."""
        super().close(served, why)
        with self._lock:
            reading = self._readings.pop(served.id, None)
        if reading is not None and all(one.live.closed is not None for one in reading.sessions):
            reading.stop()

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

"""A source that is read on a thread of its own, for one session or several."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import count

from jaxmem.data.media.events import Event
from jaxmem.data.media.live import LOST, RESUMED
from jaxmem.data.media.types import Piece
from jaxmem.models.base import Model
from jaxmem.serve.served import Served
from jaxmem.serve.sources import Source, is_live

SOURCE = "jaxmem-source"
"""Name of the threads that read."""


class Reading:
    """A source that is read on a thread of its own, for one session or several.

    Attributes:
      source: what is read.
      sessions: that see it; more may join.
      pace: see `__init__`.
      after: pieces that were read.
      still: a lock; while it is held, all sessions have seen `after` pieces.
      over: whether no more comes.
    """

    def __init__(
        self,
        source: Source,
        model: Model,
        sessions: Sequence[Served],
        *,
        pace: float | None = None,
        after: int = 0,
        done: Callable[[], None] = lambda: None,
    ):
        """Open a source; `start` begins to read it.

        Args:
          source: what is read.
          model: of the sessions, fitted to the size of its frames.
          sessions: that see it.
          pace: seconds of stream a second; None: those of a camera as they come, those of a file or
            of a recording at an address as fast as the sessions take them.
          after: pieces of it that the sessions have seen already.
          done: called without arguments when it is over.

        Raises:
          ValueError: if it cannot be opened, or a session has ended or reads another one.
        """
        self.source, self.sessions, self.pace, self.after = source, tuple(sessions), pace, after
        self._lost: str | None = None
        self.over, self._ending, self.still = False, threading.Lock(), threading.Lock()
        self._done, self._stop = done, threading.Event()
        self._reader = reader = source.open(model, after, self._heard)
        self._live = is_live(reader)
        began = []
        try:
            for one in self.sessions:
                one.begin_source(source.plain())
                began.append(one)
        except ValueError:
            self._reader.close()
            for one in began:
                one.end_source("another session could not read it")
            raise
        self._thread = threading.Thread(target=self._run, name=SOURCE, daemon=True)

    def add(self, session: Served) -> bool:
        """Have another session see what comes from now on; return whether anything comes.

        Raises:
          ValueError: if it has ended, or reads another source.
        """
        with self._ending:
            if not self.over:
                session.begin_source(self.source.plain(self._lost))
                self.sessions = (*self.sessions, session)
            return not self.over

    def _heard(self, event: Event) -> None:
        """Tell the sessions that a camera is lost, or there again."""
        if event.kind not in (LOST, RESUMED):
            return
        with self._ending:
            self._lost = event.message if event.kind == LOST else None
            sessions = self.sessions
        for one in sessions:
            one.note_source(self._lost, event.message)

    @property
    def left(self) -> bool:
        """Return whether there may be more of it to read, for another server."""
        return self._stop.is_set() or not self.over

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self, wait: float = 0.0) -> None:
        """End it, and wait for its thread up to so many seconds."""
        self._stop.set()
        self._reader.close()
        if threading.current_thread() is not self._thread and self._thread.ident is not None:
            self._thread.join(wait)

    def _run(self) -> None:
        try:
            why = self._read()
        except Exception as error:  # of a decoder, or of an engine that has failed
            why = str(error)
        finally:
            self._reader.close()
        with self._ending:
            self.over = True
        try:
            for one in self.sessions:
                one.end_source(why, whole=not self._stop.is_set())
        finally:
            self._done()

    def _read(self) -> str:
        """Feed the pieces to the sessions; return why they are over."""
        begin = time.monotonic()
        for number, piece in zip(count(1), self._reader, strict=False):
            if self.pace is not None:
                length = len(piece.samples) / self.sessions[0].media.sample_rate
                self._stop.wait(max(begin + number * length / self.pace - time.monotonic(), 0.0))
            if self._stop.is_set():
                return "stopped"
            warm = all(one.live.engine.warm for one in self.sessions)
            wait = not self._live and (self.pace is None or not warm)  # for the compiler, too
            with self.still:
                if not any([_fed(one, piece, wait) for one in self.sessions]):
                    return "the session has ended"
                self.after += 1
        end = self._reader.end
        return "stopped" if self._stop.is_set() else "it is over" if end is None else end.reason


def _fed(session: Served, piece: Piece, wait: bool) -> bool:
    """Feed a piece to a session; return whether that is open."""
    try:
        session.feed(piece, wait=wait)
    except ValueError:
        if session.live.closed is None:
            raise
    return session.live.closed is None

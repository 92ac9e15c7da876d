"""One session of a server: a live stream with what its clients push, ask and look at."""

from __future__ import annotations

import threading
import time
from copy import deepcopy
from typing import Any

import numpy as np

from jaxmem.memory.base import FeatureMemory
from jaxmem.memory.sizes import slots
from jaxmem.pieces import PieceLike
from jaxmem.serve.demo_world import DEMO
from jaxmem.serve.engine import FAILED
from jaxmem.serve.gathering import Gatherer
from jaxmem.serve.limits import Limits, RefusedError
from jaxmem.serve.listeners import Listeners
from jaxmem.serve.live import Live
from jaxmem.serve.memory_map import memory_map
from jaxmem.serve.pace import Pace
from jaxmem.serve.question import CUT, Question
from jaxmem.serve.questions import Questions
from jaxmem.serve.thumbnails import Thumbnails
from jaxmem.serve.wanting import Wanted
from jaxmem.session import Session

MAP_SECONDS = 0.5
"""A map is not made more often."""


class Served:
    """A session as its clients see it.

    Its methods may be called on any thread, and hold it up while the device takes a chunk at most.
    What happens to it is published as messages to whoever listens.

    Attributes:
      id: its name.
      wanted: its memory.
      live: its stream.
      questions: about it.
      source: what it reads by itself, as clients see it; None: clients push.
      busy: whether it reads that still.
      seen: when something was fed or asked last, on the clock of `time.monotonic`.
      publish: sends a message to whoever listens.
      brief: whether a WebSocket began it, so that it ends soon after its last watcher.
      peers: sessions that see the same stream through other memories, itself included; all of them
        share this list.
      stream: name that they are saved under together; empty: they are not.
    """

    def __init__(
        self,
        id: str,
        wanted: Wanted,
        live: Live,
        limits: Limits,
        *,
        brief: bool = False,
        stream: str | None = None,
    ):
        """Begin a session of a stream, which may have been fed before."""
        self.id, self.wanted, self.live, self.brief = id, wanted, live, brief
        self.source: dict[str, Any] | None = None
        self.busy, self.peers, self.publish = False, [self], Listeners(id)
        self.stream = id if stream is None else stream
        self.seen, self.media = time.monotonic(), live.engine.model.media
        self.pieces = live.pieces
        self.questions = Questions(live, limits, self.publish)
        self.thumbnails = Thumbnails()
        program = live.engine.program
        features = isinstance(program.memory, FeatureMemory)
        self._slots = (0,) if features else slots(program.memory, program.spec)
        self._gatherer, self._pace = Gatherer(self.media, self.pieces), Pace(live)
        self._picture: np.ndarray | None = None
        self._map: tuple[float, dict[str, Any]] | None = None
        self._feeding = threading.RLock()  # pieces, and what is pushed, come in their order
        self._mapping = threading.Lock()

    @property
    def plays(self) -> bool:
        """Return whether it reads the demo, which is for those who look."""
        return self.busy and self.source is not None and self.source["kind"] == DEMO

    @property
    def seconds(self) -> float:
        """Return the length of the stream so far, in seconds."""
        return self.pieces * self.media.piece_seconds

    # Feeding.

    def push(
        self,
        picture: np.ndarray | None = None,
        samples: np.ndarray | None = None,
        at: float | None = None,
        now: float | None = None,
    ) -> tuple[int, int]:
        """Take a picture uint8 [h, w, 3], samples float32 [n] of 16 kHz, or both.

        Args:
          picture: that came now, or at `at`.
          samples: that follow the last ones, or began at `at`.
          at: seconds, on a clock of the client.
          now: on the clock of `time.monotonic`; None: read it.

        Returns:
          Pieces that were complete by that, and chunks that were dropped for them.

        Raises:
          ValueError: if the session has ended, or reads a source by itself.
        """
        with self._feeding:
            self._check_pushed()
            self.seen = time.monotonic()
            now = self.seen if now is None else now
            done = [] if picture is None else self._gatherer.picture(picture, now, at)
            if samples is not None:
                done += self._gatherer.sound(samples, now, at)
            dropped = sum(self.feed(piece) for piece in done)
            if picture is not None:
                self._picture = self._gatherer.newest
            return len(done), dropped

    def take_pushed(self, other: Served) -> None:
        """Go on with what was pushed to another session and does not fill a piece yet."""
        with other._feeding:
            if not other.busy and other.pieces == self.pieces:
                self._gatherer = deepcopy(other._gatherer)

    def session(self) -> Session:
        """Return a copy, with what was pushed and does not fill a piece yet, padded."""
        with self._feeding:
            session, gatherer = self.live.session(), deepcopy(self._gatherer)
        for piece in () if self.busy else gatherer.flush():
            session.feed(piece)
        return session

    def _check_pushed(self) -> None:
        self.live.check_open()
        if self.busy:
            raise RefusedError(
                "the session reads a source by itself: stop that first (DELETE .../source).",
                "source",
                409,
            )

    def feed(self, piece: PieceLike, *, wait: bool = False) -> int:
        """Take a piece in the model's format; return how many chunks were dropped for it.

        Questions whose time has come are asked before it. With `wait` it waits for room.

        Raises:
          ValueError: if the session has ended, or the piece is not in the model's format.
        """
        self.questions.due(self.seconds + self.media.piece_seconds)
        dropped = self.live.feed(piece, wait=wait)
        self.pieces += 1
        if piece.frames.size:
            seen = self._picture = piece.frames[-1]
            self.thumbnails.add(self.seconds - self.media.piece_seconds / 2, seen)
        self.questions.ask_standing(self.seconds)
        self.seen = time.monotonic()
        self._pace.note(self.seen)
        return dropped

    def finish(self) -> None:
        """Take what was pushed for the whole stream: what was planned is asked now."""
        self.settle()
        self.live.flush()
        self.questions.due(float("inf"))

    def settle(self) -> None:
        """Feed what was pushed and does not fill a piece yet, padded."""
        with self._feeding:
            for piece in self._gatherer.flush():
                self.feed(piece)

    def begin_source(self, source: dict[str, Any]) -> None:
        """Note that a source is read from now on, in place of what clients push.

        Raises:
          ValueError: if another one is, or the session has ended.
        """
        with self._feeding:
            self._check_pushed()
            self.settle()
            self.source, self.busy = source, True
        self.publish({"type": "source.started", "source": source})

    def note_source(self, lost: str | None, message: str) -> None:
        """Note that the source is lost, and why; or with None that it is there again."""
        with self._feeding:
            if self.busy and self.source is not None:
                self.source = {**self.source, "lost": lost}
        kind = "source.resumed" if lost is None else "source.lost"
        self.publish({"type": kind, "message": message})

    def end_source(self, why: str, *, whole: bool = False) -> None:
        """Note that the source is over. If it came to its end, what was planned is asked now."""
        with self._feeding:
            if not self.busy or self.source is None:
                return
            self.busy, self.source = False, {**self.source, "over": why, "lost": None}
            self._gatherer, self.seen = Gatherer(self.media, self.pieces), time.monotonic()
        if whole and self.live.closed is None:
            self.finish()
        self.publish({"type": "source.ended", "why": why})

    # Asking.

    def ask(self, text: object, *, at: float | None = None, id: object = None) -> Question:
        """Ask about everything that came so far, or will have come at a later time `at`.

        The answer is published as it is written.

        Raises:
          ValueError: if the model does not know the words, too many questions wait, or the session
            has ended.
        """
        self.live.check_open()
        question = self.questions.new(text, self.seconds if at is None else at, id)
        self.seen = time.monotonic()
        if at is not None and at >= self.seconds + self.media.piece_seconds - 1e-6:
            self.questions.plan(question)
            return question
        with self._feeding:  # nothing is pushed in between
            unfinished = None if self.busy else self._gatherer.unfinished()
            question.asked_at = self.seconds
            if unfinished is not None:
                question.asked_at = round(self._gatherer.reached, 3)
            self.questions.ask(question, unfinished)
        return question

    # Looking.

    @property
    def group(self) -> list[Served]:
        """Return the open sessions that see the same stream, itself included."""
        return [one for one in self.peers if one.live.closed is None]

    @property
    def picture(self) -> np.ndarray | None:
        """Return the last picture as the model sees it, uint8 [h, w, 3]; None: none has come."""
        return self._picture

    @property
    def state(self) -> str:
        """Return "open", "ended" or "failed"."""
        closed = self.live.closed
        return "open" if closed is None else "failed" if closed.startswith(FAILED) else "ended"

    def stats(self) -> dict[str, Any]:
        """Return how the session stands; `everything` is the bytes that all of it would take."""
        return self._pace.stats(self.pieces) | {"first_token_ms": self.questions.first_token_ms}

    def map(self) -> dict[str, Any]:
        """Return what every layer holds; it waits for the chunks that were fed before.

        Raises:
          ValueError: if the session has ended.
        """
        with self._mapping:
            if self._map is None or time.monotonic() - self._map[0] > MAP_SECONDS:
                kept, seconds = self.live.kept(), self.live.stats.seconds
                shown = memory_map(kept, self._slots, seconds, self.media.piece_seconds)
                self._map = (time.monotonic(), shown)
            return self._map[1]

    def plain(self) -> dict[str, Any]:
        """Return the session as clients see it."""
        h, w = self.media.size if isinstance(self.media.size, tuple) else (0, 0)
        out: dict[str, Any] = {
            "id": self.id,
            "memory": self.wanted.memory,
            "budget": self.wanted.budget,
            "options": dict(self.wanted.options),
            "peers": [one.id for one in self.peers],
            "stream": self.stream,
            "source": self.source,
            "state": self.state,
            "stats": self.stats(),
            "frame": [h, w],
            "questions": self.questions.plain(),
            "standing": self.questions.standing(),
        }
        return out if self.live.closed is None else out | {"why": self.live.closed}

    def close(self, why: str) -> None:
        """End the session: its lane is free, and answers that are not over are cut."""
        self.live.close(why)
        self.questions.end(f"{CUT}: {why}")
        self.publish({"type": "session.ended", "why": why})

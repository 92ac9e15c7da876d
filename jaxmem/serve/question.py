"""A question of a served session, asked once, and one that is asked again and again."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jaxmem.serve.answers import Answer
from jaxmem.serve.listeners import Publish

CUT = "the session ended before the answer did"


def new_id() -> str:
    """Return a name that no other has."""
    return uuid.uuid4().hex[:12]


@dataclass
class Question:
    """A question with its answer, as far as it is written.

    Attributes:
      id: of the client, or made.
      text: what is asked.
      asked_at: seconds of stream that it is about.
      answer: text so far.
      done: whether nothing more comes.
      cut: whether it ended before its end.
      why: why it was cut.
      tokens: of the answer so far.
      first_token_ms: from the question to the first token.
    """

    id: str
    text: str
    asked_at: float
    answer: str = ""
    done: bool = False
    cut: bool = False
    why: str | None = None
    tokens: int = 0
    first_token_ms: float | None = None
    _source: Answer | None = None
    _read: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def follow(self, source: Answer, publish: Publish) -> None:
        """Take the text of an answer as it is written, and publish it as messages."""
        self._source = source
        begun = {"type": "response.start", "id": self.id, "text": self.text}
        publish(begun | {"asked_at": self.asked_at})
        source.watch(lambda: self._told(source, publish))

    def _told(self, source: Answer, publish: Publish) -> None:
        with self._lock:
            parts, over = source.news(self._read)
            if self.done:
                return
            self._read += len(parts)
            self.tokens = source.tokens
            if source.first_seconds is not None:
                self.first_token_ms = round(1e3 * source.first_seconds, 3)
            for part in parts:
                self.answer += part
                publish({"type": "response.text.delta", "id": self.id, "delta": part})
            if over:
                self._end(source.error, publish)

    def _end(self, why: str | None, publish: Publish) -> None:
        self.done, self.cut, self.why = True, why is not None, why
        message = {"type": "response.text.done", "id": self.id, "text": self.answer}
        publish(message | {"first_token_ms": self.first_token_ms, "cut": self.cut, "why": why})

    def end(self, why: str, publish: Publish) -> None:
        """Cut the answer, if it is not over."""
        if self._source is not None:
            self._source.fail(ValueError(why))
        with self._lock:
            if not self.done:
                self._end(why, publish)

    def plain(self) -> dict[str, Any]:
        """Return the question as clients see it, and saves keep it."""
        names = ("id", "text", "asked_at", "answer", "done", "cut", "first_token_ms")
        return {name: getattr(self, name) for name in names}


@dataclass
class Standing:
    """A question with yes or no for an answer that is asked every so often.

    It is told when its answer turns from no to yes.
    """

    id: str
    text: str
    every: float  # seconds of stream
    due: float  # stream time at which it is asked next
    said: str | None = None  # the last answer
    yes: bool = False
    answer: Answer | None = None  # that is being written

    def ask(self, ask: Callable[[str], Answer], at: float, publish: Publish) -> None:
        """Ask at a stream time, if it is due and the last answer is over."""
        if at < self.due - 1e-6 or (self.answer is not None and not self.answer.over):
            return
        self.due = at + self.every
        self.answer = answer = ask(self.text)
        answer.watch(lambda: self._told(answer, at, publish))

    def _told(self, answer: Answer, at: float, publish: Publish) -> None:
        if not answer.over or answer.error is not None or answer is not self.answer:
            return
        self.said = "".join(answer.news(0)[0])
        before, self.yes = self.yes, self.said.strip().lower().startswith("yes")
        if self.yes and not before:
            publish({"type": "session.alert", "id": self.id, "text": self.text, "at": at})

    def plain(self) -> dict[str, Any]:
        """Return the question as clients see it, and saves keep it."""
        about = {"id": self.id, "text": self.text, "every": self.every}
        return about | {"answer": self.said, "yes": self.yes}

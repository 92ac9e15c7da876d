"""Answers of live streams: written on the engine's thread, read on any other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jaxmem.memory.exchange import Embeds
from jaxmem.models.text_streamer import TextStreamer
from jaxmem.replies import Reply
from jaxmem.typing import Bool, Float, Int, PyTree


class Answer:
    """An answer on its way. Iterate over it for its text as it is written, or wait for `reply`."""

    def __init__(self, question: str, streamer: TextStreamer):
        self.question, self._streamer = question, streamer
        self._begin = time.perf_counter()
        self._first: tuple[float, Float[np.ndarray, "V"]] | None = None
        self._changed = threading.Condition()
        self._parts: list[str] = []
        self._reply: Reply | None = None
        self._error: BaseException | None = None
        self._told: Callable[[], None] = lambda: None
        self.tokens = 0  # so far

    def __iter__(self) -> Iterator[str]:
        """Yield the text as it is written; the parts together are `reply().text`.

        Raises:
          ValueError: if the stream or the engine was closed before the answer's end, or logits are
            not finite.
        """
        read, over = 0, False
        while not over:
            parts, over = self._news(read)
            yield from parts
            read += len(parts)
        self._raise()

    def _news(self, read: int) -> tuple[list[str], bool]:
        """Wait for more than `read` parts, or the end; return what is new, and whether it ended."""
        with self._changed:
            self._changed.wait_for(lambda: self.over or len(self._parts) > read)
            return self.news(read)

    def news(self, read: int) -> tuple[list[str], bool]:
        """Return the parts after the first `read`, and whether the answer has ended; never wait."""
        with self._changed:
            return self._parts[read:], self.over

    def watch(self, told: Callable[[], None]) -> None:
        """Have a function called at once, and at all news; on the engine's thread, so be quick."""
        with self._changed:
            self._told = told
        told()

    def reply(self, timeout: float | None = None) -> Reply:
        """Return the whole answer with what it cost.

        Args:
          timeout: seconds to wait; None: as long as it takes.

        Raises:
          TimeoutError: if the answer takes longer.
          ValueError: as by iteration.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.over, timeout):
                raise TimeoutError(f"no whole answer within {timeout:g} s; it is still written.")
        self._raise()
        assert self._reply is not None
        return self._reply

    @property
    def first_seconds(self) -> float | None:
        """Return the seconds from the question to the first token; None: it has not come."""
        return None if self._first is None else self._first[0]

    @property
    def error(self) -> str | None:
        """Return why the answer ended without a reply; None: it did not."""
        return None if self._error is None else str(self._error)

    @property
    def over(self) -> bool:
        """Return whether the answer has ended, with a reply or without."""
        return self._reply is not None or self._error is not None

    def _raise(self) -> None:
        if self._error is not None:
            raise ValueError(str(self._error)) from self._error

    def grow(self, ids: Int[np.ndarray, "m"], done: bool, first: Float[np.ndarray, "V"]) -> None:
        """Take all tokens so far; the engine's."""
        with self._changed:
            if self.over:
                return
            now = time.perf_counter() - self._begin
            self._first = self._first or (now, first)
            self._parts += self._streamer.push(ids, done)
            self.tokens = len(ids)
            if done:
                self._reply = Reply("".join(self._parts), now, self._first[1], self._first[0])
            self._changed.notify_all()
        self._told()

    def fail(self, error: BaseException) -> None:
        """End without a reply, unless it has ended; nothing more of it is written."""
        with self._changed:
            if not self.over:
                self._error = error
            self._changed.notify_all()
        self._told()


@dataclass(frozen=True)
class Asked:
    """A question that waits for the chunks before it to be written."""

    answer: Answer
    rows: Embeds
    after: int  # chunks that must be written or dropped before
    repeated: Bool[np.ndarray, "V"] | None
    number: int  # of the question among all of the engine, for its key
    open: PyTree = None  # pieces that do not fill a chunk yet

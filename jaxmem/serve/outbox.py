"""Messages on their way to one reader: they come from any thread, and never without bound."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

SKIPPED = ("memory.map", "session.stats")
"""Messages that the next of their kind replaces: a slow reader goes without."""


class Outbox:
    """A queue that one task of an event loop reads, and any thread writes to without waiting.

    Attributes:
      slow: whether the reader has fallen behind by more than there is room for.
    """

    def __init__(self, most: int):
        """Begin an empty one with room for `most` messages, on the running loop."""
        self._loop, self._most = asyncio.get_running_loop(), most
        self._messages: deque[dict[str, Any]] = deque()
        self._news, self._over = asyncio.Event(), False
        self.slow = False

    def __call__(self, message: dict[str, Any]) -> None:
        """Add a message."""
        with suppress(RuntimeError):  # the loop has ended, and nobody reads any more
            self._loop.call_soon_threadsafe(self._add, message)

    def _add(self, message: dict[str, Any]) -> None:
        if self._over:
            return
        if len(self._messages) < self._most:
            self._messages.append(message)
        elif message.get("type") not in SKIPPED:
            self.slow = self._over = True
        self._news.set()

    def close(self) -> None:
        """Let the reader end after what is there."""
        self._over = True
        self._news.set()

    async def get(self) -> dict[str, Any] | None:
        """Wait for a message and return it; None: there are no more."""
        while not self._messages or self.slow:
            if self._over:
                return None
            self._news.clear()
            await self._news.wait()
        return self._messages.popleft()

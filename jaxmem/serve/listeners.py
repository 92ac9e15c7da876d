"""Who hears what happens to a session."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

Publish = Callable[[dict[str, Any]], None]
"""Hears a message; on any thread, so it is quick."""


class Listeners:
    """Functions that are called with every message about one session.

    Those that look at it are counted: a session may end once nobody does.

    Attributes:
      lookers: those that look at it.
      left: when one of them left last, on the clock of `time.monotonic`.
    """

    def __init__(self, id: str):
        """Begin with none; every message says that it is about the session `id`."""
        self._id, self._lock = id, threading.Lock()
        self._all: tuple[Publish, ...] = ()
        self.lookers: tuple[Publish, ...] = ()
        self.left = math.inf

    def __call__(self, message: dict[str, Any]) -> None:
        """Send a message to all."""
        for listener in self._all:
            listener({**message, "session": self._id})

    def add(self, listener: Publish, *, looks: bool = False) -> None:
        """Have a function called with every message from now on."""
        with self._lock:
            self._all = (*self._all, listener)
            if looks:
                self.lookers = (*self.lookers, listener)

    def remove(self, listener: Publish) -> None:
        """Undo `add`, if it was done."""
        with self._lock:
            self._all = tuple(x for x in self._all if x is not listener)
            if any(x is listener for x in self.lookers):
                self.lookers = tuple(x for x in self.lookers if x is not listener)
                self.left = time.monotonic()

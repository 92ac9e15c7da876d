"""What a media reader has to tell: events with their media time, and what was lost in all."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

MAX_EVENTS = 500
"""An endless stream must not grow the list of events without end."""


def cause(error: Exception) -> str:
    """What an error says, without the address that FFmpeg adds, which may hold a password."""
    return getattr(error, "strerror", None) or str(error)


class Event(NamedTuple):
    """Something worth telling about a piece of media, at a media time in seconds."""

    time: float
    kind: str
    message: str


class Log:
    """A list of events with an upper bound; whoever reads may be `told` each as it comes."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.told: Callable[[Event], None] = lambda event: None
        self.lost: dict[str, float] = {}  # what was lost in all, seconds by kind

    def lose(self, what: str, seconds: float) -> None:
        """Adds to what was lost."""
        self.lost[what] = self.lost.get(what, 0.0) + max(seconds, 0.0)

    def __call__(self, time: float, kind: str, message: str) -> None:
        """Adds an event, or, once, the remark that the list is full; tells it in any case."""
        self.told(Event(time, kind, message))
        if len(self.events) < MAX_EVENTS:
            self.events.append(Event(time, kind, message))
        elif len(self.events) == MAX_EVENTS:
            self.events.append(Event(time, "more", "further events are not listed"))

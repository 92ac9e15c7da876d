"""How fast a session is written, and how many bytes all of it would take."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from jaxmem.memory.bank.bank import footprint
from jaxmem.memory.baselines import Full
from jaxmem.serve.live import Live

RATE_SECONDS = 10.0
"""Over which chunks a second are counted."""


class Pace:
    """The pace of one stream. Its methods may be called on any thread."""

    def __init__(self, live: Live):
        """Begin to count; the stream may have been fed before."""
        spec, tokens = live.engine.program.spec, live.engine.model.tokens_per_piece
        one, two = (footprint(Full(n), spec).device for n in (1, 2))
        self._live, self._piece_bytes = live, (two - one) * tokens
        self._written: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def note(self, now: float) -> None:
        """Note that a piece was fed, on the clock of `time.monotonic`."""
        with self._lock:
            self._written.append((now, self._live.written))

    def stats(self, pieces: int) -> dict[str, Any]:
        """Return how the stream stands; `everything` is the bytes that `pieces` would take."""
        stats, now = self._live.stats, time.monotonic()
        with self._lock:
            while self._written and self._written[0][0] < now - RATE_SECONDS:
                self._written.popleft()
            since, before = self._written[0] if self._written else (now, stats.chunks)
        rate = (stats.chunks - before) / max(now - since, 1.0)
        more = {"chunks_per_second": round(rate, 3), "everything": pieces * self._piece_bytes}
        return stats._asdict() | more

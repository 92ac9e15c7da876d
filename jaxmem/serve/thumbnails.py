"""Small pictures of a stream's past: so many at most, thinned evenly."""

from __future__ import annotations

import threading

import numpy as np

from jaxmem.data.media.picture import fitted

COUNT = 240
"""Pictures at most."""
SIDE = 96
"""Pixels of the longer side."""


class Thumbnails:
    """Every n-th picture of a stream, where n doubles whenever they are too many."""

    def __init__(self, most: int = COUNT):
        """Keep at most `most` pictures."""
        self._most, self._every, self._seen = most, 1, 0
        self._held: list[tuple[float, np.ndarray]] = []
        self._lock = threading.Lock()

    def add(self, at: float, picture: np.ndarray) -> None:
        """Take the picture uint8 [h, w, 3] of a time in seconds, later than those before."""
        with self._lock:
            number, self._seen = self._seen, self._seen + 1
            if number % self._every:
                return
            self._held.append((at, small(picture)))
            if len(self._held) > self._most:
                self._held, self._every = self._held[::2], 2 * self._every

    def nearest(self, at: float) -> np.ndarray | None:
        """Return the picture nearest to a time; None: there is none."""
        with self._lock:
            found = min(self._held, key=lambda one: abs(one[0] - at), default=None)
        return None if found is None else found[1]


def small(picture: np.ndarray) -> np.ndarray:
    """Return a picture uint8 [h, w, 3] with at most `SIDE` pixels a side."""
    h, w = picture.shape[:2]
    scale = min(SIDE / max(h, w), 1.0)
    return fitted(picture, (max(round(h * scale), 1), max(round(w * scale), 1)))

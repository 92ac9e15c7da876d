"""A source that needs no camera: the synthetic world of the embedded model, for ever."""

from __future__ import annotations

import math
from typing import Self

import numpy as np

from jaxmem.data.media.picture import fitted
from jaxmem.data.media.types import End, Piece
from jaxmem.data.world.render import SIZE, frames
from jaxmem.data.world.sounds import RATE, sound
from jaxmem.data.world.world import split_seed, world
from jaxmem.models.base import MediaFormat
from jaxmem.serve.gathering import resampled

DEMO = "demo"
"""What clients call it."""
SECONDS = 240
"""Of one held-out stream; then the next one begins."""


class DemoWorld:
    """The synthetic world of the embedded model, one held-out stream after the other, for ever."""

    def __init__(self, media: MediaFormat, after: int = 0):
        """Begin after so many pieces."""
        self.end: End | None = None
        self._media, self._next, self._number = media, after, -1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        if self.end is not None:
            raise StopIteration
        media, number = self._media, self._next
        self._next += 1
        each = max(math.floor(SECONDS / media.piece_seconds), 1)  # pieces of one world
        if number // each != self._number:
            self._number = number // each
            self._world = world(split_seed("test", self._number), SECONDS)
            self._track = sound(self._world)
            if media.sample_rate != RATE:
                self._track = resampled(self._track, media.sample_rate)
        start = (number % each) * media.piece_seconds
        count = round(media.fps * media.piece_seconds)
        times = start + (np.arange(count) + 0.5) * media.piece_seconds / count
        assert isinstance(media.size, tuple)
        scale = 1 if max(media.size) <= SIZE else 4
        pictures = np.stack([fitted(x, media.size) for x in frames(self._world, times, scale)])
        first, length = (round(media.sample_rate * x) for x in (start, media.piece_seconds))
        samples = np.zeros(length, np.float32)
        heard = self._track[first : first + length]
        samples[: len(heard)] = heard
        at = number * media.piece_seconds
        return Piece(at, pictures, samples, True, True, media.piece_seconds)

    def close(self) -> None:
        """End it."""
        self.end = self.end or End(self._next * self._media.piece_seconds, "stopped", "stop")

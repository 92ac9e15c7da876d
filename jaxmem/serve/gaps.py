"""Where chunks of a live stream were dropped: times of what is held are those of the stream.

A state counts what was written to it and knows nothing of what was not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxmem.typing import Float

MOST = 4096
"""Gaps that are told apart; then neighbours become one."""


class Gaps:
    """Chunks that were dropped, by how many had been written before them."""

    def __init__(self, gaps: Any = ()):
        """Begin with what `plain` gave."""
        self._gaps: list[tuple[int, int]] = [(int(at), int(count)) for at, count in gaps]

    def add(self, written: int, count: int) -> None:
        """Note that `count` chunks were dropped after `written` ones, no fewer than before."""
        if self._gaps and self._gaps[-1][0] == written:
            count += self._gaps.pop()[1]
        self._gaps.append((written, count))
        if len(self._gaps) > MOST:
            pairs = zip(self._gaps[::2], self._gaps[1::2], strict=False)
            rest = self._gaps[len(self._gaps) // 2 * 2 :]
            self._gaps = [(b[0], a[1] + b[1]) for a, b in pairs] + rest

    @property
    def total(self) -> int:
        """Return how many chunks were dropped."""
        return sum(count for _, count in self._gaps)

    def stream_time(self, time: Float[np.ndarray, "n"], each: float) -> Float[np.ndarray, "n"]:
        """Return times of the stream for times of what was written, in seconds.

        Args:
          time: where every chunk that was written follows the one before.
          each: seconds of a chunk.
        """
        if not self._gaps:
            return time
        starts, counts = (np.array(x, np.float64) for x in zip(*self._gaps, strict=True))
        before = np.concatenate([np.zeros(1), np.cumsum(counts)])
        return time + each * before[np.searchsorted(starts * each, time + 1e-6, side="right")]

    def plain(self) -> list[tuple[int, int]]:
        """Return the gaps as they are saved."""
        return list(self._gaps)

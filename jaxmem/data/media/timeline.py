"""One clock for all streams of a source: resets, and jumps that nothing explains, are closed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxmem.data.media.events import Log

BACK = 0.5
"""Seconds; decoding stamps of a stream that go back further have begun anew."""
AHEAD = 60.0
"""Seconds; a stamp further ahead of all streams is an error or a new clock, not a pause."""


@dataclass
class _Stream:
    epoch: int  # which clock its stamps belong to
    last: float  # seconds, as stored


@dataclass
class Timeline:
    """Brings the stamps of compressed packets, in the order of the file, to one clock.

    Recordings put end to end begin anew at the same stamp. Where the first stream of a source
    does, its packets go on where the longest stream ended, and the other streams follow by the
    same offset: what was recorded together stays together.
    """

    log: Log
    origin: float = 0.0  # seconds; media time 0
    shifts: list[float] = field(default_factory=lambda: [0.0])  # of every clock, seconds
    end: float | None = None  # seconds, of all packets so far
    streams: dict[int, _Stream] = field(default_factory=dict)

    def __call__(self, packet: Any) -> None:
        """Change a packet's stamps."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None or not packet.time_base:
            return
        raw, newest = float(stamp * packet.time_base), len(self.shifts) - 1
        mine = self.streams.setdefault(packet.stream_index, _Stream(newest, raw))
        if self._jumps(mine, raw):
            if mine.epoch == newest or self._far(raw + self.shifts[newest]):
                self._begin(raw, mine)
                newest += 1
            mine.epoch = newest
        mine.last = raw
        shift = self.shifts[mine.epoch]
        length = float(packet.duration * packet.time_base) if packet.duration else 0.0
        length = length if length <= AHEAD else 0.0
        reached = raw + shift + length
        self.end = reached if self.end is None else max(self.end, reached)
        if shift:
            ticks = round(shift / packet.time_base)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks

    def _jumps(self, mine: _Stream, raw: float) -> bool:
        if raw - mine.last < -BACK:
            return True
        return raw - mine.last > AHEAD and self._far(raw + self.shifts[mine.epoch])

    def _far(self, time: float) -> bool:
        return self.end is not None and abs(time - self.end) > AHEAD

    def _begin(self, raw: float, mine: _Stream) -> None:
        """Begin another clock, on which the stamp `raw` is where all streams have ended."""
        end = raw if self.end is None else self.end
        jump = raw + self.shifts[mine.epoch] - end
        self.shifts.append(end - raw)
        what = f"time stamps jump by {jump:.3f} s; all streams go on from here"
        self.log(max(end - self.origin, 0.0), "clock", what)

"""One clock for all streams of a source: resets, and jumps that nothing explains, are closed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jaxmem.data.media.events import Log

BACK = 0.5
"""Seconds; decoding stamps of a stream that go back further have begun anew."""
AHEAD = 60.0
"""Seconds; a stamp further ahead of all streams is an error or a new clock, not a pause."""
NEAR = 5.0
"""Seconds; a packet further from the one before waits for the next one, which says if it lies."""
APART = 10.0
"""Seconds; decoding and presentation stamps of a packet further apart are not both right."""
WAITING = 64
"""Packets that wait for a neighbour at most."""


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
    waiting: list[Any] = field(default_factory=list)  # packets, from one that jumps on

    def __call__(self, packet: Any | None) -> Iterator[Any]:
        """Yield packets with their stamps changed; None says that there are no more.

        A packet that jumps waits for the next one of its stream. If that goes on where the one
        before had been, the stamps of this one are damaged and are not used.
        """
        if packet is not None:
            self._agree(packet)
        if self.waiting:
            first = self.waiting[0]
            self.waiting += [] if packet is None else [packet]
            neighbour = packet is not None and packet.stream_index == first.stream_index
            if packet is not None and not neighbour and len(self.waiting) < WAITING:
                return
            if packet is not None and neighbour and 0 <= self._step(packet) <= NEAR:
                self._forget(first)
            ready, self.waiting = self.waiting, []
        elif packet is None:
            return
        elif not -BACK <= self._step(packet) <= NEAR:
            self.waiting = [packet]
            return
        else:
            ready = [packet]
        for one in ready:
            self._place(one)
            yield one

    def _step(self, packet: Any) -> float:
        """Return the seconds from the stamp of the packet before to this one's; 0: unknown."""
        raw, mine = _seconds(packet), self.streams.get(packet.stream_index)
        return 0.0 if raw is None or mine is None else raw - mine.last

    def _forget(self, packet: Any) -> None:
        what = f"a stamp {self._step(packet):.3f} s from its neighbours is damaged; it is not used"
        self.log(max((self.end or 0.0) - self.origin, 0.0), "clock", what)
        packet.dts = packet.pts = None

    def _agree(self, packet: Any) -> None:
        """Of two stamps that contradict each other drop the one that is further from the last."""
        mine = self.streams.get(packet.stream_index)
        if mine is None or packet.dts is None or packet.pts is None or not packet.time_base:
            return
        dts, pts = (float(stamp * packet.time_base) for stamp in (packet.dts, packet.pts))
        if abs(pts - dts) > APART and abs(pts - mine.last) < abs(dts - mine.last):
            packet.dts = None
        elif abs(pts - dts) > APART:
            packet.pts = None

    def _place(self, packet: Any) -> None:
        """Change a packet's stamps."""
        raw, newest = _seconds(packet), len(self.shifts) - 1
        if raw is None:
            return
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

    def beyond(self, time: float) -> bool:
        """Return whether a frame's stamp is further ahead of all packets than any pause."""
        return self.end is not None and time - self.end > AHEAD

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


def _seconds(packet: Any) -> float | None:
    """Return the stamp that a packet is placed by, as stored."""
    stamp = packet.dts if packet.dts is not None else packet.pts
    return float(stamp * packet.time_base) if stamp is not None and packet.time_base else None

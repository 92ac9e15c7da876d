"""Compressed packets: choice of streams, and one bounded queue per stream.

Look-ahead lives here, in compressed form: decoded frames are never queued. See docs/media.md.
"""

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import av
from av.container import InputContainer
from av.error import ExitError
from av.stream import Disposition

from jaxmem.data.media.events import Log, cause
from jaxmem.data.media.library import discard
from jaxmem.data.media.timeline import Timeline

Kind = Literal["video", "audio"]

_MAX_BACK = 10.0  # s; a stamp that goes back further is a reset of the clock


@dataclass
class Clock:
    """Media time of one stream's stamps: the common origin taken off, clock resets closed.

    A frame may not be `beyond` all packets that were read: its stamp is then damaged.
    """

    kind: Kind
    log: Log
    beyond: Callable[[float], bool]  # whether a stamp is ahead of all packets
    origin: float = 0.0
    shift: float = 0.0

    def __call__(self, stamp: float | None, expected: float | None) -> float:
        """Seconds of media time of `stamp`; `expected` is where the last frame ended, if any."""
        if stamp is None:
            return 0.0 if expected is None else expected
        t = stamp - self.origin + self.shift
        late = self.beyond(stamp + self.shift)
        if expected is not None and (t - expected < -_MAX_BACK or late):
            jump = t - expected
            what = f"{self.kind} time stamps jump by {jump:.3f} s; jump closed"
            self.log(expected, "clock", what)
            self.shift -= jump
            t = expected
        return t


def describe_streams(container: InputContainer, kind: Kind) -> str:
    """The streams of one kind in words, for messages."""
    streams = getattr(container.streams, kind)
    names = [
        f"{i}: {s.codec_context.name if s.codec_context is not None else 'no decoder'}"
        for i, s in enumerate(streams)
    ]
    return f"{len(names)} {kind} stream(s)" + (f" ({', '.join(names)})" if names else "")


def odd_layouts(container: InputContainer) -> dict[int, str]:
    """The channel layouts, by number of stream, whose channels have an order of their own.

    PyAV 17 and 18 corrupt memory as soon as they look at such a layout, so FFmpeg is asked for its
    description of the file instead.
    """
    if not container.streams.audio:
        return {}
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        text = cast(Any, container).dumps_format()
    except Exception:  # tags that are no text, for example: they never decide
        return {}
    finally:
        av.logging.set_level(level)
    found = re.findall(r"Stream #\d+:(\d+).*?: Audio: .*?(\d+ channels \([A-Z][^)]*\))", text)
    return {int(number): layout for number, layout in found}


def choose_stream(
    container: InputContainer, kind: Kind, wanted: int | None, name: str, log: Log
) -> Any:
    """The stream of a kind: number `wanted` among that kind, or the first one that decodes.

    Cover pictures (attached to music) are chosen only by number. Sound whose channels have an
    order of their own is left out, with an event.

    Raises:
      ValueError: `wanted` names no stream, or one that cannot be decoded.
    """
    streams = getattr(container.streams, kind)
    odd = odd_layouts(container) if kind == "audio" else {}
    if wanted is None:
        for stream in streams:
            attached = kind == "video" and Disposition.attached_pic in stream.disposition
            if stream.index in odd:
                what = f"{odd[stream.index]}: an order of channels without a standard name"
                log(0.0, "audio_layout", f"sound of {what}, left out")
            elif stream.codec_context is not None and not attached:
                return stream
        return None
    if 0 <= wanted < len(streams) and streams[wanted].index in odd:
        raise ValueError(
            f"{name}: {kind}_stream={wanted} has {odd[streams[wanted].index]}, an order of "
            "channels that cannot be mixed. Give another stream, or convert it to stereo"
        )
    if not 0 <= wanted < len(streams) or streams[wanted].codec_context is None:
        raise ValueError(
            f"{name}: {kind}_stream={wanted} cannot be read; the source has "
            f"{describe_streams(container, kind)}. Give an index among those, or None"
        )
    return streams[wanted]


@dataclass
class _Queue:
    """Packets of one stream that are read but not yet decoded."""

    packets: deque[tuple[Any, float]] = field(default_factory=deque)
    seconds: float = 0.0
    size: int = 0
    newest: float | None = None

    def push(self, packet: Any, longest: float) -> None:
        stamp = packet.dts if packet.dts is not None else packet.pts
        at = None if stamp is None else float(stamp * packet.time_base)
        step = 0.0 if at is None or self.newest is None else at - self.newest
        if at is not None:
            self.newest = at
        # One pause or clock reset must not make the queue look full by itself.
        step = min(max(step, 0.0), longest)
        self.packets.append((packet, step))
        self.seconds += step
        self.size += packet.size

    def pop(self) -> Any:
        packet, step = self.packets.popleft()
        self.seconds -= step
        self.size -= packet.size
        if not self.packets:
            self.seconds = 0.0
        return packet


class Packets:
    """Reads a container's packets on demand, at most `look_ahead` s or `max_bytes` per stream."""

    def __init__(
        self,
        container: InputContainer,
        streams: dict[Kind, Any],
        *,
        look_ahead: float,
        max_bytes: int,
        patience: float,
        log: Log,
    ) -> None:
        self.log = log
        self.container = container
        self.streams = streams
        self.look_ahead = look_ahead
        self.max_bytes = max_bytes
        self.patience = patience
        self.failure: tuple[str, str] | None = None  # (kind, reason) of an end by error
        for stream in container.streams:
            if stream not in streams.values():
                discard(stream)
        self.restart()

    def restart(self) -> None:
        """Forgets what was read ahead: for a first start, and after a seek."""
        self.queues: dict[Kind, _Queue] = {kind: _Queue() for kind in self.streams}
        self._by_index: dict[int, Kind] = {s.index: kind for kind, s in self.streams.items()}
        self.done = False
        self.timeline = Timeline(self.log)
        self._source = self.container.demux(*self.streams.values())

    def next(self, kind: Kind) -> Any:
        """The next packet of a stream; None at the end of the source (`done`) or if it lags.

        A stream lags when another one's queue has reached its limit before a packet of this one
        came: waiting longer would hold more memory than promised.
        """
        queue = self.queues[kind]
        while not queue.packets:
            if self.done or any(self._full(q) for k, q in self.queues.items() if k != kind):
                return None
            self._read()
        return queue.pop()

    def _full(self, queue: _Queue) -> bool:
        return (
            queue.seconds > self.look_ahead
            or queue.size > self.max_bytes
            or len(queue.packets) > 50_000  # packets with neither stamp nor size
        )

    def _read(self) -> None:
        """Queues one packet, or sets `done` (and `failure`)."""
        waited_from = time.monotonic()
        while True:
            try:
                packet = next(self._source)
                break
            except (StopIteration, EOFError):
                self.done = True
                self._queue(None)
                return
            except BlockingIOError:  # a device with nothing to give yet
                if time.monotonic() - waited_from > self.patience:
                    self._fail("stalled", f"no data for {self.patience:g} s")
                    return
                time.sleep(0.005)
                self._source = self.container.demux(*self.streams.values())
            except (ExitError, TimeoutError) as error:
                self._fail("stalled", f"the source gave no data in time ({cause(error)})")
                return
            except (av.FFmpegError, OSError) as error:
                self._fail("damaged", f"reading failed ({cause(error)})")
                return
            except Exception as error:  # of the library's own making, at the end of odd files
                self.done = True
                self._queue(None)
                end, origin = self.timeline.end or 0.0, self.timeline.origin
                what = f"the decoder library ended with {type(error).__name__} ({error})"
                self.log(max(end - origin, 0.0), "library", what)
                return
        # The dummy packets at the end, and empty ones, would drain the decoder.
        if packet.size:
            self._queue(packet)

    def _queue(self, packet: Any | None) -> None:
        for ready in self.timeline(packet):
            self.queues[self._by_index[ready.stream_index]].push(ready, self.look_ahead / 2)

    def beyond(self, time: float) -> bool:
        """Whether a stamp is further ahead of all packets that were read than any pause."""
        return self.timeline.beyond(time)

    def _fail(self, kind: str, reason: str) -> None:
        self.done = True
        self._queue(None)
        self.failure = (kind, reason)


class Decoder:
    """Decoded frames of one stream, one at a time; decoding goes on after a damaged packet."""

    def __init__(self, packets: Packets, kind: Kind, log: Log) -> None:
        self.packets = packets
        self.kind: Kind = kind
        self.stream = packets.streams[kind]
        self.log = log
        self.restart()

    def restart(self) -> None:
        """Forgets frames in flight: for a first start, and after a seek."""
        self._frames: deque[Any] = deque()
        self._drained = False
        self.broken: str | None = None  # why the last packet gave nothing, until a good frame comes

    @property
    def ended(self) -> bool:
        """Whether no frame will come any more."""
        return self._drained and not self._frames

    def next(self, now: float) -> Any:
        """The next frame; None if the stream ended (`ended`) or lags behind the other one.

        Damage on the way is an event at media time `now`, in seconds. It is given with each call: a
        decoder that asked its track would form a cycle with it, and a closed file would hold its
        frames and buffers until Python collects cycles.
        """
        while not self._frames:
            if self._drained:
                return None
            packet = self.packets.next(self.kind)
            if packet is None and not self.packets.done:
                return None
            self._drained = packet is None
            if packet is not None and packet.is_corrupt:
                self._damage("data are missing or damaged", now)
            try:
                self._frames.extend(self.stream.codec_context.decode(packet))
            except EOFError:
                pass
            except Exception as error:  # whatever the library makes of a damaged packet
                self._damage(cause(error), now)
        frame = self._frames.popleft()
        if frame.is_corrupt:
            self._damage("a frame decoded with errors", now)
        elif self.kind == "audio" or frame.key_frame:
            # Errors of a picture run on in those that are built on it.
            self.broken = None
        return frame

    def stamp(self, frame: Any) -> float | None:
        """The frame's own time stamp in seconds."""
        if frame.pts is None:
            return None
        base = frame.time_base or self.stream.time_base
        return None if base is None else float(frame.pts * base)

    def _damage(self, reason: str, now: float) -> None:
        if self.broken is None:  # once per damaged stretch
            self.log(now, "damaged", f"{self.kind}: {reason}")
        self.broken = reason

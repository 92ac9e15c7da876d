"""The audio track: mono samples by media time. See docs/media.md."""

from collections import deque
from typing import Any

import av
import numpy as np

from jaxmem.data.media.demux import Clock, Decoder, Packets
from jaxmem.data.media.events import Log
from jaxmem.data.media.library import NEW, WITHIN_RANGE
from jaxmem.data.samples import LOUDEST, plausible

MOST_CHANNELS = 8 if NEW else 1
"""More cannot be mixed by the library, or not within their range; their mean is taken."""
MOST_PLANES = 8
"""Channels with a plane each. PyAV reads beyond memory where an array is made of more."""
_TOLERANCE = 0.05  # s; audio stamps jitter by rounding, which must not cut the sound into shreds


def _unmixable(frame: Any) -> bool:
    """Whether the library cannot mix a frame's channels into one, within their range."""
    return frame.layout.nb_channels > MOST_CHANNELS or _ambisonic(frame)


def _ambisonic(frame: Any) -> bool:
    return frame.layout.name.startswith("ambisonic")


def _one(samples: np.ndarray, frame: Any) -> np.ndarray:
    """The mean over a frame's channels (of ambisonic sound what comes from all around: the first).

    It is float32 [1, n]; full scale is 1.
    """
    channels = frame.layout.nb_channels
    x = samples if frame.format.is_planar else samples.reshape(-1, channels).T
    kind = np.dtype(x.dtype)
    wide = x.astype(np.float32)
    if kind.kind == "u":
        wide = wide / 128 - 1
    elif kind.kind == "i":
        wide = wide / -float(np.iinfo(kind).min)
    return wide[:1] if _ambisonic(frame) else wide.mean(axis=0, keepdims=True, dtype=np.float32)


class AudioTrack:
    """Mono samples at one rate, by media time."""

    def __init__(self, packets: Packets, log: Log, rate: int, limit: float | None) -> None:
        self.clock = Clock("audio", log, packets.beyond)
        self.decoder = Decoder(packets, "audio", log)
        self.stream = self.decoder.stream
        self.log = log
        self.rate = rate
        self.limit = None if limit is None else round(limit * rate)
        self.restart()

    def restart(self) -> None:
        """Forgets all samples: for a first start, and after a seek."""
        self.decoder.restart()
        self._primed: Any = None
        self._resampler: av.AudioResampler | None = None
        # Format, layout and rate the resampler was made for.
        self._setup: tuple[Any, ...] | None = None
        self._expected: float | None = None  # media time right after the last decoded frame
        self._cursor = 0  # index of the next sample that the resampler gives out
        self._refused = False  # whether the last frame could not be converted
        self._silenced = False  # whether the last frame had samples that were silenced
        self._blocks: deque[tuple[int, np.ndarray]] = deque()  # (index of first sample, samples)
        self._filled = 0  # everything before this index is decided
        self._read = 0  # everything before this index was given out

    @property
    def ended(self) -> bool:
        """Whether no sample will be added any more."""
        if self.limit is not None and self._filled >= self.limit:
            return True
        return self.decoder.ended and self._primed is None and self._resampler is None

    @property
    def end(self) -> float:
        """Media time in seconds after the newest sample."""
        return self._filled / self.rate

    def prime(self) -> float | None:
        """Decodes the first frame; its raw stamp in seconds (0.0 without one), None if none."""
        self._primed = self.decoder.next(self.end)
        if self._primed is None:
            return None
        stamp = self.decoder.stamp(self._primed)
        return 0.0 if stamp is None else stamp

    def skip(self, index: int) -> None:
        """Leaves out everything before sample `index`."""
        self._filled = max(self._filled, index)
        self._read = index

    def read(self, start: int, count: int) -> tuple[np.ndarray, bool]:
        """float32 [count] from sample `start` on, and whether any of it is real."""
        stop = start + count
        while self._filled < stop and not self.ended:
            if not self._decode():
                break
        out = np.zeros(count, np.float32)
        real = False
        while self._blocks and self._blocks[0][0] < stop:
            index, block = self._blocks.popleft()
            a, b = max(index, start), min(index + len(block), stop)
            if a < b:
                out[a - start : b - start] = block[a - index : b - index]
                real = True
            if index + len(block) > stop:
                self._blocks.appendleft((stop, block[stop - index :].copy()))
                break
        self._read = max(self._read, stop)
        return out, real

    def _decode(self) -> bool:
        """Takes in one decoded frame, or the rest of the resampler; False if there is none."""
        frame, self._primed = self._primed, None
        if frame is None:
            frame = self.decoder.next(self.end)
        if frame is None:
            if self.decoder.ended:
                self._flush()
            return False
        setup = (frame.format.name, frame.layout.name, frame.sample_rate)
        t = self.clock(self.decoder.stamp(frame), self._expected)
        gap = 0.0 if self._expected is None else t - self._expected
        if self._resampler is None or setup != self._setup or abs(gap) > _TOLERANCE:
            if abs(gap) > _TOLERANCE and self._expected is not None:
                what = "missing, filled with silence" if gap > 0 else "overlapping, dropped"
                self.log(self._expected, "audio_gap", f"{abs(gap):.3f} s of sound {what}")
                self.log.lose("sound", gap)
            self._flush()
            self._begin(frame, setup, t)
            self._expected = t
        assert self._expected is not None  # set by the run's first frame
        # Counted from the start of the run: jitter does not add up, drift does and ends the run.
        self._expected += frame.samples / frame.sample_rate
        frame.pts = None
        self._push(frame)
        return True

    def _begin(self, frame: Any, setup: tuple[Any, ...], t: float) -> None:
        """Starts a run of frames that follow each other; its first sample lies at `t`."""
        self._setup = setup
        self._cursor = round(t * self.rate)
        # The option keeps a mix of channels within the range of its channels: (L + R) / 2.
        self._resampler = av.AudioResampler("flt", "mono", self.rate, **WITHIN_RANGE)
        self._packer = av.AudioResampler(frame.format.packed, frame.layout, frame.sample_rate)

    def _plain(self, frame: Any) -> Any:
        """A frame that the resampler can mix: plausible samples, in one channel if need be."""
        alone = _unmixable(frame)
        if not alone and not frame.format.name.startswith(("flt", "dbl")):
            return frame
        if frame.format.is_planar and frame.layout.nb_channels > MOST_PLANES:
            (frame,) = self._packer.resample(frame)
        samples = frame.to_ndarray()
        good, bad = plausible(samples)
        if bad and not self._silenced:
            what = f"samples beyond {LOUDEST:g} times full scale were silenced"
            self.log(self._expected or self.end, "damaged", f"audio: {what}")
        self._silenced = bool(bad)
        if not alone and not bad:
            return frame
        layout, form = frame.layout.name, frame.format.name
        if alone:
            good, layout, form = _one(good, frame), "mono", "flt"
        new = av.AudioFrame.from_ndarray(good, format=form, layout=layout)
        new.sample_rate, new.time_base = frame.sample_rate, frame.time_base
        return new

    def _flush(self) -> None:
        """Ends a run: takes the last samples out of the resampler."""
        if self._resampler is not None:
            self._push(None)
            self._resampler = None

    def _push(self, frame: Any) -> None:
        assert self._resampler is not None  # a run is open
        try:
            blocks = self._resampler.resample(None if frame is None else self._plain(frame))
        except Exception as error:
            if not self._refused:
                what = f"audio: {self._setup} cannot be converted ({error})"
                self.log(self.end, "damaged", what)
            self._refused, self._resampler = True, None
            return
        self._refused = False
        for block in blocks:
            if block is not None:
                self._store(block.to_ndarray()[0])

    def _store(self, block: np.ndarray) -> None:
        """Puts samples at the cursor; what overlaps earlier ones, or comes too late, is dropped."""
        index = self._cursor
        self._cursor += len(block)
        floor = max(self._filled, self._read)
        if index < self._read and self._filled < self._read:
            self.log(index / self.rate, "audio_late", "sound came after its time and was dropped")
        stop = index + len(block) if self.limit is None else min(index + len(block), self.limit)
        begin = max(index, floor)
        self._filled = max(self._filled, stop)
        if begin < stop:
            block, _ = plausible(block[begin - index : stop - index].astype(np.float32))
            self._blocks.append((begin, block))

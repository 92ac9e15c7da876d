"""Pictures and sound that a client pushes become pieces, by their times or by the clock."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

from jaxmem.data.media.picture import fitted
from jaxmem.models.base import MediaFormat

SAMPLE_RATE = 16_000
"""Hz of the sound that clients push; a model of another rate has it resampled."""
PAUSE = 2.0
"""Seconds; after a longer pause the stream goes on where it was, as if there had been none."""
LATE = 0.5
"""Seconds that the slower of pictures and sound is waited for."""
EPS = 1e-6

Kind = Literal["video", "audio"]


class Pushed(NamedTuple):
    """A piece of the model's format."""

    frames: np.ndarray  # uint8 [F, h, w, 3]
    samples: np.ndarray  # float32 [n]


class Times:
    """The stream times of what one client pushes, in seconds; each kind's never go back.

    The clock begins where the stream is when it first counts. So do times that the client gives, if
    they are not those of the stream anyway. A pause is left out, of both kinds at once.
    """

    def __init__(self, begin: float):
        """Begin at stream time `begin`."""
        self.latest = begin
        self._shift: dict[bool, float] = {}  # of the clock, and of given times
        self._last: dict[Kind, float] = {}

    def picture(self, given: float | None, now: float, step: float) -> float:
        """Return the time of a picture that came now, or at a given time; `step` after a pause."""
        return self._note("video", self._place(given, now, 0.0, step))

    def sound(self, given: float | None, now: float, length: float) -> float:
        """Return when sound of a length began, at a given time or right after the last.

        Sound without a time that comes faster than it lasts moves the clock on.
        """
        begin = self._place(given, now, length, length)
        last = self._last.get("audio", begin)
        if given is None and begin < last + LATE:
            self._shift[False] += max(last - begin, 0.0)
            begin = last
        begin = max(begin, last)
        self._note("audio", begin + length)
        return begin

    def skip(self, to: float) -> None:
        """Go on from a stream time, if that is later."""
        by = to - self.latest
        if by > 0:
            self.latest = to
            self._shift = {known: shift + by for known, shift in self._shift.items()}
            self._last = {kind: to for kind in self._last}

    def _place(self, given: float | None, now: float, length: float, step: float) -> float:
        """Return where something begins that ends now, or begins at a given time."""
        raw = now - length if given is None else given
        known, shift = given is not None, self.latest - raw
        if known and abs(shift) <= PAUSE:  # they are times of the stream
            shift = 0.0
        at = raw + self._shift.setdefault(known, shift)
        if not -PAUSE <= at + length - self.latest <= max(PAUSE, 2 * step):
            at = self.latest + step - length
            self._shift[known] = at - raw
        return at

    def _note(self, kind: Kind, to: float) -> float:
        self._last[kind] = max(to, self._last.get(kind, to))
        self.latest = max(self.latest, self._last[kind])
        return self._last[kind]


class Gatherer:
    """Makes pieces of what is pushed, as a reader makes them of a file.

    The frame of a time is the last picture that came by then (`media.VideoTrack`), ahead of the
    first one that one. A piece is over when pictures and sound, as far as there are any, have
    reached its end, or one of them is `LATE` beyond it.
    """

    def __init__(self, media: MediaFormat, begin: int = 0):
        """Gather pieces from number `begin` on, for a model fitted to the size of its frames."""
        assert isinstance(media.size, tuple)
        self.media, self._piece, self._size = media, begin, media.size
        self._count = round(media.fps * media.piece_seconds)
        self._step = media.piece_seconds / self._count
        self._times = Times(begin * media.piece_seconds)
        self._reached: dict[Kind, float] = {}
        self._shown: np.ndarray | None = None  # the last picture before the open piece
        self._pictures: list[tuple[float, np.ndarray]] = []
        self._wave = np.zeros(0, np.float32)  # from the beginning of the open piece on

    @property
    def end(self) -> float:
        """Return the stream time in seconds at which the open piece ends."""
        return (self._piece + 1) * self.media.piece_seconds

    @property
    def reached(self) -> float:
        """Return the stream time in seconds that pictures or sound have come to."""
        return self._times.latest

    @property
    def newest(self) -> np.ndarray | None:
        """Return the last picture that came, as the model sees it; None: none has."""
        return self._pictures[-1][1] if self._pictures else self._shown

    @property
    def _start(self) -> float:
        return self._piece * self.media.piece_seconds

    def picture(self, picture: np.ndarray, now: float, at: float | None = None) -> list[Pushed]:
        """Take a picture uint8 [h, w, 3]; return the pieces that are over.

        Args:
          picture: of any size.
          now: on a clock in seconds.
          at: when the picture was taken, on a clock of the client; None: now.
        """
        at = self._times.picture(at, now, 1 / self.media.fps)
        done = self._moved("video", at)
        slot = lambda at: math.ceil((at - self._start) / self._step - 0.5 - EPS)
        known = len(self._pictures) + (self._shown is not None)
        if known > 1 and self._pictures and slot(self._pictures[-1][0]) == slot(at):
            self._pictures.pop()  # no frame would show it
        self._pictures.append((at, fitted(picture, self._size)))
        return done

    def sound(self, samples: np.ndarray, now: float, at: float | None = None) -> list[Pushed]:
        """Take samples float32 [n]; return the pieces that are over.

        Args:
          samples: at `SAMPLE_RATE`.
          now: on a clock in seconds.
          at: when they began, on a clock of the client; None: they follow the last ones, or end
            now if there was a pause.
        """
        length, rate = len(samples) / SAMPLE_RATE, self.media.sample_rate
        begin = self._times.sound(at, now, length)
        if rate != SAMPLE_RATE:
            samples = resampled(samples, rate)
        first = round((begin - self._start) * rate)
        samples, first = samples[max(-first, 0) :], max(first, 0)
        more = first + len(samples) - len(self._wave)
        if more > 0:
            self._wave = np.concatenate([self._wave, np.zeros(more, np.float32)])
        self._wave[first : first + len(samples)] = samples
        return self._moved("audio", begin + length)

    def _moved(self, kind: Kind, to: float) -> list[Pushed]:
        """Note how far pictures or sound have come; return the pieces that are over by that."""
        self._reached[kind] = to
        done = []
        while self._over():
            done.append(self._make())
            self._drop()
        return done

    def _over(self) -> bool:
        reached, end = self._reached.values(), self.end - EPS
        return min(reached) >= end or max(reached) >= end + LATE

    def _make(self) -> Pushed:
        media = self.media
        frames = np.zeros((self._count, *self._size, 3), np.uint8)
        early = next((p for at, p in self._pictures if at < self.end - EPS), None)
        first = early if self._shown is None else self._shown
        for i in range(self._count):
            t = self._start + (i + 0.5) * self._step
            shown = next((p for at, p in reversed(self._pictures) if at <= t + EPS), first)
            if shown is not None:
                frames[i] = shown
        samples = np.zeros(round(media.sample_rate * media.piece_seconds), np.float32)
        heard = self._wave[: len(samples)]
        samples[: len(heard)] = heard
        return Pushed(frames, samples)

    def _drop(self) -> None:
        """Go on to the next piece, and forget what lies before it."""
        gone = [picture for at, picture in self._pictures if at < self.end - EPS]
        self._shown = gone[-1] if gone else self._shown
        del self._pictures[: len(gone)]
        self._wave = self._wave[round(self.media.sample_rate * self.media.piece_seconds) :]
        self._piece += 1

    def unfinished(self) -> Pushed | None:
        """Return the open piece as far as it has come; None: nothing of it has."""
        return self._make() if self._pictures or len(self._wave) else None

    def flush(self) -> list[Pushed]:
        """End the open piece, if anything of it has come; what follows begins where it ends."""
        done = []
        while (piece := self.unfinished()) is not None:
            done.append(piece)
            self._drop()
        self._times.skip(self._start)
        return done


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return samples float32 [n] of `SAMPLE_RATE` at another rate in Hz."""
    from scipy.signal import resample_poly

    divisor = math.gcd(rate, SAMPLE_RATE)
    out = resample_poly(samples, rate // divisor, SAMPLE_RATE // divisor)
    return np.asarray(out, np.float32)

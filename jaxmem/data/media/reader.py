"""`MediaReader`: the tracks of one source put together into pieces. See docs/media.md."""

import math
import os
from typing import Any, Self

import av
import numpy as np

from jaxmem.data.media.audio import AudioTrack
from jaxmem.data.media.demux import Packets
from jaxmem.data.media.events import Event, Log
from jaxmem.data.media.types import End, MediaInfo, Piece
from jaxmem.data.media.video import EPS, Size, VideoTrack

_TAIL = 0.05  # s; a shorter rest (codec padding) does not make a piece of its own
_SHORT = 0.25  # s; how much less than declared still counts as complete
_WORTH_SEEKING = 2.0  # s
_FAR_APART = 3600.0  # s; first stamps further apart than this do not belong to one clock
# Headers of these say how long the media is. Others are guesses from the bit rate.
_DECLARING = {"mov", "matroska", "webm", "avi", "flv", "wav", "flac", "ogg", "asf", "mxf"}


class StalledError(ValueError):
    """The source was opened, and then gave no data in time."""


class MediaReader:
    """Iterator of `Piece`s; made by `open_media`. A context manager.

    `info` is there at once, `events` grows while reading, `end` is set when iteration is over.
    """

    def __init__(
        self,
        container: Any,
        name: str,
        video: VideoTrack | None,
        audio: AudioTrack | None,
        packets: Packets,
        log: Log,
        *,
        frames: int,
        piece_seconds: float,
        sample_rate: int,
        size: Size | None,
        start: float,
        stop: float | None,
        seekable: bool,
    ) -> None:
        self._container = container
        self._video, self._audio = video, audio
        self._packets, self._log = packets, log
        self._frames, self._seconds, self._rate = frames, float(piece_seconds), int(sample_rate)
        self._start, self._stop = float(start), math.inf if stop is None else float(stop)
        self._count = 0
        self._over: set[str] = set()
        self.end: End | None = None
        origin = self._prime(name)
        self._size = size or (video.size if video and video.size else (0, 0))
        self._declared = {t.decoder.kind: _declared(t.stream, origin) for t in self._tracks}
        self.info = self._describe(name, origin)
        if start >= _WORTH_SEEKING and seekable:
            self._seek(origin)
        self._skip()

    @property
    def events(self) -> list[Event]:
        """What happened so far, oldest first."""
        return self._log.events

    @property
    def _tracks(self) -> list[Any]:
        return [track for track in (self._video, self._audio) if track is not None]

    def _prime(self, name: str) -> float:
        """Decodes the first frame of each stream and sets the origin of media time."""
        stamps = {id(track): track.prime() for track in self._tracks}
        known = [s for s in stamps.values() if s is not None]
        if not known:
            cause = self._packets.failure or next(
                ((e.kind, e.message) for e in self.events), ("end", "it holds no frames")
            )
            if cause[0] == "stalled":
                raise StalledError(f"{name}: nothing can be decoded: {cause[1]}")
            if self._container.format.name == "webp_pipe":
                raise ValueError(
                    f"{name}: nothing can be decoded: animated WebP is not supported by the "
                    "decoder library; convert it to GIF or mp4"
                )
            hint = (
                ". A pipe cannot be read if the index lies at the end of the file (mp4): give the "
                "file itself, or one written with the index first"
            )
            raise ValueError(
                f"{name}: nothing can be decoded: {cause[1]}"
                + ("" if os.path.isfile(name) else hint)
            )
        origin = self._packets.timeline.origin = min(known)
        for track in self._tracks:
            stamp = stamps[id(track)]
            track.clock.origin = origin
            if stamp is not None and (stamp - origin > _FAR_APART or self._packets.beyond(stamp)):
                track.clock.origin = stamp
                self._log(0.0, "clock", f"{track.decoder.kind} starts on a clock of its own")
        if self._video is not None:
            self._video.place()
        return origin

    def _describe(self, name: str, origin: float) -> MediaInfo:
        container, video, audio = self._container, self._video, self._audio
        v = video.stream if video is not None else None
        a = audio.stream if audio is not None else None
        declared = [d for d in self._declared.values() if d is not None]
        if not declared and container.duration:
            declared = [container.duration / 1e6 - max(origin, 0.0)]
        return MediaInfo(
            source=name,
            format=container.format.name,
            duration=max(declared) if declared and max(declared) > 0 else None,
            start_time=origin,
            video_codec=v.codec_context.name if v is not None else None,
            native_size=video.native if video is not None else None,
            size=self._size,
            frame_rate=float(v.average_rate) if v is not None and v.average_rate else None,
            rotation=video.rotation or 0 if video is not None else 0,
            audio_codec=a.codec_context.name if a is not None else None,
            audio_rate=a.codec_context.sample_rate if a is not None else None,
            audio_layout=a.codec_context.layout.name if a is not None else None,
            video_streams=len(container.streams.video),
            audio_streams=len(container.streams.audio),
        )

    def _seek(self, origin: float) -> None:
        """Moves to a key frame before `start`, as close to it as the format lets find one.

        Formats without an index seek to any frame, and show nothing up to the next key frame. They
        also need a target ahead of their first frame to give all of it.
        """
        for margin in (1.0, 10.0, 60.0, self._start + 10.0):
            try:
                self._container.seek(int((origin + self._start - margin) * 1e6))
            except (av.FFmpegError, OSError) as error:
                self._log(0.0, "seek", f"seeking failed ({error}); read on from there")
                return
            self._packets.restart()
            for track in self._tracks:
                track.restart()
                track.prime()
            if self._video is None:
                return
            self._video.place()
            if self._video.first is not None and self._video.first <= self._start:
                return

    def _skip(self) -> None:
        """Decodes, both streams in step, what lies before `start`, and leaves it out."""
        video, audio = self._video, self._audio
        first = round(self._start * self._rate)
        for at in range(0, first, self._rate):
            if video is not None:
                video.advance(at / self._rate)
            if audio is not None:
                audio.read(at, min(self._rate, first - at))
        if audio is not None:
            audio.skip(first)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Piece:
        if self.end is not None:
            raise StopIteration
        start = self._start + self._count * self._seconds
        stop = start + self._seconds
        frames, has_video = self._see(start, stop)
        samples, has_audio = self._hear(start)
        valid = self._seconds
        if all(track.ended for track in self._tracks):
            valid = min(valid, max(track.end for track in self._tracks) - start)
        valid = min(valid, self._stop - start)
        if valid < (_TAIL if self._count else EPS):
            self.end = self._conclude()
            raise StopIteration
        self._count += 1
        self._note_lost(start)
        return Piece(start, frames, samples, has_video, has_audio, valid)

    def _see(self, start: float, stop: float) -> tuple[np.ndarray, bool]:
        """The frames [F, h, w, 3] of a piece, and whether any is real."""
        frames = np.zeros((self._frames, *self._size, 3), np.uint8)
        video = self._video
        if video is None:
            return frames, False
        if video.ended and video.end <= start + EPS:
            return frames, False
        real = False
        for i in range(self._frames):
            t = start + (i + 0.5) * self._seconds / self._frames
            picture = video.picture(t, stop)
            if picture is not None:
                frames[i] = picture
                real = True
        video.advance(stop)
        return frames, real

    def _hear(self, start: float) -> tuple[np.ndarray, bool]:
        """The samples of a piece, and whether any is real."""
        first, count = round(start * self._rate), round(self._seconds * self._rate)
        audio = self._audio
        if audio is None:
            return np.zeros(count, np.float32), False
        return audio.read(first, count)

    def _note_lost(self, start: float) -> None:
        """Notes, once, that one stream is over while the other one still fills pieces."""
        for track in self._tracks:
            kind = track.decoder.kind
            if track.ended and track.end <= start + EPS and kind not in self._over:
                self._over.add(kind)
                self._log(track.end, f"{kind}_end", f"{kind} is over, the other stream goes on")

    def _conclude(self) -> End:
        """Where and why the media ended, from what was decoded and what was declared."""
        time = max(track.end for track in self._tracks)
        if self._count == 0 and self._packets.failure is None:
            if time <= self._start and self._start > 0:
                return End(time, f"start={self._start:g} s is not before the end", "end")
            told = self.events[0].message if self.events else "it holds no frames"
            return End(time, f"nothing could be decoded: {told}", "damaged")
        if self._packets.failure is not None:
            kind, reason = self._packets.failure
            return End(time, reason, kind)
        for track in self._tracks:
            if track.decoder.broken is not None and track.decoder.ended:
                kind = track.decoder.kind
                reason = f"{kind}: {track.decoder.broken}; no good frame followed"
                return End(time, reason, "damaged")
        if time >= self._stop - EPS:
            return End(time, f"stop={self._stop:g} s was reached", "stop")
        return self._check_declared(time)

    def _check_declared(self, time: float) -> End:
        """Tells a silent truncation from a regular end."""
        if _DECLARING.isdisjoint(self.info.format.split(",")):
            return self._ended(time)
        # The whole file's duration leaves out what an edit list cuts off a stream.
        whole = self._container.duration
        whole = whole / 1e6 - max(self.info.start_time, 0.0) if whole else math.inf
        for track in self._tracks:
            declared, kind = self._declared[track.decoder.kind], track.decoder.kind
            if declared is not None and track.end < min(declared, whole) - _SHORT:
                reason = f"{declared:.3f} s of {kind} declared, {track.end:.3f} s decoded"
                return End(time, reason, "damaged")
        declared = self.info.duration
        if declared is not None and time < min(declared, whole) - _SHORT:
            return End(time, f"{declared:.3f} s declared, {time:.3f} s decoded", "damaged")
        return self._ended(time)

    def _ended(self, time: float) -> End:
        """A regular end, and what was lost in all."""
        lost = [f"{seconds:.1f} s of {what}" for what, seconds in self._log.lost.items() if seconds]
        if not lost:
            return End(time, "everything was decoded", "end")
        return End(time, f"decoded to the end; lost were {' and '.join(lost)}", "end")

    def close(self) -> None:
        """Closes the source. `info`, `events` and `end` stay readable."""
        self._container.close()
        if self.end is None:
            reached = self._start + self._count * self._seconds
            self.end = End(reached, "closed by the caller", "stop")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _declared(stream: Any, origin: float) -> float | None:
    """Media time in seconds at which a stream ends according to its header, if it says so."""
    if stream.duration and stream.time_base:
        return float((stream.duration + (stream.start_time or 0)) * stream.time_base) - origin
    parts = stream.metadata.get("DURATION", "").split(":")  # Matroska: "00:00:03.003000000"
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds - origin

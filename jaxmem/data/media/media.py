"""Any file, address, device or pipe as aligned pieces of pictures and sound, by time stamp.

What is guaranteed, and the rules for damaged and odd media, are in docs/media.md.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import av

from jaxmem.data.media.audio import AudioTrack
from jaxmem.data.media.demux import Kind, Packets, choose_stream, describe_streams
from jaxmem.data.media.events import Event, Log, cause
from jaxmem.data.media.live import LiveReader
from jaxmem.data.media.reader import StalledError
from jaxmem.data.media.source import Found, close, find
from jaxmem.data.media.types import End, MediaInfo, Piece
from jaxmem.data.media.video import Size, VideoTrack, check_size

__all__ = ["End", "Event", "LiveReader", "MediaInfo", "Piece", "open_media"]

_MAX_BYTES = 64 << 20  # of compressed packets read ahead, per stream
# Tags that are no UTF-8 must not matter; from PyAV 19 on that needs no option.
_LENIENT: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)


def open_media(
    source: Any,
    *,
    fps: float = 1.0,
    piece_seconds: float = 1.0,
    size: Size | Callable[[int, int], Size] | None = None,
    sample_rate: int = 16000,
    video_stream: int | None = None,
    audio_stream: int | None = None,
    start: float = 0.0,
    stop: float | None = None,
    format: str | None = None,
    options: dict[str, str] | None = None,
    timeout: float | None = 10.0,
    reconnect: bool = False,
    follow: bool = False,
    look_ahead: float = 10.0,
    threads: int = 1,
) -> LiveReader:
    """Opens anything PyAV opens, and reads it as aligned `Piece`s.

    A piece holds F = round(fps * piece_seconds) frames, sampled by time stamp at
    piece.start + (i + 0.5) * piece_seconds / F, and the samples of the same stretch of time.

    Args:
      source: a path, an address, a device, an object with `read`, or "-" for standard input.
      fps: frames per second to sample, whatever the source's own rate.
      piece_seconds: length of a piece in seconds; a whole number of samples.
      size: (h, w) of the frames; None: that of the first frame; a function: chosen from that.
        Without pictures both make frames of (0, 0). The aspect ratio is not kept.
      sample_rate: samples per second of the mono sound.
      video_stream: number among the video streams; None: the first that decodes, if any.
      audio_stream: the same for sound.
      start: media time in seconds of the first piece.
      stop: media time in seconds to end at; None: the end of the media.
      format: name of the container or device format, where it cannot be told from the content.
      options: passed on to the demuxer or device.
      timeout: seconds that an address, a pipe or a growing file may take to open, and to give
        each packet; None: any.
      reconnect: open an address or device that stalls or breaks off again, with growing pauses.
      follow: wait at the end of a file for what is added to it, `timeout` seconds at most.
      look_ahead: seconds of one stream that are read, still compressed, while waiting for the
        other one. It is also the longest delay of a live source whose other stream is silent.
      threads: decoding threads per stream. More are faster on large video, but may lose as many
        frames where a damaged file ends, and each delays a live source by one frame.

    Raises:
      ValueError: the source does not open, holds nothing that can be decoded, lacks the wanted
        stream, or an argument makes no sense.
    """
    if size is not None and not callable(size):
        size = check_size(size)
    frames = _check_numbers(fps, piece_seconds, sample_rate, start, stop, look_ahead, threads)
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be positive seconds, or None, got {timeout!r}")
    more = {"video_stream": video_stream, "audio_stream": audio_stream, "format": format}
    more |= {"options": options, "timeout": timeout, "look_ahead": look_ahead, "threads": threads}
    more |= {"fps": fps, "piece_seconds": piece_seconds, "sample_rate": sample_rate}
    closing = threading.Event()
    waits = {"follow": follow, "reconnect": reconnect, "timeout": timeout, "closing": closing}
    found = find(source, format=format, **waits)
    name = found.name
    container = None
    try:
        container = _open(found, format, options, timeout)
        log = Log()
        wanted: dict[Kind, int | None] = {"video": video_stream, "audio": audio_stream}
        streams = _chosen(container, name, wanted, threads, log)
        limits = {"look_ahead": look_ahead, "max_bytes": _MAX_BYTES, "patience": timeout or 10.0}
        packets = Packets(container, streams, log=log, **limits)
        reader = LiveReader(
            container,
            name,
            VideoTrack(packets, log, size, stop) if "video" in streams else None,
            AudioTrack(packets, log, sample_rate, stop) if "audio" in streams else None,
            packets,
            log,
            found=found,
            closing=closing,
            frames=frames,
            piece_seconds=piece_seconds,
            sample_rate=sample_rate,
            size=None if callable(size) else size,
            start=start,
            stop=stop,
            seekable=found.seekable,
        )
        if reconnect:
            same = reader.info.size if any(reader.info.size) else None
            reader.again = partial(open_media, source, **more, size=same)
        return reader
    except BaseException as error:
        if container is not None:
            container.close()
        close(found)
        seeks = found.remote and found.seekable and "seekable" not in (options or {})
        if not (isinstance(error, StalledError) and seeks):
            raise
    # FFmpeg looked for the length at the end of the file, and the server stalled there.
    more["options"] = {**(options or {}), "seekable": "0"}
    return open_media(source, **more, size=size, start=start, stop=stop, reconnect=reconnect)


def _chosen(
    container: Any, name: str, wanted: Mapping[Kind, int | None], threads: int, log: Log
) -> dict[Kind, Any]:
    """The streams to decode, of each kind at most one; a ValueError if there is none."""
    streams: dict[Kind, Any] = {}
    for kind, number in wanted.items():
        stream = choose_stream(container, kind, number, name, log)
        if stream is not None:
            streams[kind] = stream
            context = stream.codec_context
            context.thread_count = threads
            context.thread_type = "AUTO"
    if not streams:
        raise ValueError(
            f"{name}: neither video nor audio that can be decoded: "
            f"{describe_streams(container, 'video')}, {describe_streams(container, 'audio')}, "
            f"{len(container.streams)} stream(s) in all"
            + "".join(f"; {event.message}" for event in log.events)
        )
    return streams


def _check_numbers(
    fps: float,
    piece_seconds: float,
    sample_rate: int,
    start: float,
    stop: float | None,
    look_ahead: float,
    threads: int,
) -> int:
    """F, the frames of a piece; a ValueError if the arguments make no sense."""
    positive = {"fps": fps, "piece_seconds": piece_seconds, "sample_rate": sample_rate}
    for label, value in {**positive, "look_ahead": look_ahead}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{label} must be a positive number, got {value!r}")
    frames = round(fps * piece_seconds)
    if frames < 1:
        raise ValueError(
            f"fps={fps:g} gives no frame in a piece of {piece_seconds:g} s; "
            f"use longer pieces (piece_seconds={1 / fps:g} holds one) or a higher fps"
        )
    count = sample_rate * piece_seconds
    if int(sample_rate) != sample_rate or abs(count - round(count)) > 1e-6:
        raise ValueError(
            f"a piece of {piece_seconds:g} s must hold a whole number of samples, but at "
            f"sample_rate={sample_rate} it holds {count:g}; round piece_seconds, for example to "
            f"{max(round(count), 1)}/{sample_rate}"
        )
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads!r}")
    if not (math.isfinite(start) and start >= 0):
        raise ValueError(f"start must be a media time of at least 0 s, got {start!r}")
    if stop is not None and not stop > start:
        raise ValueError(f"stop must be later than start={start:g} s, got {stop!r}")
    return frames


def _open(
    found: Found, format: str | None, options: dict[str, str] | None, timeout: float | None
) -> Any:
    """An open container; a ValueError if PyAV cannot open it, or takes a text file for a film."""
    name, limit, begin = found.name, timeout if found.remote else None, time.monotonic()
    if found.remote and str(found.opened).startswith(("rtsp:", "rtsps:")):
        # By TCP if the server can: UDP is lost while the reader is busy, as with compiling.
        options = {"rtsp_flags": "prefer_tcp", **(options or {})}
    try:
        more: dict[str, Any] = {"format": format, "options": options, "timeout": limit}
        container = av.open(found.opened, "r", **more, **_LENIENT)
    except (av.FFmpegError, OSError, ValueError, EOFError) as error:
        why = cause(error)
        late = limit is not None and time.monotonic() - begin >= limit
        if late or isinstance(error, TimeoutError):
            # Some protocols call the end of the time that they were given an error of the data.
            why = f"no answer in {limit:g} s" if late else why
            raise ValueError(f"{name}: cannot be opened: {why}") from error
        check = "that it exists, is complete (an mp4 cut short has lost its index) and is media"
        if found.remote and format is None:
            check = "its host and path, and give scheme://NAME:PASSWORD@HOST/PATH if it asks for it"
        raise ValueError(
            f"{name}: cannot be opened as audio or video: {why}. Check {check}; a device or a "
            "raw stream needs format="
        ) from error
    if format is None and container.format.name == "tty":
        container.close()
        raise ValueError(f"{name}: cannot be opened as audio or video: it is a text file")
    return container

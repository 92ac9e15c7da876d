"""Clips made for the tests of media, losslessly: a picture tells its number, a click its time."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

CLIPS = Path(__file__).resolve().parents[4] / "shared" / "clips"
needs_clips = pytest.mark.skipif(not CLIPS.is_dir(), reason="the folder of real clips is absent")
MS = Fraction(1, 1000)


def level(number):
    """Brightness that stands for a frame number."""
    return 20 + 3 * (number % 75)


def add_video(
    container, codec="ffv1", pix_fmt="bgr0", size=(16, 24), rate=25, base=MS, options=None
):
    stream = container.add_stream(codec, rate=rate, options=options or {})
    stream.height, stream.width = size
    stream.pix_fmt = pix_fmt
    stream.codec_context.time_base = base
    stream.time_base = base
    return stream


def video_packets(stream, times, base=MS, image=None):
    """Packets of frames at `times` (seconds); frame i has brightness level(i)."""
    for i, t in enumerate(times):
        shape = (stream.height, stream.width, 3)
        rgb = np.full(shape, level(i), np.uint8) if image is None else image
        frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
        frame.pts, frame.time_base = round(t / base), base
        yield from stream.encode(frame)
    yield from stream.encode(None)


def add_audio(container, codec="pcm_s16le", rate=16000, layout="mono", options=None):
    stream = container.add_stream(codec, rate=rate, options=options or {})
    stream.layout = layout
    stream.time_base = Fraction(1, rate)
    return stream


def audio_packets(stream, samples, offset=0.0, block=400):
    """Packets of `samples` [n] or [channels, n] (float, +-1) from `offset` seconds on."""
    rate, layout = stream.rate, stream.layout
    samples = np.atleast_2d(samples)
    if len(samples) == 1:
        samples = np.repeat(samples, layout.nb_channels, 0)
    for i in range(0, samples.shape[1], block):
        part = np.ascontiguousarray(samples[:, i : i + block], np.float32)
        frame = av.AudioFrame.from_ndarray(part, "fltp", layout.name)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(offset * rate) + i
        if stream.format.name != "fltp":
            frame = av.AudioResampler(stream.format.name, layout.name, rate).resample(frame)[0]
            frame.pts = round(offset * rate) + i
        yield from stream.encode(frame)
    yield from stream.encode(None)


def mux(container, *packets):
    """Writes packets of several streams, interleaved by time."""
    every = [p for group in packets for p in group]
    every.sort(key=lambda p: p.dts * p.time_base)
    for packet in every:
        container.mux(packet)
    container.close()


def clip(path, times=None, sound=None, *, offset=0.0, video=None, audio=None, **kwargs):
    """A clip with pictures at `times` and `sound` from `offset` on."""
    kwargs.setdefault("options", {"avoid_negative_ts": "disabled"})
    out = av.open(str(path), "w", **kwargs)
    v = add_video(out, **(video or {})) if times is not None else None
    a = add_audio(out, **(audio or {})) if sound is not None else None
    groups = []
    if v is not None:
        groups.append(video_packets(v, times, base=(video or {}).get("base", MS)))
    if a is not None:
        groups.append(audio_packets(a, sound, offset))
    mux(out, *groups)
    return str(path)


def shown(reader):
    """(time, brightness) of every sampled frame."""
    pieces = list(reader)
    out = []
    for p in pieces:
        n = len(p.frames)
        step = (pieces[1].start - pieces[0].start if len(pieces) > 1 else 1.0) / n
        out += [(p.start + (i + 0.5) * step, int(p.frames[i, 4, 4, 0])) for i in range(n)]
    return out, pieces


def kinds(reader):
    return [event.kind for event in reader.events]


EVEN = [i / 25 for i in range(60)]


def clicks(seconds, rate, at, height=0.5):
    x = np.zeros(round(seconds * rate), np.float32)
    for t in at:
        x[round(t * rate)] = height
    return x


def joined(pieces):
    return np.concatenate([p.samples for p in pieces])


class Pipe:
    """Bytes that can only be read forwards."""

    def __init__(self, data):
        self._file = io.BytesIO(data)
        self.read = self._file.read


def h264(path, **kwargs):
    lossy = {"codec": "libx264", "pix_fmt": "yuv420p", "base": Fraction(1, 25)}
    sound = clicks(2.4, 16000, [1.1])
    return clip(path, EVEN, sound, video=lossy, audio={"codec": "aac"}, **kwargs)

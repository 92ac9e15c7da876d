"""Media: sampling by time stamp, sound in step, odd and damaged files, bounded memory.

Most clips are made here, losslessly, so that a picture tells its number and a click its time.
"""

import gc
import io
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from jaxmem.data.media.media import Event, Piece, open_media
from jaxmem.data.media.prefetch import prefetch

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


# Sampling by time stamp.

GAPS = [0.0, 0.005, 0.010, 0.120, 0.300, 1.900, 1.905, 1.910, 3.500, 3.540, 4.000]
EVEN = [i / 25 for i in range(60)]


@pytest.mark.parametrize("offset", [0.0, 10.0, -0.4], ids=["zero", "ten", "negative"])
@pytest.mark.parametrize("times", [GAPS, EVEN], ids=["variable", "constant"])
@pytest.mark.parametrize("fps", [1, 4, 25])
def test_sampling_by_time_stamp(tmp_path, times, offset, fps):
    video, name = {"rate": 1000}, "a.mkv"
    if offset < 0:  # a transport stream takes such stamps as they are
        video = {"codec": "libx264", "pix_fmt": "yuv444p", "options": {"crf": "0", "bf": "0"}}
        name = "a.ts"
    path = clip(tmp_path / name, [t + offset for t in times], video=video)
    with open_media(path, fps=fps) as reader:
        assert reader.info.start_time == pytest.approx(offset)
        got, pieces = shown(reader)
    assert [p.start for p in pieces] == list(range(len(pieces)))
    assert all(p.frames.shape == (fps, 16, 24, 3) for p in pieces)
    for t, value in got:
        number = max(i for i, stamp in enumerate(times) if stamp <= t + 1e-6)
        assert abs(value - level(number)) <= 1, t
    assert not any(p.has_audio or p.samples.any() for p in pieces)
    assert reader.end.kind == "end"


def test_a_frame_exactly_at_the_instant_is_shown(tmp_path):
    path = clip(tmp_path / "a.mkv", [0, 0.5, 1.5, 2.5])
    with open_media(path, fps=1) as reader:
        got, _ = shown(reader)
    assert [v for _, v in got[:3]] == [level(1), level(2), level(3)]


def test_fps_and_piece_length_are_free(tmp_path):
    path = clip(tmp_path / "a.mkv", [i / 10 for i in range(40)])
    with open_media(path, fps=3, piece_seconds=1.5) as reader:
        pieces = list(reader)
    assert [p.start for p in pieces] == [0, 1.5, 3.0]
    assert pieces[0].frames.shape[0] == round(4.5) == 4
    assert pieces[0].samples.shape == (24000,)
    for p in pieces:
        for i, frame in enumerate(p.frames):
            t = p.start + (i + 0.5) * 1.5 / 4
            assert frame[0, 0, 0] == level(min(int(t * 10 + 1e-6), 39))
    assert pieces[-1].valid_seconds == pytest.approx(1.0, abs=0.07)


def test_absurd_average_rate(tmp_path):
    path = clip(tmp_path / "a.mkv", [i / 5 for i in range(20)], video={"rate": 1000})
    with open_media(path, fps=5) as reader:
        got, pieces = shown(reader)
    assert [v for _, v in got] == [level(i) for i in range(20)]
    assert len(pieces) == 4


# Geometry and pixels.


def corners(frame):
    """Names of the quadrants' colours, row by row."""
    h, w, _ = frame.shape
    names = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    points = [
        (h // 4, w // 4),
        (h // 4, 3 * w // 4),
        (3 * h // 4, w // 4),
        (3 * h // 4, 3 * w // 4),
    ]
    return "".join(names.get(tuple((frame[p] > 128).astype(int).tolist()), "?") for p in points)


def quadrants(h=48, w=64):
    image = np.zeros((h, w, 3), np.uint8)
    image[: h // 2, : w // 2] = 255, 0, 0
    image[: h // 2, w // 2 :] = 0, 255, 0
    image[h // 2 :, : w // 2] = 0, 0, 255
    image[h // 2 :, w // 2 :] = 255, 255, 255
    return image


# The matrix of a display, by QuickTime's definition: x' = a x + c y, y' = b x + d y, y down.
MATRICES = {
    "none": ((1, 0, 0, 1), "rgbw"),
    "clockwise": ((0, 1, -1, 0), "brwg"),
    "counter": ((0, -1, 1, 0), "gwrb"),
    "half": ((-1, 0, 0, -1), "wbgr"),
    "mirror": ((-1, 0, 0, 1), "grwb"),
    "transpose": ((0, 1, 1, 0), "rbgw"),
}


@pytest.mark.parametrize("name", MATRICES)
def test_rotation(tmp_path, name):
    (a, b, c, d), expected = MATRICES[name]
    out = av.open(str(tmp_path / "a.mp4"), "w")
    stream = add_video(out, "libx264", "yuv444p", (48, 64), 25, Fraction(1, 25), {"crf": "4"})
    one = 1 << 16
    stream.set_display_matrix([a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30])
    mux(out, video_packets(stream, EVEN[:25], Fraction(1, 25), quadrants()))
    with open_media(tmp_path / "a.mp4") as reader:
        piece = next(reader)
        turned = name in ("clockwise", "counter", "transpose")
        assert reader.info.native_size == ((64, 48) if turned else (48, 64))
        assert piece.frames.shape == (1, *reader.info.native_size, 3)
        assert corners(piece.frames[0]) == expected
    with open_media(tmp_path / "a.mp4", size=(20, 40)) as reader:
        assert corners(next(reader).frames[0]) == expected
        assert reader.info.size == (20, 40)


@pytest.mark.parametrize(
    "pix_fmt, codec, size",
    [
        ("yuv420p10le", "libx265", (64, 64)),
        ("yuv420p10le", "ffv1", (33, 47)),
        ("yuv444p", "libx264", (35, 51)),
        ("yuv420p", "ffv1", (17, 9)),
        ("gray", "ffv1", (10, 11)),
        ("bgra", "ffv1", (13, 21)),
    ],
)
def test_pixel_formats_and_odd_sizes(tmp_path, pix_fmt, codec, size):
    quiet = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = clip(
        tmp_path / "a.mkv",
        EVEN[:25],
        video={"codec": codec, "pix_fmt": pix_fmt, "size": size, "options": quiet},
    )
    with open_media(path, fps=2) as reader:
        piece = next(reader)
    assert piece.frames.shape == (2, *size, 3)
    for frame, number in zip(piece.frames, (6, 18), strict=True):
        assert np.abs(frame.astype(int) - level(number)).max() <= 6


def test_size_by_function_and_resize(tmp_path):
    path = clip(tmp_path / "a.mkv", EVEN, video={"size": (30, 50)})
    asked = []

    def half(h, w):
        asked.append((h, w))
        return h // 2, w // 2

    with open_media(path, size=half) as reader:
        assert {p.frames.shape for p in reader} == {(1, 15, 25, 3)}
    assert asked == [(30, 50)]


def test_white_is_255(tmp_path):
    out = av.open(str(tmp_path / "a.mkv"), "w")
    stream = add_video(out, "ffv1", "yuv420p", (16, 16))
    mux(out, video_packets(stream, [0, 0.5], image=np.full((16, 16, 3), 255, np.uint8)))
    with open_media(tmp_path / "a.mkv") as reader:
        assert next(reader).frames.min() == 255


def test_resolution_change_in_mid_stream(tmp_path):
    out = av.open(str(tmp_path / "a.mkv"), "w")
    stream = add_video(out, "mjpeg", "yuvj420p", (32, 48))
    packets = list(video_packets(stream, [0.0, 0.5]))
    other = av.CodecContext.create("mjpeg", "w")
    other.height, other.width, other.pix_fmt, other.time_base = 64, 32, "yuvj420p", MS
    for i, t in enumerate([1.0, 1.5]):
        frame = av.VideoFrame.from_ndarray(np.full((64, 32, 3), level(i + 2), np.uint8), "rgb24")
        frame.pts, frame.time_base = round(t * 1000), MS
        packets += other.encode(frame)
    for packet in packets:
        packet.stream, packet.time_base = stream, MS
        out.mux(packet)
    out.close()
    with open_media(tmp_path / "a.mkv", fps=2) as reader:
        got, pieces = shown(reader)
    assert {p.frames.shape for p in pieces} == {(2, 32, 48, 3)}
    assert [abs(v - level(i)) <= 4 for i, (_, v) in enumerate(got)] == [True] * 4
    (event,) = [e for e in reader.events if e.kind == "resolution"]
    assert event.time == pytest.approx(1.0)
    assert "32x48 -> 64x32" in event.message


# Sound.


def clicks(seconds, rate, at, height=0.5):
    x = np.zeros(round(seconds * rate), np.float32)
    for t in at:
        x[round(t * rate)] = height
    return x


def joined(pieces):
    return np.concatenate([p.samples for p in pieces])


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_sound_is_in_step(tmp_path, rate):
    at = [0.25, 0.999, 1.5, 2.75]
    path = clip(tmp_path / "a.nut", EVEN, clicks(3.3, rate, at), audio={"rate": rate})
    with open_media(path) as reader:
        pieces = list(reader)
    x = joined(pieces)
    assert x.dtype == np.float32
    for t in at:
        window = x[round((t - 0.05) * 16000) : round((t + 0.05) * 16000)]
        assert abs(int(window.argmax()) - 800) <= 2, t
    assert [p.has_audio for p in pieces] == [True] * 4
    assert pieces[-1].valid_seconds == pytest.approx(0.3, abs=0.002)
    assert pieces[-1].has_video is False  # pictures end at 2.4 s
    assert not pieces[-1].frames.any()


def test_sound_is_exact_across_pieces(tmp_path):
    rng = np.random.default_rng(0)
    sound = (rng.integers(-20000, 20000, 40000) / 32768).astype(np.float32)
    path = clip(tmp_path / "a.wav", sound=sound)
    with open_media(path, piece_seconds=0.32, fps=10) as reader:
        x = joined(reader)
    np.testing.assert_allclose(x[:40000], sound, atol=1e-4)
    assert not x[40000:].any()


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize("codec", ["pcm_f32le", "flac"])
def test_layouts_are_averaged(tmp_path, layout, codec):
    sound = np.full(48000, 0.5, np.float32)
    path = clip(tmp_path / "a.mkv", sound=sound, audio=dict(codec=codec, rate=48000, layout=layout))
    with open_media(path) as reader:
        piece = next(reader)
    np.testing.assert_allclose(piece.samples[500:15000], 0.5, atol=2e-3)


def test_float_beyond_one_is_kept_and_not_a_number_is_silence(tmp_path):
    sound = np.full(16000, 1.75, np.float32)
    sound[4000:4100], sound[8000] = np.nan, np.inf
    path = clip(tmp_path / "a.mkv", sound=sound, audio={"codec": "pcm_f32le"})
    with open_media(path) as reader:
        samples = next(reader).samples
    assert samples[:4000].max() == samples.max() == 1.75
    assert not samples[4000:4100].any() and samples[8000] == 0


def test_gap_and_overlap_in_sound(tmp_path):
    out = av.open(str(tmp_path / "a.nut"), "w")
    stream = add_audio(out)
    one = [*audio_packets(stream, np.full(8000, 0.25, np.float32), 0.0, 8000)]
    two = av.open(str(tmp_path / "b.nut"), "w")
    late = [*audio_packets(add_audio(two), np.full(8000, 0.5, np.float32), 1.0, 8000)]
    three = av.open(str(tmp_path / "c.nut"), "w")
    over = [*audio_packets(add_audio(three), np.full(8000, 0.75, np.float32), 1.25, 8000)]
    for packet in one + late + over:
        packet.stream = stream
        out.mux(packet)
    for container in (out, two, three):
        container.close()
    with open_media(tmp_path / "a.nut") as reader:
        x = joined(reader)
    for stretch, value in [((0, 0.5), 0.25), ((0.5, 1), 0), ((1, 1.5), 0.5), ((1.5, 1.75), 0.75)]:
        a, b = (round(t * 16000) for t in stretch)
        np.testing.assert_allclose(x[a:b], value, atol=1e-3)
    gaps = [e for e in reader.events if e.kind == "audio_gap"]
    assert [round(e.time, 3) for e in gaps] == [0.5, 1.5]
    assert "silence" in gaps[0].message and "dropped" in gaps[1].message


def test_stamps_that_jitter_do_not_cut_the_sound(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000).astype(np.float32)
    out = av.open(str(tmp_path / "a.nut"), "w")
    stream = add_audio(out)
    rng = np.random.default_rng(0)
    for packet in audio_packets(stream, tone):
        packet.pts = packet.dts = max(packet.pts + int(rng.integers(-150, 150)), 0)
        out.mux(packet)
    out.close()
    with open_media(tmp_path / "a.nut") as reader:
        x = joined(reader)
    np.testing.assert_allclose(x[:32000], tone, atol=1e-3)
    assert not reader.events


@pytest.mark.parametrize("lead", ["audio", "video"])
def test_different_start(tmp_path, lead):
    """One stream starts 1.3 s before the other; both keep their distance."""
    v0, a0 = (1.3, 0.0) if lead == "audio" else (0.0, 1.3)
    path = clip(
        tmp_path / "a.nut",
        [v0 + t for t in EVEN],
        clicks(2.4, 16000, [0.5]),
        offset=a0,
    )
    with open_media(path, fps=10) as reader:
        got, pieces = shown(reader)
    x = joined(pieces)
    assert abs(int(x.argmax()) - round((a0 + 0.5) * 16000)) <= 1
    assert pieces[0].has_video is (lead == "video")
    assert pieces[0].has_audio is (lead == "audio")
    for t, value in got:
        if t >= v0 and t < v0 + 2.4:
            assert value == level(int((t - v0) * 25 + 1e-6)), t
    if lead == "audio":
        assert not pieces[0].frames.any()
        assert [v for t, v in got if 1 < t < 1.3] == [level(0)] * 3  # in the piece: the first


def test_audio_stream_first_in_the_file(tmp_path):
    out = av.open(str(tmp_path / "a.mkv"), "w")
    a = add_audio(out)
    v = add_video(out)
    mux(out, audio_packets(a, clicks(2.4, 16000, [1.1])), video_packets(v, EVEN))
    with open_media(tmp_path / "a.mkv", fps=5) as reader:
        got, pieces = shown(reader)
    assert abs(int(joined(pieces).argmax()) - 17600) <= 1
    assert [v for t, v in got if t < 2.4] == [level(int(t * 25 + 1e-6)) for t, _ in got if t < 2.4]


@pytest.mark.parametrize("short", ["audio", "video"])
def test_the_shorter_stream_is_padded_and_told(tmp_path, short):
    times = EVEN[:25] if short == "video" else [i / 25 for i in range(100)]
    sound = np.full(16000 if short == "audio" else 64000, 0.25, np.float32)
    path = clip(tmp_path / "a.mkv", times, sound)
    with open_media(path, fps=2) as reader:
        pieces = list(reader)
    assert [p.has_video for p in pieces] == [True] + [short == "audio"] * 3
    assert [p.has_audio for p in pieces] == [True] + [short == "video"] * 3
    padded = [p.samples if short == "audio" else p.frames for p in pieces[1:]]
    assert not any(x.any() for x in padded)
    (event,) = reader.events
    assert event.kind == f"{short}_end" and event.time == pytest.approx(1.0, abs=0.01)
    assert reader.end.kind == "end" and reader.end.time == pytest.approx(4.0, abs=0.01)


def test_only_sound_and_only_pictures(tmp_path):
    with open_media(clip(tmp_path / "a.wav", sound=np.ones(24000) / 4)) as reader:
        pieces = list(reader)
        assert pieces[0].frames.shape == (1, 0, 0, 3)
    with open_media(tmp_path / "a.wav", size=(8, 9), fps=2) as reader:
        pieces = list(reader)
    assert [p.frames.shape for p in pieces] == [(2, 8, 9, 3)] * 2
    assert [(p.has_video, p.has_audio) for p in pieces] == [(False, True)] * 2
    assert pieces[1].valid_seconds == pytest.approx(0.5)
    assert not pieces[0].frames.any()
    with open_media(clip(tmp_path / "b.mkv", EVEN)) as reader:
        assert [(p.has_video, p.has_audio) for p in reader] == [(True, False)] * 3
        assert reader.info.audio_codec is None


def test_a_single_picture(tmp_path):
    out = av.open(str(tmp_path / "a.png"), "w", format="image2", options={"update": "1"})
    stream = add_video(out, "png", "rgb24", base=Fraction(1, 25))
    mux(out, video_packets(stream, [0.0], Fraction(1, 25)))
    with open_media(tmp_path / "a.png", fps=2) as reader:
        (piece,) = reader
    assert (piece.frames == level(0)).all()
    assert 0 < piece.valid_seconds <= 0.05


H264 = {"codec": "libx264", "pix_fmt": "yuv420p", "base": Fraction(1, 25)}
CONTAINERS = {
    "mp4": (H264, {"codec": "aac"}, {}),
    "fragments.mp4": (H264, {"codec": "aac"}, {"movflags": "frag_keyframe+empty_moov"}),
    "webm": (H264 | {"codec": "libvpx"}, {"codec": "libopus", "rate": 48000}, {}),
    "ts": (H264, {"codec": "aac"}, {}),
    "mpg": (H264 | {"codec": "mpeg2video"}, {"codec": "mp2"}, {}),
    "avi": (H264 | {"codec": "mpeg4"}, {"codec": "mp2"}, {}),
    "h264": (H264, None, {}),
    "mp3": (None, {"codec": "libmp3lame"}, {}),
}


@pytest.mark.parametrize("suffix", CONTAINERS)
@pytest.mark.parametrize("threads", [1, 3])
def test_containers(tmp_path, suffix, threads):
    """Duration and frame count known or not, B-frames, own clocks, no stamps at all (h264)."""
    video, audio, options = CONTAINERS[suffix]
    rate = (audio or {}).get("rate", 16000)
    path = clip(
        tmp_path / f"a.{suffix}",
        EVEN if video else None,
        clicks(2.4, rate, [1.25], 0.9) if audio else None,
        video=video,
        audio=audio,
        options=options,
    )
    with open_media(path, fps=5, threads=threads) as reader:
        pieces = list(reader)
    assert [p.start for p in pieces] == [0, 1, 2]
    assert pieces[-1].valid_seconds == pytest.approx(0.4, abs=0.15)
    assert reader.end.kind == "end" and not reader.events
    if video:  # the delay of the sound's encoder may move the pictures by up to two frames
        got = [int(p.frames[i, 4, 4, 0]) for p in pieces[:2] for i in range(5)]
        for i, value in enumerate(got):
            assert level(5 * i) - 6 <= value <= level(5 * i + 2) + 6
    if audio:
        window = np.abs(joined(pieces)[16000:24000])
        assert window.argmax() / 16000 == pytest.approx(0.25, abs=0.1)


@pytest.mark.parametrize("look_ahead", [2.0, 20.0])
def test_pictures_far_apart_with_sound(tmp_path, look_ahead):
    """Slides: the sound runs on, the next picture comes in its time, whatever the look-ahead."""
    path = clip(tmp_path / "a.mkv", [0, 7.2, 13.0], np.full(240000, 0.25, np.float32))
    with open_media(path, fps=2, look_ahead=look_ahead) as reader:
        got, pieces = shown(reader)
    assert [v for _, v in got if _ < 14] == [level((t > 7.2) + (t >= 13)) for t, _ in got if t < 14]
    assert all(p.has_audio for p in pieces) and len(pieces) == 15
    assert not [e for e in reader.events if e.kind == "video_late"]


# Choice of streams.


def several(path):
    """Two video streams (brightness 50, 150) and two audio streams (0.25, 0.75)."""
    out = av.open(str(path), "w")
    videos = [add_video(out, "png", "rgb24") for _ in range(2)]
    audios = [add_audio(out) for _ in range(2)]
    packets = [
        video_packets(v, EVEN[:25], image=np.full((16, 24, 3), value, np.uint8))
        for v, value in zip(videos, (50, 150), strict=True)
    ]
    packets += [
        audio_packets(a, np.full(16000, value, np.float32))
        for a, value in zip(audios, (0.25, 0.75), strict=True)
    ]
    mux(out, *packets)
    return str(path)


@pytest.mark.parametrize("video", [None, 0, 1])
@pytest.mark.parametrize("audio", [None, 0, 1])
def test_choice_of_streams(tmp_path, video, audio):
    path = several(tmp_path / "a.mov")
    with open_media(path, video_stream=video, audio_stream=audio) as reader:
        piece = next(reader)
        assert (reader.info.video_streams, reader.info.audio_streams) == (2, 2)
    assert (piece.frames == (150 if video == 1 else 50)).all()
    np.testing.assert_allclose(piece.samples, 0.75 if audio == 1 else 0.25, atol=1e-3)


def test_a_stream_that_is_not_there(tmp_path):
    path = several(tmp_path / "a.mov")
    with pytest.raises(ValueError, match=r"a\.mov: audio_stream=2 .* 2 audio stream.*pcm_s16le"):
        open_media(path, audio_stream=2)
    with pytest.raises(ValueError, match=r"video_stream=-1 .* 2 video stream.*png"):
        open_media(path, video_stream=-1)


def break_codec(path):
    """Gives the first sound track of a QuickTime file a codec that nobody knows."""
    data = Path(path).read_bytes()
    assert b"sowt" in data
    Path(path).write_bytes(data.replace(b"sowt", b"zzzz", 1))


def test_an_audio_stream_without_decoder_is_skipped(tmp_path):
    path = several(tmp_path / "a.mov")
    break_codec(path)
    with av.open(path) as container:
        assert container.streams.audio[0].codec_context is None
    with open_media(path) as reader:
        np.testing.assert_allclose(next(reader).samples, 0.75, atol=1e-3)
    with pytest.raises(ValueError, match="0: no decoder"):
        open_media(path, audio_stream=0)


def test_nothing_to_decode(tmp_path):
    path = clip(tmp_path / "a.mov", sound=np.zeros(16000))
    break_codec(path)
    with pytest.raises(ValueError, match=r"a\.mov: neither video nor audio.*no decoder"):
        open_media(path)


def test_cover_pictures_are_no_video(tmp_path):
    out = av.open(str(tmp_path / "a.m4a"), "w", format="mp4")
    a = add_audio(out, "aac", 16000)
    v = add_video(out, "mjpeg", "yuvj420p", base=Fraction(1, 25))
    v.disposition = av.stream.Disposition.attached_pic
    packets = [audio_packets(a, np.full(32000, 0.25, np.float32), block=1024)]
    mux(out, *packets, video_packets(v, [0.0], Fraction(1, 25)))
    with open_media(tmp_path / "a.m4a") as reader:
        assert reader.info.video_codec is None
        assert reader.info.video_streams == 1
        assert not any(p.has_video for p in reader)


# start and stop.


@pytest.mark.parametrize("suffix", ["mkv", "ts"])
@pytest.mark.parametrize("start, stop", [(0.7, 3.2), (5.0, None), (17.25, 18.0)])
def test_start_and_stop(tmp_path, suffix, start, stop):
    times = [i / 10 for i in range(200)]
    sound = clicks(20, 16000, [0.9, 5.6, 17.5])
    lossy = {"codec": "libx264", "pix_fmt": "yuv420p", "options": {"g": "30", "crf": "10"}}
    path = clip(
        tmp_path / f"a.{suffix}",
        times,
        sound,
        video=lossy | {"base": Fraction(1, 10), "rate": 10},
        audio={"codec": "pcm_s16le"} if suffix == "mkv" else {"codec": "mp2", "rate": 16000},
    )
    with open_media(path, fps=2, start=start, stop=stop) as reader:
        got, pieces = shown(reader)
    last = stop or 20.0
    assert pieces[0].start == start
    assert pieces[-1].start + pieces[-1].valid_seconds == pytest.approx(last, abs=0.1)
    tolerance = 0.1  # mp2 has a delay of its own, which shifts all stamps alike
    for t, value in got:
        if t < last:
            near = [level(int((t + d) * 10 + 1e-6)) for d in (-tolerance, 0, tolerance)]
            assert min(near) - 6 <= value <= max(near) + 6, (t, value, near)
    at = next(t for t in (0.9, 5.6, 17.5) if t > start)
    x = np.abs(joined(pieces)[:32000])
    assert x.max() > 0.1
    assert abs(x.argmax() / 16000 + start - at) < 0.1
    assert reader.end.kind == ("stop" if stop else "end")


def test_seeking_does_not_change_what_is_read(tmp_path):
    path = clip(
        tmp_path / "a.mkv",
        [i / 10 for i in range(200)],
        np.random.default_rng(0).random(320000) - 0.5,
    )
    with open_media(path, fps=5) as reader:
        everything = list(reader)
    with open_media(path, fps=5, start=12) as reader:
        rest = list(reader)
    assert len(rest) == len(everything) - 12
    for a, b in zip(everything[12:], rest, strict=True):
        assert a.start == b.start
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.samples, b.samples)


def test_start_behind_the_end(tmp_path):
    with open_media(clip(tmp_path / "a.mkv", EVEN), start=50) as reader:
        assert list(reader) == []
    assert "start=50" in reader.end.reason


# Damage.


def test_cut_short_without_error(tmp_path):
    """A Matroska file cut in the middle ends silently; the header knows better."""
    sound = np.random.default_rng(0).random(160000).astype(np.float32) - 0.5
    whole = Path(clip(tmp_path / "a.mkv", [i / 10 for i in range(100)], sound)).read_bytes()
    with open_media(io.BytesIO(whole)) as reader:
        complete = list(reader)
    assert reader.end.kind == "end" and reader.info.duration == pytest.approx(10, abs=0.1)
    with open_media(io.BytesIO(whole[: len(whole) * 6 // 10])) as reader:
        pieces = list(reader)
    assert 5 <= len(pieces) <= 7
    assert reader.end.kind == "damaged" and "declared" in reader.end.reason
    assert 5 < reader.end.time < 7
    for a, b in zip(complete, pieces[:-1], strict=False):
        np.testing.assert_array_equal(a.samples, b.samples)
        np.testing.assert_array_equal(a.frames, b.frames)


def test_damage_in_the_middle_is_an_event_and_reading_goes_on(tmp_path):
    out = av.open(str(tmp_path / "a.nut"), "w")
    stream = add_video(out, "png", "rgb24")
    for packet in video_packets(stream, EVEN):
        if 20 <= round(packet.pts / 40) < 25:
            packet.update(bytes(packet.size))
        out.mux(packet)
    out.close()
    with open_media(tmp_path / "a.nut", fps=25) as reader:
        got, _ = shown(reader)
    values = [v for _, v in got[:60]]
    assert values[:20] == [level(i) for i in range(20)]
    assert values[20:25] == [level(19)] * 5  # held
    assert values[25:60] == [level(i) for i in range(25, 60)]
    (event,) = reader.events
    assert event.kind == "damaged" and event.time == pytest.approx(0.8, abs=0.05)
    assert reader.end.kind == "end"


def test_damage_up_to_the_end(tmp_path):
    out = av.open(str(tmp_path / "a.nut"), "w")
    stream = add_video(out, "png", "rgb24")
    for packet in video_packets(stream, EVEN):
        if packet.pts >= 1000:
            packet.update(bytes(packet.size))
        out.mux(packet)
    out.close()
    with open_media(tmp_path / "a.nut") as reader:
        assert len(list(reader)) == 1
    assert reader.end.kind == "damaged" and reader.end.time == pytest.approx(1.0, abs=0.05)


def test_what_does_not_open(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "notes.txt").write_text("just words\n" * 50)
    for name, cause in [
        ("missing.mp4", "No such file"),
        ("empty.mp4", "Invalid data"),
        ("noise.mkv", "Invalid data"),
        ("notes.txt", "text file"),
        ("", "directory"),
    ]:
        with pytest.raises(ValueError, match=cause) as error:
            open_media(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    for source in (None, 3, ""):
        with pytest.raises(ValueError, match="source must be"):
            open_media(source)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(fps=0), "fps must be a positive number"),
        (dict(fps=0.1), "fps=0.1 gives no frame"),
        (dict(fps=float("nan")), "fps must be"),
        (dict(piece_seconds=-1), "piece_seconds must be"),
        (dict(piece_seconds=1 / 3, fps=3), "whole number of samples"),
        (dict(sample_rate=0), "sample_rate must be"),
        (dict(size=(0, 5)), "size must be"),
        (dict(size=7), "size must be"),
        (dict(size=lambda h, w: (h, 0)), "size must be"),
        (dict(start=-1), "start must be"),
        (dict(start=3, stop=2), "stop must be later"),
        (dict(threads=0), "threads must be"),
    ],
)
def test_arguments_that_make_no_sense(tmp_path, wrong, message):
    path = clip(tmp_path / "a.mkv", EVEN)
    with pytest.raises(ValueError, match=message):
        open_media(path, **wrong)


# Pipes and live sources.


class Pipe:
    """Bytes that can only be read forwards."""

    def __init__(self, data):
        self._file = io.BytesIO(data)
        self.read = self._file.read


def h264(path, **kwargs):
    lossy = {"codec": "libx264", "pix_fmt": "yuv420p", "base": Fraction(1, 25)}
    sound = clicks(2.4, 16000, [1.1])
    return clip(path, EVEN, sound, video=lossy, audio={"codec": "aac"}, **kwargs)


def test_pipe(tmp_path):
    data = Path(h264(tmp_path / "a.ts", options={})).read_bytes()
    with open_media(io.BytesIO(data)) as reader:
        expected = list(reader)
    with open_media(Pipe(data)) as reader:
        got = list(reader)
    assert [p.start for p in got] == [p.start for p in expected]
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.samples, b.samples)
    with open_media(Pipe(data), start=1) as reader:
        np.testing.assert_array_equal(next(reader).frames, expected[1].frames)


def test_pipe_of_an_mp4_with_its_index_at_the_end(tmp_path):
    sound = np.zeros(160000, np.float32)
    path = clip(tmp_path / "a.mov", EVEN, sound, video={"codec": "png", "pix_fmt": "rgb24"})
    data = Path(path).read_bytes()
    with open_media(io.BytesIO(data)) as reader:
        assert len(list(reader)) == 10
    with pytest.raises(ValueError, match="index"):
        open_media(Pipe(data))


def test_standard_input(tmp_path):
    path = h264(tmp_path / "a.ts", options={})
    code = (
        "from jaxmem.data.media.media import open_media\n"
        "with open_media('-') as r: print(len(list(r)), r.end.kind, r.info.source)"
    )
    root = str(Path(__file__).resolve().parents[3])
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
        out = subprocess.run(
            [sys.executable, "-c", code],
            stdin=cat.stdout,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": root},
            check=True,
        )
    assert out.stdout.strip() == "3 end <standard input>"


def test_format_and_options_are_passed_on():
    with open_media("testsrc=size=32x24:rate=10:duration=2", format="lavfi", fps=5) as reader:
        pieces = list(reader)
    assert [p.frames.shape for p in pieces] == [(5, 24, 32, 3)] * 2
    raw = np.repeat(np.arange(20, dtype=np.uint8), 16 * 8 * 3).tobytes()
    options = {"video_size": "16x8", "pixel_format": "rgb24", "framerate": "10"}
    with open_media(io.BytesIO(raw), format="rawvideo", options=options, fps=10) as reader:
        got, _ = shown(reader)
    assert [v for _, v in got] == list(range(20))


def test_live_source_that_stalls(tmp_path):
    data = Path(h264(tmp_path / "a.ts", options={})).read_bytes()
    server = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve():
        connection, _ = server.accept()
        with connection:
            connection.sendall(data)
            over.wait(20)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        begin = time.monotonic()
        options = {"probesize": "40000", "analyzeduration": "200000"}
        with open_media(address, timeout=2.0, options=options) as reader:
            pieces = list(reader)
        assert time.monotonic() - begin < 15
        assert len(pieces) >= 2
        assert reader.end.kind == "stalled"
    finally:
        over.set()
        thread.join()
        server.close()


# Bounded memory.


class Counting(io.BytesIO):
    """A file that remembers how far it was read, seeks apart."""

    furthest = 0

    def read(self, n=-1):
        data = super().read(n)
        self.furthest = max(self.furthest, self.tell())
        return data


def test_look_ahead_is_bounded(tmp_path):
    """A slow consumer of a long clip: bytes read, memory and live pieces stay near the front."""
    seconds, rate = 60, 5
    path = clip(
        tmp_path / "a.mkv",
        [i / rate for i in range(seconds * rate)],
        np.random.default_rng(0).random(seconds * 16000).astype(np.float32) - 0.5,
        video={"size": (60, 80)},
    )
    file = Counting(Path(path).read_bytes())
    total, alive, worst = len(file.getvalue()), [], 0
    tracemalloc.start()
    try:
        with open_media(file, size=(48, 48), fps=8) as reader, prefetch(reader, 2) as pieces:
            begin = tracemalloc.get_traced_memory()[0]
            for piece in pieces:
                alive.append(weakref.ref(piece.frames))
                size = piece.frames.nbytes + piece.samples.nbytes
                if piece.start < 50:
                    ahead = file.furthest / total * seconds - piece.start
                    assert ahead < 8, piece.start
                time.sleep(0.002)
                worst = max(worst, sum(ref() is not None for ref in alive))
                del piece
            peak = tracemalloc.get_traced_memory()[1] - begin
    finally:
        tracemalloc.stop()
    assert len(alive) == seconds
    assert worst <= 4  # two waiting, one in hand, one just given out
    assert peak < 8 * size


def test_badly_interleaved_streams_are_bounded(tmp_path):
    """All pictures first, then all sound: look-ahead ends at its limit, late sound is told."""
    out = av.open(str(tmp_path / "a.nut"), "w", options={"max_interleave_delta": "1"})
    v, a = add_video(out, size=(64, 64)), add_audio(out)
    packets = [
        *video_packets(v, [i / 10 for i in range(300)]),
        *audio_packets(a, np.full(480000, 0.25, np.float32)),
    ]
    for packet in packets:
        out.mux_one(packet) if packet.stream is v else None
    for packet in packets:
        out.mux_one(packet) if packet.stream is a else None
    out.close()
    file = Counting((tmp_path / "a.nut").read_bytes())
    with open_media(file, look_ahead=3.0) as reader:
        first = next(reader)
        held = max(q.seconds for q in reader._packets.queues.values())
        assert held <= 3.0 + 2.0
        pieces = [first, *reader]
    assert len(pieces) == 30
    assert all(p.has_video for p in pieces)
    assert not pieces[0].has_audio
    assert "audio_late" in kinds(reader)


def test_late_pictures_are_told(tmp_path):
    out = av.open(str(tmp_path / "a.nut"), "w", options={"max_interleave_delta": "1"})
    v, a = add_video(out, size=(64, 64)), add_audio(out)
    pictures = list(video_packets(v, [i / 10 for i in range(100)]))
    sound = list(audio_packets(a, np.full(160000, 0.25, np.float32)))
    for packet in [pictures[0], *sound, *pictures[1:]]:
        out.mux_one(packet)
    out.close()
    with open_media(tmp_path / "a.nut", look_ahead=2.0) as reader:
        got, _ = shown(reader)
    assert got[0] == (0.5, level(0)) and got[-1] == (9.5, level(95))
    assert kinds(reader) == ["video_late"]


def test_decoded_frames_are_freed_at_once(tmp_path):
    """Without the garbage collector: a reference cycle per frame would hold all of them."""
    path = clip(tmp_path / "a.mkv", [i / 25 for i in range(200)], np.zeros(128000))
    gc.collect()
    gc.disable()
    try:
        with open_media(path, fps=5) as reader:
            for _ in reader:
                objects = gc.get_objects()
                assert sum(isinstance(o, av.VideoFrame) for o in objects) <= 6
                assert sum(isinstance(o, av.AudioFrame) for o in objects) <= 6
                assert sum(isinstance(o, av.Packet) for o in objects) <= 150
                del objects
    finally:
        gc.enable()


def test_large_frames_are_never_rgb_at_full_size(tmp_path):
    lossy = {"codec": "libx264", "pix_fmt": "yuv420p", "size": (1080, 1920)}
    lossy["options"] = {"preset": "ultrafast"}
    path = clip(tmp_path / "a.mp4", EVEN[:10], video=lossy | {"base": Fraction(1, 25)})
    tracemalloc.start()
    try:
        with open_media(path, size=(56, 56), fps=5) as reader:
            assert len(list(reader)) == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1080 * 1920  # one full RGB frame would be 6.2 MB


def test_events_are_bounded():
    from jaxmem.data.media.demux import Log

    log = Log()
    for i in range(5000):
        log(float(i), "audio_gap", "x")
    assert len(log.events) == 501
    assert log.events[-1].kind == "more"


def test_clock_reset_is_closed(tmp_path):
    out = av.open(str(tmp_path / "a.nut"), "w")
    stream = add_video(out)
    for packet in video_packets(stream, EVEN):
        if packet.pts >= 1000:
            packet.pts += 100_000_000
            packet.dts = packet.pts
        out.mux(packet)
    out.close()
    with open_media(tmp_path / "a.nut", fps=25) as reader:
        got, _ = shown(reader)
    assert [v for _, v in got[:60]] == [level(i) for i in range(60)]
    (event,) = reader.events
    assert event.kind == "clock" and event.time == pytest.approx(1.0, abs=0.01)


def test_closing_early(tmp_path):
    reader = open_media(clip(tmp_path / "a.mkv", EVEN))
    assert next(reader).start == 0
    reader.close()
    reader.close()
    assert list(reader) == []
    assert reader.end.kind == "stop"


# Real clips.

REAL = {
    "bbb_480p_30s.mp4": (30, 30.0, (480, 854), "5.1"),
    "friday.mp4": (7, 6.166, (480, 640), "stereo"),
    "rooftops_360p.mp4": (18, 17.063, (360, 640), "stereo"),
    "stream_of_water.webm": (4, 3.119, (360, 480), "mono"),
}


def reference(path, instants, rate=16000):
    """Frames shown at `instants` (reduced), and the sound: plainly, holding everything."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        frames = []
        for frame in container.decode(video=0):
            small = frame.reformat(64, 48, "rgb24", interpolation="AREA")
            frames.append((frame.time, small.to_ndarray()))
    first = frames[0][0]
    pictures = [[x for s, x in frames if s - first <= t + 1e-6][-1] for t in instants]
    with av.open(str(path)) as container:
        resampler = av.AudioResampler("flt", "mono", rate)
        blocks = [b for f in container.decode(audio=0) for b in resampler.resample(f)]
        sound = np.concatenate([b.to_ndarray()[0] for b in blocks + resampler.resample(None)])
    return pictures, sound


@needs_clips
@pytest.mark.parametrize("name", REAL)
def test_real_clip(name):
    count, seconds, native, layout = REAL[name]
    with open_media(CLIPS / name, size=(48, 64), fps=2) as reader:
        pieces = list(reader)
    info = reader.info
    assert len(pieces) == count
    assert reader.end.kind == "end" and reader.end.time == pytest.approx(seconds, abs=0.04)
    assert (info.native_size, info.audio_layout) == (native, layout)
    assert info.duration == pytest.approx(seconds, abs=0.01)
    assert not reader.events
    assert all(p.has_video and p.has_audio for p in pieces)
    instants = [p.start + o for p in pieces for o in (0.25, 0.75)]
    pictures, sound = reference(CLIPS / name, instants)
    got = np.concatenate([p.frames for p in pieces])
    for t, a, b in zip(instants, got, pictures, strict=True):
        if t < seconds:
            assert np.abs(a.astype(int) - b).mean() < 6, t
    x = joined(pieces)
    n = min(len(x), len(sound)) - 1000
    lags = range(-60, 61)  # sound may start 3 ms after the pictures
    best = max(np.corrcoef(x[2000:n], sound[2000 - lag : n - lag])[0, 1] for lag in lags)
    assert best > 0.99


@needs_clips
def test_real_truncations():
    with pytest.raises(ValueError, match="cannot be opened"):
        open_media(io.BytesIO((CLIPS / "bbb_480p_30s.mp4").read_bytes()[:2_500_000]))
    with open_media(io.BytesIO((CLIPS / "friday.mp4").read_bytes()[:300_000]), fps=30) as reader:
        pieces = list(reader)
    assert len(pieces) == 4
    assert reader.end.kind == "damaged" and reader.end.time == pytest.approx(3.6, abs=0.1)
    assert kinds(reader).count("damaged") == 1
    assert pieces[3].has_audio and not pieces[3].samples[2000:].any()  # silent from 3.065 s on
    with open_media(CLIPS / "friday.mp4", fps=30) as whole:
        for a, b in zip(pieces[:3], whole, strict=False):
            np.testing.assert_array_equal(a.frames, b.frames)
            np.testing.assert_array_equal(a.samples, b.samples)
    with open_media(io.BytesIO((CLIPS / "stream_of_water.webm").read_bytes()[:200_000])) as reader:
        assert len(list(reader)) == 2
    assert reader.end.kind == "damaged"
    assert reader.end.time == pytest.approx(1.1, abs=0.02)
    assert "declared" in reader.end.reason


@needs_clips
def test_real_clip_through_pipe_and_index_at_the_end():
    with pytest.raises(ValueError, match="index"):
        open_media(Pipe((CLIPS / "bbb_480p_30s.mp4").read_bytes()))
    with open_media(Pipe((CLIPS / "friday.mp4").read_bytes()), size=(32, 32)) as reader:
        assert len(list(reader)) == 7


def test_types(tmp_path):
    with open_media(clip(tmp_path / "a.mkv", EVEN, np.zeros(16000))) as reader:
        assert iter(reader) is reader and reader.end is None
        piece = next(reader)
    assert isinstance(piece, Piece) and Piece._fields[:3] == ("start", "frames", "samples")
    assert piece.frames.dtype == np.uint8 and piece.samples.dtype == np.float32
    assert type(piece.has_video) is bool and type(piece.has_audio) is bool
    assert type(piece.valid_seconds) is float
    assert Event._fields == ("time", "kind", "message")

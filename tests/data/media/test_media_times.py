"""Media: sampling by time stamp, pieces of any length, start and stop."""

from fractions import Fraction

import numpy as np
import pytest
from media_clips import EVEN, clicks, clip, joined, level, shown

from jaxmem.data.media.media import Event, Piece, open_media

GAPS = [0.0, 0.005, 0.010, 0.120, 0.300, 1.900, 1.905, 1.910, 3.500, 3.540, 4.000]


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


def test_types(tmp_path):
    with open_media(clip(tmp_path / "a.mkv", EVEN, np.zeros(16000))) as reader:
        assert iter(reader) is reader and reader.end is None
        piece = next(reader)
    assert isinstance(piece, Piece) and Piece._fields[:3] == ("start", "frames", "samples")
    assert piece.frames.dtype == np.uint8 and piece.samples.dtype == np.float32
    assert type(piece.has_video) is bool and type(piece.has_audio) is bool
    assert type(piece.valid_seconds) is float
    assert Event._fields == ("time", "kind", "message")

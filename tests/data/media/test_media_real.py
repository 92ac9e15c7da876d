"""Media: real clips against a plain decoding of them (`shared/clips`)."""

import io

import av
import numpy as np
import pytest
from media_clips import CLIPS, Pipe, joined, kinds, needs_clips

from jaxmem.data.media.media import open_media

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

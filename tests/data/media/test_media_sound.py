"""Media: sound in step with pictures, averaged, padded, silent where it is not there."""

from fractions import Fraction

import av
import numpy as np
import pytest
from media_clips import (
    EVEN,
    add_audio,
    add_video,
    audio_packets,
    clicks,
    clip,
    joined,
    level,
    mux,
    shown,
    video_packets,
)

from jaxmem.data.media.media import open_media


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

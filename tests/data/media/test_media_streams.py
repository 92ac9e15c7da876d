"""Media: containers, the choice of streams, and files with nothing to decode."""

from fractions import Fraction
from pathlib import Path

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

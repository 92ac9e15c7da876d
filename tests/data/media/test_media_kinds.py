"""Files as people have them: what reports of other projects are about, made small."""

import io
import struct
import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_clips import (
    EVEN,
    Pipe,
    add_audio,
    add_video,
    audio_packets,
    clicks,
    clip,
    h264,
    joined,
    kinds,
    mux,
    video_packets,
)

from jaxmem.data.media import open_media

LOSSY = {"codec": "libx264", "pix_fmt": "yuv420p", "base": Fraction(1, 25), "size": (32, 48)}


def ts(seconds, *, flash, longer=0.0, start=0.0, key_every=25, between=0):
    """Bytes of a transport stream: dark pictures, white ones and a click at `flash`."""
    file = io.BytesIO()
    options = {"avoid_negative_ts": "disabled", "mpegts_flags": "+resend_headers"}
    out = av.open(file, "w", format="mpegts", options=options)
    v = add_video(out, **LOSSY, options={"g": str(key_every), "bf": str(between)})
    a = add_audio(out, codec="aac")

    def pictures():
        for i in range(round(25 * seconds)):
            white = flash <= i / 25 < flash + 0.2
            frame = av.VideoFrame.from_ndarray(
                np.full((v.height, v.width, 3), 235 if white else 30, np.uint8), "rgb24"
            )
            frame.pts, frame.time_base = round(25 * start) + i, Fraction(1, 25)
            yield from v.encode(frame)
        yield from v.encode(None)

    length = seconds + longer
    tone = np.sin(np.arange(round(16000 * length)) * 0.4).astype(np.float32) * 0.8
    times = np.arange(len(tone)) / 16000
    sound = np.where((times >= flash) & (times < flash + 0.2), tone, 0.0)
    mux(out, pictures(), audio_packets(a, sound, start))
    return file.getvalue()


def starts(on, step):
    """Times at which a row of flags begins to be set, at least a second apart."""
    found = []
    for i in np.flatnonzero(on):
        if not found or i * step - found[-1] > 1:
            found.append(i * step)
    return np.array(found)


def flashes_and_clicks(path):
    with open_media(path, fps=10) as reader:
        pieces = list(reader)
    frames = np.concatenate([p.frames for p in pieces]).mean((1, 2, 3))
    sound = np.abs(joined(pieces))
    sound = sound[: len(sound) // 160 * 160].reshape(-1, 160).max(1)
    return starts(frames > 128, 0.1), starts(sound > 0.3, 0.01), reader


@pytest.mark.parametrize("seconds", [3.0, 12.0])
def test_parts_that_begin_at_the_same_stamp_play_one_after_the_other(tmp_path, seconds):
    """Whatever their length: nothing of the later parts is taken for late packets of the first."""
    path = tmp_path / "parts.ts"
    path.write_bytes(b"".join(ts(seconds, flash=1.0) for _ in range(3)))
    seen, heard, reader = flashes_and_clicks(path)
    assert len(seen) == len(heard) == 3
    np.testing.assert_allclose(np.diff(seen), seconds, atol=0.25)
    assert kinds(reader).count("clock") == 2
    assert abs(reader.end.time - 3 * seconds) < 0.5


def test_picture_and_sound_stay_together_over_ten_resets(tmp_path):
    """The sound of every part is longer than its pictures: one offset closes each reset."""
    path = tmp_path / "parts.ts"
    path.write_bytes(b"".join(ts(3.0, flash=1.0, longer=0.4) for _ in range(11)))
    seen, heard, _ = flashes_and_clicks(path)
    assert len(seen) == len(heard) == 11
    apart = seen - heard
    assert np.abs(apart - apart[0]).max() <= 0.1 + 1e-6


def test_a_jump_ahead_of_all_streams_is_closed(tmp_path):
    """Two hours further on after three seconds: the stream is six seconds long."""
    path = tmp_path / "ahead.ts"
    path.write_bytes(ts(3.0, flash=1.0) + ts(3.0, flash=1.0, start=7200.0))
    seen, heard, reader = flashes_and_clicks(path)
    assert len(seen) == len(heard) == 2 and reader.end.time < 8
    assert "clock" in kinds(reader)


def test_a_chained_ogg_is_read_to_its_end(tmp_path):
    parts = []
    for _ in range(2):
        clip(
            tmp_path / "a.ogg",
            sound=clicks(3.0, 48000, [1.0]),
            audio={"codec": "libopus", "rate": 48000},
        )
        parts.append((tmp_path / "a.ogg").read_bytes())
    (tmp_path / "both.ogg").write_bytes(b"".join(parts))
    with open_media(tmp_path / "both.ogg") as reader:
        pieces = list(reader)
    assert 5.5 < reader.end.time < 6.6 and len(pieces) in (6, 7)


def test_pictures_built_on_lost_ones_are_held(tmp_path):
    """From the loss of packets to the next key frame the last good picture stands."""
    whole = bytearray(ts(6.0, flash=9.0, key_every=50))
    good, _, _ = read(tmp_path / "good.ts", bytes(whole))
    packets = [whole[i : i + 188] for i in range(0, len(whole), 188)]
    video = [i for i, p in enumerate(packets) if ((p[1] & 31) << 8 | p[2]) == 256]
    middle = video[len(video) // 2]
    lost = b"".join(p for i, p in enumerate(packets) if i not in (middle, middle + 1, middle + 2))
    damaged, events, end = read(tmp_path / "lost.ts", lost)
    assert [k for k in events if k == "damaged"] == ["damaged"]
    np.testing.assert_allclose(damaged.mean((1, 2, 3)), good.mean((1, 2, 3)), atol=3)
    assert "lost were" in end.reason and "pictures" in end.reason


def read(path, data):
    path.write_bytes(data)
    with open_media(path, fps=10) as reader:
        frames = np.concatenate([p.frames for p in reader])
    return frames, kinds(reader), reader.end


def test_a_gap_without_pictures_is_told(tmp_path):
    times = [i / 25 for i in range(75)] + [7 + i / 25 for i in range(75)]
    out = av.open(str(tmp_path / "gap.mkv"), "w")
    mux(out, video_packets(add_video(out), times))
    with open_media(tmp_path / "gap.mkv") as reader:
        list(reader)
    (gap,) = [e for e in reader.events if e.kind == "video_gap"]
    assert gap.time == pytest.approx(3.0, abs=0.1) and gap.message.startswith(("3.9", "4.0"))
    assert reader.end.kind == "end" and "of pictures" in reader.end.reason


@pytest.mark.parametrize("bad", [8.9e35, np.inf, np.nan, -1e3])
def test_a_sample_beyond_any_volume_is_silence(tmp_path, bad):
    sound = clicks(2.0, 16000, [0.5, 1.5])
    sound[16000] = bad
    path = clip(tmp_path / "loud.mkv", EVEN, sound, audio={"codec": "pcm_f32le"})
    with open_media(path) as reader:
        heard = joined(list(reader))
    assert np.abs(heard).max() == pytest.approx(0.5, abs=1e-3) and np.isfinite(heard).all()
    assert kinds(reader).count("damaged") == 1


@pytest.mark.parametrize("channels", [9, 10, 32])
def test_many_channels_are_their_mean(tmp_path, channels):
    path = tmp_path / "many.wav"
    x = np.zeros((16000, channels), np.int16)
    x[:, 0] = 16384
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels), file.setsampwidth(2), file.setframerate(16000)
        file.writeframes(x.tobytes())
    with open_media(path) as reader:
        (piece,) = list(reader)
    assert piece.samples.mean() == pytest.approx(0.5 / channels, rel=0.02)
    assert reader.end.reason == "everything was decoded"


HEARD = """
import sys
from jaxmem.data.media import open_media
with open_media(sys.argv[1]) as reader:
    print(max(abs(p.samples).max() for p in reader), reader.end.reason, reader.events)
"""


@pytest.mark.parametrize(
    "family, layout, channels, loudest",
    [(255, "9 channels", 9, 0.5 / 9), (2, "ambisonic 1", 4, 0.5)],
)
def test_channels_that_each_have_a_plane(tmp_path, family, layout, channels, loudest):
    """More than eight end the process in the library's own arrays: a child reads them."""
    path = tmp_path / "many.ogg"
    x = np.zeros((48000, channels), np.float32)
    x[:, 0] = 0.5 * np.sin(np.arange(48000) * 0.1)
    with av.open(str(path), "w") as out:
        more = {"options": {"mapping_family": str(family), "b": "900k"}}
        stream = out.add_stream("libopus", rate=48000, layout=layout, **more)
        for i in range(0, 48000, 960):
            frame = av.AudioFrame.from_ndarray(x[i : i + 960].reshape(1, -1), "flt", layout)
            frame.sample_rate, frame.pts = 48000, i
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    done = subprocess.run([sys.executable, "-c", HEARD, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    heard, told = done.stdout.split(" ", 1)
    assert float(heard) == pytest.approx(loudest, rel=0.1)
    assert told == "everything was decoded []\n"


def _atom(data, *path):
    """Offsets of an atom and of those around it in an mp4."""
    offsets, begin, end = [], 0, len(data)
    for name in path:
        at = begin
        while data[at + 4 : at + 8] != name:
            at += struct.unpack(">I", data[at : at + 4])[0]
            assert at < end
        offsets.append(at)
        inner = {b"stsd": 16, b"sowt": 52, b"lpcm": 52}.get(name, 8)
        begin, end = at + inner, at + struct.unpack(">I", data[at : at + 4])[0]
    return offsets


LABELS = """
import sys
from jaxmem.data.media import open_media
with open_media(sys.argv[1]) as reader:
    pieces = list(reader)
print(len(pieces), *[(e.kind, e.message) for e in reader.events])
"""


def test_channels_in_an_order_of_their_own_are_left_out(tmp_path):
    """Such a layout corrupts memory in some versions of the decoder library: a child reads it."""
    path = tmp_path / "odd.mov"
    clip(
        path, EVEN, clicks(2.4, 16000, [1.0]), video=LOSSY, audio={"layout": "stereo"}, format="mov"
    )
    data = bytearray(path.read_bytes())
    sound = next(i for i in range(2) if b"soun" in _trak(data, i))
    around = _offsets(data, sound)
    entry = around[-1]
    size = struct.unpack(">I", data[entry : entry + 4])[0]
    place = data.find(b"chan", entry, entry + size) - 4
    old = struct.unpack(">I", data[place : place + 4])[0]
    labels = b"".join(struct.pack(">II12x", label, 0) for label in (2, 1))  # right before left
    new = struct.pack(">I4sIIII", 24 + len(labels), b"chan", 0, 0, 0, 2) + labels
    data[place : place + old] = new
    for at in around:
        old_size = struct.unpack(">I", data[at : at + 4])[0]
        data[at : at + 4] = struct.pack(">I", old_size + len(new) - old)
    path.write_bytes(data)
    done = subprocess.run([sys.executable, "-c", LABELS, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 ") and "audio_layout" in done.stdout and "FR" in done.stdout


def _trak(data, number):
    moov = _atom(data, b"moov")[0]
    at, size = moov + 8, struct.unpack(">I", data[moov : moov + 4])[0]
    found = []
    while at < moov + size:
        length = struct.unpack(">I", data[at : at + 4])[0]
        if data[at + 4 : at + 8] == b"trak":
            found.append(bytes(data[at : at + length]))
        at += length
    return found[number]


def _offsets(data, number):
    """Offsets of moov, trak, mdia, minf, stbl, stsd and the sound's entry."""
    moov = _atom(data, b"moov")[0]
    trak = data.find(_trak(data, number), moov)
    offsets, begin = [moov, trak], trak + 8
    for name in (b"mdia", b"minf", b"stbl", b"stsd"):
        at = begin
        while data[at + 4 : at + 8] != name:
            at += struct.unpack(">I", data[at : at + 4])[0]
        offsets.append(at)
        begin = at + (16 if name == b"stsd" else 8)
    return [*offsets, begin]


EXIF = b"Exif\0\0" + b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x112, 3, 1, 6, 0, 0)


def test_a_picture_with_exif_is_upright(tmp_path):
    """Orientation 6: what was stored on the left is on top."""
    rgb = np.full((32, 64, 3), 40, np.uint8)
    rgb[:, :16] = 230
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 64, 32, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format="yuvj420p")
    jpeg = b"".join(bytes(p) for p in [*encoder.encode(frame), *encoder.encode(None)])
    app1 = b"\xff\xe1" + struct.pack(">H", len(EXIF) + 2) + EXIF
    (tmp_path / "photo.jpg").write_bytes(jpeg[:2] + app1 + jpeg[2:])
    with open_media(tmp_path / "photo.jpg") as reader:
        picture = next(reader).frames[0].astype(int)
    assert picture.shape[:2] == (64, 32)
    assert picture[:12].mean() > 180 and picture[20:].mean() < 90


def test_tags_that_are_no_text_do_not_matter(tmp_path):
    path = tmp_path / "a.mkv"
    out = av.open(str(path), "w")
    out.metadata["title"] = "Cafe XXXX"
    mux(out, video_packets(add_video(out), EVEN))
    data = path.read_bytes()
    assert b"XXXX" in data
    path.write_bytes(data.replace(b"XXXX", b"\xe9\xff\xfe\xe8"))
    with open_media(path) as reader:
        assert len(list(reader)) == 3


def test_a_stream_that_appears_late_does_not_end_the_run(tmp_path):
    """Through a pipe; the decoder library fails at the end of such input."""
    late = tmp_path / "late.ts"
    clip(late, EVEN, video=LOSSY, format="mpegts")
    both = ts(3.0, flash=1.0)
    with open_media(Pipe(late.read_bytes() + both), format="mpegts") as reader:
        pieces = list(reader)
    assert len(pieces) >= 5 and reader.end.kind in ("end", "damaged")


def test_one_wrong_duration_makes_no_hours(tmp_path):
    """The length of one frame in the table of an mp4 is 2^24 times what it was."""
    path = Path(h264(tmp_path / "a.mp4"))
    data = bytearray(path.read_bytes())
    at = data.find(b"stts") + 16
    assert at > 16
    data[at] |= 1
    path.write_bytes(data)
    with open_media(path) as reader:
        assert sum(1 for _, _ in zip(range(50), reader, strict=False)) < 10


def stamped(data, kind, number, field, seconds):
    """A transport stream with `seconds` added to one stamp of a packet, counted from 0."""
    data, at = bytearray(data), -1
    for _ in range(number + 1):
        at = data.index(b"\x00\x00\x01" + {"video": b"\xe0", "audio": b"\xc0"}[kind], at + 1)
    assert field == 0 or data[at + 7] >> 6 == 3  # it has both stamps
    at += 9 + 5 * field
    high, middle, low = data[at] >> 1 & 7, data[at + 1 : at + 3], data[at + 3 : at + 5]
    ticks = high << 30 | int.from_bytes(middle) >> 1 << 15 | int.from_bytes(low) >> 1
    ticks += round(seconds * 90_000)
    data[at] = data[at] & 0xF1 | ticks >> 30 << 1
    data[at + 1 : at + 3] = ((ticks >> 15 & 0x7FFF) << 1 | 1).to_bytes(2)
    data[at + 3 : at + 5] = ((ticks & 0x7FFF) << 1 | 1).to_bytes(2)
    return bytes(data)


@pytest.mark.parametrize("seconds", [11.0, 23.3, 186.2, 5000.0])
@pytest.mark.parametrize(
    ("kind", "field"), [("video", 0), ("audio", 0), ("video", 1), ("video", None)]
)
def test_one_damaged_stamp_moves_nothing_else(tmp_path, kind, field, seconds):
    """Of presentation (0), of decoding (1), of both; the seconds that it invents are not made."""
    data = ts(4.0, flash=3.0, between=2)
    for each in (0, 1) if field is None else (field,):
        data = stamped(data, kind, 30 if kind == "video" else 3, each, seconds)
    (tmp_path / "flipped.ts").write_bytes(data)
    seen, heard, reader = flashes_and_clicks(tmp_path / "flipped.ts")
    assert reader.end.time < 6 and len(seen) == len(heard) == 1
    assert abs(seen[0] - heard[0]) <= 0.2


@pytest.mark.parametrize("ticks", [1, 10, 100])
def test_one_wrong_rate_of_ticks_makes_no_hours(tmp_path, ticks):
    """Every stamp of the pictures is wrong, and decoding and presentation are far apart."""
    sound = clicks(4.0, 48000, [0.5])
    more = {"audio": {"codec": "aac", "rate": 48000}, "format": "mp4"}
    path = Path(clip(tmp_path / "a.mp4", EVEN, sound, video=LOSSY, **more))
    data = bytearray(path.read_bytes())
    at = data.index(b"mdhd") + 16
    data[at : at + 4] = ticks.to_bytes(4)
    path.write_bytes(data)
    with open_media(path) as reader:
        pieces = sum(1 for _, _ in zip(range(1000), reader, strict=False))
    assert 4 <= pieces <= 70


def test_a_name_with_a_colon_is_a_file(tmp_path, monkeypatch):
    clip(tmp_path / "meeting-12:30.mkv", EVEN)
    monkeypatch.chdir(tmp_path)
    with open_media("meeting-12:30.mkv") as reader:
        assert len(list(reader)) == 3

"""Real video files of the world: what is read back is what was drawn and played, at its time."""

import json
import re
from dataclasses import fields
from fractions import Fraction

import av
import numpy as np
import pytest

from jaxmem.data.media.media import open_media
from jaxmem.data.world import files
from jaxmem.data.world.features import log_mel
from jaxmem.data.world.files import held_out, read_questions, write_questions, write_video
from jaxmem.data.world.questions import TYPES, questions
from jaxmem.data.world.render import PATCH, SIZE, frames
from jaxmem.data.world.scene import LEVELS, Difficulty, patches
from jaxmem.data.world.sounds import RATE, sound
from jaxmem.data.world.world import split_seed, world

SECONDS = 10
CLEAR = Difficulty(event_rate=0.4, moving=0.0, babble=0.0, distractor_rate=0.0, cut_rate=0.0)


@pytest.fixture(scope="module")
def stream():
    return world(split_seed("test", 1), SECONDS, CLEAR)


@pytest.fixture(scope="module")
def video(stream, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("video") / "stream.mp4", stream)


def decode(path):
    """Times and frames [F, side, side, 3] of the picture, samples of the sound, by PyAV alone."""
    with av.open(str(path)) as container:
        pictures = [(f.time, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        pieces = [(f.time, f.rate, f.to_ndarray()[0]) for f in container.decode(audio=0)]
    times, images = zip(*pictures, strict=True)
    return np.array(times), np.stack(images), pieces


def envelope(samples, rate):
    """Root mean square of every 5 ms."""
    step = rate // 200
    whole = samples[: len(samples) // step * step].reshape(-1, step)
    return np.sqrt((whole**2).mean(1))


def test_read_back_equals_what_was_rendered(stream, video):
    with open_media(video, fps=1, size=(SIZE, SIZE)) as reader:
        pieces = list(reader)
    assert len(pieces) == SECONDS
    assert reader.end is not None and reader.end.kind == "end"
    pictures = np.concatenate([p.frames for p in pieces]).astype(int)
    error = np.abs(pictures - frames(stream))
    assert error.mean() < 2.5
    assert np.abs(error.mean((1, 2, 3))).max() < 5  # in every second
    assert np.abs((pictures - frames(stream)).mean((0, 1, 2))).max() < 1  # no shift of colour
    samples = np.concatenate([p.samples for p in pieces])
    clean = sound(stream).clip(-1, 1)
    assert np.abs(log_mel(samples) - log_mel(clean)).mean() < 0.05
    assert np.corrcoef(samples, clean)[0, 1] > 0.98


def test_pictures_begin_at_their_time(stream, video):
    times, images, _ = decode(video)
    np.testing.assert_allclose(times, np.arange(SECONDS * 8) / 8, atol=1e-3)
    e = stream.events
    shown = [i for i in np.flatnonzero(e.glyph >= 0) if 1 <= e.start[i] < SECONDS - 1]
    assert shown
    side = PATCH * images.shape[1] // SIZE
    for i in shown:
        row, col = patches(e, i, e.start[i])[0]
        patch = images[:, row * side : (row + 1) * side, col * side : (col + 1) * side]
        near = np.flatnonzero(np.abs(times - e.start[i]) < 0.6)
        jump = [np.abs(patch[j].astype(int) - patch[j - 1]).mean() for j in near]
        assert abs(times[near[np.argmax(jump)]] - e.start[i]) < 0.05


def test_sounds_begin_at_their_time(stream, video):
    _, _, pieces = decode(video)
    first, rate, _ = pieces[0]
    assert first == 0  # the encoder's delay is not part of the track
    heard = envelope(np.concatenate([p[2] for p in pieces]), rate)
    clean = envelope(sound(stream), RATE)
    e = stream.events
    rings = np.flatnonzero(e.sound >= 0)
    assert len(rings)
    for i in rings:
        window = slice(e.start[i] * 200, e.start[i] * 200 + 120)  # it starts in the first 0.25 s
        level = 0.3 * clean[window].max()
        onset = [np.argmax(x[window] > level) / 200 for x in (heard, clean)]
        assert abs(onset[0] - onset[1]) < 0.02
    n = min(len(heard), len(clean))
    spectrum = np.fft.rfft(heard[:n]) * np.conj(np.fft.rfft(clean[:n]))
    lag = np.argmax(np.fft.irfft(spectrum, n))
    assert min(lag, n - lag) <= 1  # 5 ms


def test_same_seed_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", world(5, 2), scale=2)
    write_video(tmp_path / "c.mp4", world(6, 2), scale=2)
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c
    assert a.index(b"moov") < a.index(b"mdat")  # the index comes first: a pipe can be read


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [(".mkv", ("h264", "aac")), (".webm", ("vp8", "opus")), (".mov", ("h264", "aac"))],
)
def test_containers(tmp_path, suffix, codecs):
    stream = world(3, 3)
    path = write_video(tmp_path / f"new/x{suffix}", stream, scale=2, fps=5)
    with open_media(path, fps=1, size=(SIZE, SIZE)) as reader:
        pieces = list(reader)
    assert (reader.info.video_codec, reader.info.audio_codec) == codecs
    assert reader.info.frame_rate == 5 and reader.info.native_size == (96, 96)
    assert len(pieces) == 3
    # At 5 frames a second, the one shown at 0.5 s is that of 0.4 s.
    drawn = frames(stream, np.arange(3) + 0.4).astype(int)
    assert np.abs(np.concatenate([p.frames for p in pieces]) - drawn).mean() < 4
    heard = np.concatenate([p.samples for p in pieces])
    assert np.corrcoef(heard, sound(stream))[0, 1] > 0.9


def test_a_second_is_drawn_as_in_the_whole_stream():
    stream = world(4, 12, Difficulty(cut_rate=0.5))
    assert len(stream.scenery.start) > 3
    times = np.arange(12)[:, None] + np.array([0.0, 0.5, 0.99])
    whole = frames(stream, times.reshape(-1)).reshape(12, 3, 48, 48, 3)
    for second in range(12):
        np.testing.assert_array_equal(frames(stream, times[second]), whole[second])


def test_failure_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"old")

    def fail(*_, **__):
        raise RuntimeError("no more")

    monkeypatch.setattr(files, "frames", fail)
    with pytest.raises(RuntimeError, match="no more"):
        write_video(path, world(0, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"] and path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("x.gif", {}, "suffix must be one of .mp4"),
        ("x.mp4", {"fps": 0}, "fps must lie in 1 .. 120, got 0"),
        ("x.mp4", {"scale": 0}, "scale"),
        ("x.mp4", {"quality": 99}, "quality"),
        ("x.mp4", {"audio_rate": 12_345}, "audio_rate"),
        ("x.webm", {"audio_rate": 16_000}, "48000"),
        ("x.mp4", {"audio_bits": 3}, "audio_bits"),
    ],
)
def test_bad_arguments(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, world(0, 1), **options)
    assert not list(tmp_path.iterdir())


def test_question_file_makes_the_stream_again(tmp_path, stream):
    asked = questions(stream, 12)
    path = write_questions(tmp_path / "q.json", stream, asked, video="stream.mp4")
    back = read_questions(path)
    assert back.questions == asked and back.video == "stream.mp4"
    again = world(back.seed, back.seconds, back.difficulty)
    assert again.difficulty == stream.difficulty and again.noise_db == stream.noise_db
    for a, b in zip(again.events, stream.events, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: "no json", "holds no JSON"),
        (lambda d: "[1]", "must hold"),
        (lambda d: json.dumps({**d, "format": "x"}), "must hold"),
        (lambda d: json.dumps({**d, "version": 99}), "version is 99"),
        (lambda d: json.dumps({k: v for k, v in d.items() if k != "seed"}), "seed"),
        (lambda d: json.dumps({**d, "questions": [{"time": 3}]}), "text"),
    ],
)
def test_damaged_question_file(tmp_path, change, message):
    stream = world(0, 4)
    path = write_questions(tmp_path / "q.json", stream, questions(stream, 2))
    path.write_text(change(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_held_out(tmp_path):
    path, asked = held_out(2, 4, tmp_path, count=5, scale=1)
    assert len(asked) == 5 and [q.time for q in asked] == sorted(q.time for q in asked)
    stored = read_questions(path.with_suffix(".json"))
    assert stored.seed == split_seed("test", 2) and stored.video == path.name
    assert stored.questions == asked
    with open_media(path, fps=1) as reader:
        assert len(list(reader)) == 4


def test_documentation_lists_every_type_and_knob(root):
    text = (root / "docs" / "data.md").read_text()
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `")]
    table = {row[1].strip(" `"): [cell.strip() for cell in row[2:8]] for row in rows}
    assert set(TYPES) <= set(table)
    for field in fields(Difficulty):
        for cell, level in zip(table[field.name], LEVELS, strict=True):
            value = getattr(LEVELS[level], field.name)
            numbers = [float(Fraction(part)) for part in re.split(r", |\.\.(?=-)", cell)]
            np.testing.assert_allclose(numbers, np.ravel(value), err_msg=field.name)

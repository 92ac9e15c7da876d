"""Media: damaged files, and arguments that make no sense."""

import io
from pathlib import Path

import av
import numpy as np
import pytest
from media_clips import EVEN, add_video, clip, level, shown, video_packets

from jaxmem.data.media.media import open_media


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

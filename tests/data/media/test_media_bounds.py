"""Media: bounded memory, whatever the order of a file's packets."""

import gc
import io
import time
import tracemalloc
import weakref
from collections import Counter
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
    clip,
    kinds,
    level,
    shown,
    video_packets,
)

from jaxmem.data.media.media import open_media
from jaxmem.data.media.prefetch import prefetch


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
                there = Counter(map(type, gc.get_objects()))
                assert there[av.VideoFrame] <= 6 and there[av.AudioFrame] <= 6
                assert there[av.Packet] <= 150
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


def test_a_closed_file_holds_nothing_until_cycles_are_collected(tmp_path):
    """Frames, packets and decoders go as the reader does: hours of files leave no fragments."""
    sound = np.full(48_000, 0.1, np.float32)
    path = clip(tmp_path / "a.mp4", EVEN, sound, video={"codec": "mpeg4", "pix_fmt": "yuv420p"})
    gc.collect()
    gc.disable()
    try:
        with open_media(path) as reader:
            parts = [weakref.ref(x) for x in (reader._video, reader._audio, reader._packets)]
            assert len(list(reader)) == 3 and all(part() is not None for part in parts)
        del reader
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()

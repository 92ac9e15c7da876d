"""Media: pipes, standard input and live sources."""

import io
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from media_clips import EVEN, Pipe, clip, h264, shown

from jaxmem.data.media.media import open_media


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

"""Sources that keep one waiting: limits, reconnecting, growing files, closing; names of files."""

import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from media_clips import EVEN, clip, h264, kinds
from stalling import serving

from jaxmem.data.media import live
from jaxmem.data.media.media import open_media
from jaxmem.data.media.prefetch import apart, left_running, prefetch
from jaxmem.data.media.source import without_secret

QUICK = {"options": {"probesize": "40000", "analyzeduration": "200000"}}


@pytest.fixture(scope="module")
def ts(tmp_path_factory):
    return Path(h264(tmp_path_factory.mktemp("ts") / "a.ts", options={}))


@pytest.mark.parametrize("name", ["meeting-12:30.mp4", "http:x.mp4", "concat:a|b.mp4", "-x:%d.mp4"])
def test_names_of_files_are_no_addresses(tmp_path, monkeypatch, name):
    clip(tmp_path / name, EVEN, video={"codec": "mpeg4", "pix_fmt": "yuv420p"})
    monkeypatch.chdir(tmp_path)
    for given in (name, Path(name), f"file:{name}", str(tmp_path / name)):
        with open_media(given) as reader:
            assert len(list(reader)) == 3 and reader.end.kind == "end"
        assert not reader.waits
    with pytest.raises(ValueError, match="No such file"):
        open_media(name.replace(".mp4", ".mkv"))


def test_an_address_that_stalls_ends_in_time(ts):
    data = ts.read_bytes()
    with serving(data, len(data)) as address:
        # More is promised than comes.
        begin = time.monotonic()
        with open_media(address.replace("clip", "x"), timeout=1.0, **QUICK) as reader:
            assert reader.waits
            pieces = list(reader)
        assert len(pieces) == 3 or reader.end.kind == "stalled"
    with serving(data + bytes(500_000), len(data)) as address:
        with open_media(address, timeout=1.0, **QUICK) as reader:
            pieces = list(reader)
        assert len(pieces) >= 2 and reader.end.kind == "stalled"
    with serving(data, 0) as address, pytest.raises(ValueError, match="no answer in 1"):
        open_media(address, timeout=1.0)
    assert time.monotonic() - begin < 15


def test_what_came_before_a_stall_is_read_where_the_end_can_be_looked_at(ts):
    """FFmpeg asks for the end of the file while it opens it, to know its length."""
    data = ts.read_bytes()
    with serving(data + bytes(500_000), len(data), ranges=True) as address:
        with open_media(address, timeout=1.0) as reader:
            assert len(list(reader)) >= 2
        assert reader.end.kind == "stalled"
    with serving(data, 0, ranges=True) as address, pytest.raises(ValueError) as refused:
        open_media(address, timeout=0.5)
    assert "no answer in 0.5 s" in str(refused.value) and "pipe" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["rtsp", "rtmp", "tcp", "tls", "ftp", "https"])
def test_whatever_keeps_silent_is_refused_in_time(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}://127.0.0.1:{server.getsockname()[1]}/a"
        begin = time.monotonic()
        with pytest.raises(ValueError, match=r"no answer in 0\.3 s"):
            open_media(address, timeout=0.3)
    assert time.monotonic() - begin < 3


def test_a_live_address_is_opened_again(ts, monkeypatch):
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(live, "ATTEMPTS", 2)
    data = ts.read_bytes() + bytes(500_000)
    lengths = (len(data) - 500_000, 0, len(data) - 500_000, 0)
    settings = {"timeout": 0.7, "reconnect": True, "fps": 4, **QUICK}
    with serving(data, *lengths) as address, open_media(address, **settings) as reader:
        pieces = list(reader)
    assert [p.start for p in pieces] == list(range(len(pieces))) and len(pieces) >= 4
    assert {p.frames.shape for p in pieces} == {pieces[0].frames.shape}
    assert kinds(reader).count("resumed") == 1 and kinds(reader).count("stalled") == 2
    resumed = next(e for e in reader.events if e.kind == "resumed")
    assert 2 <= resumed.time <= 3 and "without the source" in resumed.message
    assert reader.end.kind == "stalled" and reader.end.time >= 4
    first, again = pieces[0].frames, pieces[round(resumed.time)].frames
    np.testing.assert_array_equal(first, again)  # a live source begins anew
    with serving(data, *lengths) as address, open_media(address, stop=4.0, **settings) as reader:
        assert list(reader)[-1].start == 3
    assert reader.end == (4.0, "stop=4 s was reached", "stop")


def test_a_camera_is_opened_again_for_ever_and_tells_at_once(ts, monkeypatch):
    """It breaks off, and is away for three attempts; otherwise one of them would be the last."""
    monkeypatch.setattr(live, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(live, "ATTEMPTS", 1)
    data, told = ts.read_bytes(), []
    lengths, settings = (
        (len(data), 0, 0, 0, len(data)),
        {"timeout": 0.4, "reconnect": True, **QUICK},
    )
    with serving(data + bytes(500_000), *lengths) as address, open_media(address, **settings) as r:
        r.keep_on(lambda event: told.append(event.kind))
        for _ in r:
            if told == ["stalled", "resumed"]:
                break
    assert told == ["stalled", "resumed"] and r.end.kind == "stop"
    with serving(data + bytes(500_000), *lengths) as address, open_media(address, **settings) as r:
        assert len(list(r)) >= 2
    assert r.end.kind == "stalled" and "opening it again failed (1 attempts)" in r.end.reason


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("rtsp://me:se@cret@host/live", "rtsp://host/live"),
        ("http://me:secret@host?a=b@c", "http://host?a=b@c"),
        ("rtsp://host/a@b", "rtsp://host/a@b"),
        ("talk at 12:30 http://a:b@c", "talk at 12:30 http://a:b@c"),
    ],
)
def test_names_and_passwords_are_kept_out_of_messages(address, name):
    assert without_secret(address) == name
    if address != name and "host" not in address.partition("@")[0]:
        with pytest.raises(ValueError, match="NAME:PASSWORD") as refused:
            open_media(address.replace("host", "127.0.0.1:9"), timeout=5.0)
        assert "secret" not in str(refused.value) and "se@" not in str(refused.value)


def test_closing_while_a_thread_reads_leaves_it_alone(ts):
    data = ts.read_bytes()
    with serving(data + bytes(500_000), len(data)) as address:
        reader = open_media(address, timeout=1.5, **QUICK)
        items = prefetch(reader, 9)
        next(items)
        time.sleep(0.3)  # by now it waits for what does not come
        begin = time.monotonic()
        assert not items.leave(0.1)
        reader.close()
        assert time.monotonic() - begin < 1.0 and left_running()
        assert reader.end is not None and not reader._closed
        items._thread.join(10)
        assert not items._thread.is_alive() and reader._closed
    reader.close()
    assert list(reader) == []


def test_a_growing_file_is_followed(ts, tmp_path):
    data, path = ts.read_bytes(), tmp_path / "grows.ts"
    half = len(data) // 2
    path.write_bytes(data[:half])

    def grow():
        for at in range(half, len(data), 20_000):
            time.sleep(0.02)
            with path.open("ab") as file:
                file.write(data[at : at + 20_000])

    thread = threading.Thread(target=grow)
    thread.start()
    with open_media(path, follow=True, timeout=0.6, fps=5) as reader:
        followed = list(reader)
    thread.join()
    with open_media(path, fps=5) as whole:
        expected = list(whole)
    assert reader.end.kind == "end" and reader.waits
    assert reader.events[-1].kind == "stalled" and "nothing was added" in reader.events[-1].message
    for a, b in zip(followed, expected, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)


def test_following_ends_with_close(ts):
    reader = open_media(ts, follow=True, timeout=None)
    with prefetch(reader, 1) as items:
        next(items)
        time.sleep(0.2)
        begin = time.monotonic()
        reader.close()
        list(items)
    assert time.monotonic() - begin < 1.0


@pytest.mark.skipif(os.name != "posix", reason="named pipes of POSIX")
def test_a_named_pipe(ts, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"nobody writes to this pipe: no data came for 0\.3 s"):
        open_media(pipe, timeout=0.3)
    assert time.monotonic() - begin < 3
    threading.Thread(target=lambda: pipe.write_bytes(ts.read_bytes())).start()
    with open_media(pipe, timeout=5.0) as reader:
        assert len(list(reader)) == 3 and reader.end.kind == "end"


def test_standard_input_that_stalls(ts):
    code = (
        "from jaxmem.data.media.media import open_media\n"
        "with open_media('-', timeout=0.5) as r: print(len(list(r)), r.end.kind, r.end.reason)"
    )
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": False}
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": root}, **pipes) as process:
        process.stdin.write(ts.read_bytes())
        process.stdin.flush()
        out = process.stdout.read().decode().split()
    assert int(out[0]) >= 2 and out[1] == "stalled" and "0.5" in out


def test_standard_input_that_is_a_file_can_be_sought(tmp_path):
    video = {"codec": "mpeg4", "pix_fmt": "yuv420p"}
    path = clip(tmp_path / "index_at_the_end.mp4", EVEN, video=video)
    code = (
        "from jaxmem.data.media.media import open_media\n"
        "with open_media('-') as r: print(len(list(r)), r.end.kind, r.waits)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    with open(path, "rb") as file:
        more = {"stdin": file, "env": environment, "text": True, "stdout": subprocess.PIPE}
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], **more)
    assert done.stdout.split() == ["3", "end", "False"]


def test_what_makes_no_sense_is_refused(ts):
    for options, message in [
        ({"reconnect": True}, "reconnect is for an address or a device"),
        ({"timeout": 0}, "timeout must be positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_media(ts, **options)
    with pytest.raises(ValueError, match="follow is for a file that grows"):
        open_media("http://127.0.0.1:9/x.ts", follow=True)
    with pytest.raises(ValueError, match="is a device: say of which kind with format="):
        open_media("/dev/null")


def test_sound_alone_has_no_pictures_to_choose_a_size_for(tmp_path):
    path = clip(tmp_path / "a.wav", None, np.ones(32000, np.float32) * 0.1)
    with open_media(path, size=lambda h, w: (h // 2, w // 4)) as reader:
        assert reader.info.size == (0, 0) and next(reader).frames.shape == (1, 0, 0, 3)
    with open_media(path, size=(112, 56)) as reader:  # blank, for a model of one size
        assert reader.info.size == (112, 56) and next(reader).frames.shape == (1, 112, 56, 3)


def test_apart_gives_what_is_made_or_raised():
    assert apart(lambda: 7, print) == 7
    with pytest.raises(KeyError, match="x"):
        apart(lambda: {}["x"], print)


def test_apart_undoes_what_comes_too_late(monkeypatch):
    release, undone = threading.Event(), threading.Event()

    def make():
        release.wait(10)
        return 1

    def interrupted(self, timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, warnings.catch_warnings():
        real = threading.Event.wait
        patch.setattr(threading.Event, "wait", lambda self, t=None: (
            interrupted(self) if t == 0.2 else real(self, t)
        ))  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            apart(make, lambda made: undone.set())
    assert not undone.is_set()
    release.set()
    assert undone.wait(5)

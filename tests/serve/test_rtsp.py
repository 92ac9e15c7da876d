"""Cameras on the network, from the command line: watched, lost, found again, locked, silent."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import browsers
import pytest
from cameras import Camera, free_port
from serving import LAST, Refused, call

from jaxmem.data.world.files import held_out

pytest.importorskip("uvicorn")
WEBSOCKETS = pytest.importorskip("websockets.sync.client")
pytestmark = pytest.mark.rtsp
PATIENT = 120.0
"""Seconds that something is waited for; pauses between attempts grow to 30."""


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video with sound of the world that the model knows, and questions with answers."""
    path, asked = held_out(0, 8, tmp_path_factory.mktemp("film"), count=6)
    return path, asked


@pytest.fixture(scope="module")
def camera(film):
    with Camera(film[0]) as camera:
        yield camera


@pytest.fixture(scope="module")
def server(camera, tmp_path_factory):
    """Address of a server that may read the camera, with its name and password."""
    listed = camera.address.replace("rtsp://", "rtsp://user:secret@")
    silent = socket.create_server(("127.0.0.1", 0))
    others = [f"rtsp://127.0.0.1:{port}/x" for port in (silent.getsockname()[1], free_port())]
    wrong = camera.address.replace("127.0.0.1", "user:wrong@localhost")
    options = [x for one in (listed, wrong, *others) for x in ("--source", one)]
    folder = tmp_path_factory.mktemp("server")
    with silent, browsers.serving("--budget", "200", *options, cwd=folder) as address:
        yield address, others


@contextmanager
def connected(server, *, source, **config):
    """A WebSocket whose session reads a source; it is closed at the end."""
    with WEBSOCKETS.connect(f"{server[0]}/v1/video/chat/stream".replace("http", "ws")) as socket:
        say(socket, "session.config", **config)
        id = hear(socket, "session.created")["session"]["id"]
        try:
            say(socket, "session.source", source=source)
            hear(socket, "source.started")
            yield socket, id
        finally:
            call(server[0], f"/{id}", method="DELETE")


def say(socket, type, **more):
    socket.send(json.dumps({"type": type, **more}))


def hear(socket, *types):
    """The next message of one of some types."""
    while True:
        message = json.loads(socket.recv(PATIENT))
        assert message["type"] != "error", message
        if message["type"] in types:
            return message


def until_seconds(server, id, least):
    """Wait until a session has seen so many seconds, and return it."""
    end = time.monotonic() + PATIENT
    while (session := call(server[0], f"/{id}"))["stats"]["seconds"] < least:
        assert time.monotonic() < end, session
        time.sleep(0.1)
    return session


def test_what_a_camera_shows_and_sounds_like_is_known_later(server, camera, film):
    """Questions for later moments, over the WebSocket; the camera shows a film again and again."""
    with connected(server, source=f"{camera.address}clip") as (socket, id):
        for number, one in enumerate(film[1]):
            say(socket, "video.query", text=one.text, at=one.time, id=str(number))
        said = {}
        while len(said) < len(film[1]):
            message = hear(socket, "response.text.done")
            said[int(message["id"])] = message["text"]
        assert [said[number] for number in range(len(said))] == [one.answer for one in film[1]]
        found = until_seconds(server, id, 9)  # it begins again
        assert found["stats"]["dropped"] == 0
        assert found["source"] == {
            "kind": "camera", "name": f"{camera.address}clip", "lost": None, "over": None,
        }  # fmt: skip


def test_a_camera_that_breaks_off_is_opened_again_and_says_so(server, camera):
    """It loses power, later it keeps still; meanwhile the session is asked, its socket told."""
    name = f"{camera.address}locked"
    with connected(server, source=name) as (socket, id):
        before = until_seconds(server, id, 3)
        assert before["source"]["name"] == name and before["source"]["lost"] is None
        for lose, bring_back in ((camera.kill, camera.start), (camera.freeze, camera.thaw)):
            lose()
            try:
                message = hear(socket, "source.lost", "source.resumed")
                assert message["type"] == "source.lost"
                assert "opening the source again" in message["message"]
                lost = call(server[0], f"/{id}")
                assert lost["source"]["lost"] == message["message"]
                assert "secret" not in message["message"]
                answer = call(server[0], f"/{id}/query", {"text": LAST})
                assert answer["text"] and answer["asked_at"] >= lost["stats"]["seconds"]
            finally:
                bring_back()
            assert hear(socket, "source.lost", "source.resumed")["type"] == "source.resumed"
            again = until_seconds(server, id, lost["stats"]["seconds"] + 2)
            assert again["source"]["lost"] is None and again["source"]["over"] is None
        with urllib.request.urlopen(f"{server[0]}/metrics") as found:
            lost = re.search(r"jaxmem_sources_lost_total (\d)", found.read().decode())
        assert int(lost[1]) >= 2


def test_a_lost_camera_is_let_go_at_once_and_taken_again(server, camera):
    """The end of its source does not wait for a camera."""
    name = f"{camera.address}mute"
    with connected(server, source=name) as (socket, id):
        until_seconds(server, id, 1)
        camera.kill()
        try:
            hear(socket, "source.lost")
            begin = time.monotonic()
            call(server[0], f"/{id}/source", method="DELETE")
            assert hear(socket, "source.ended")["why"] == "stopped"
            assert time.monotonic() - begin < 30
        finally:
            camera.start()
        found = call(server[0], f"/{id}")
        assert found["source"]["over"] == "stopped" and found["source"]["lost"] is None
        call(server[0], f"/{id}/source", {"source": name})
        until_seconds(server, id, found["stats"]["seconds"] + 1)


@pytest.mark.parametrize("what", ["path", "password", "silent", "nobody", "not listed"])
def test_what_cannot_be_opened_is_said_and_leaves_no_session(server, camera, what):
    name, words, status = {
        "path": (f"{camera.address}nowhere", "404", 400),
        "password": (f"{camera.address}locked".replace("127.0.0.1", "localhost"), "401", 400),
        "silent": (server[1][0], "no answer in 10 s", 400),
        "nobody": (server[1][1], "refused", 400),
        "not listed": ("rtsp://192.0.2.1/live", camera.address, 403),
    }[what]
    with pytest.raises(Refused) as refused:
        call(server[0], "", {"source": name})
    code, said = refused.value.args
    assert code == status and words in said, said
    assert "secret" not in said and "wrong" not in said
    assert not call(server[0], "")["sessions"]


def stream(out, *argv):
    """Run the command; return the process."""
    line = [sys.executable, "-m", "jaxmem.experiments.stream", "--out", str(out), "--json", *argv]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def report_of(process):
    out, errors = process.communicate(timeout=PATIENT)
    assert process.returncode == 0, errors
    assert "secret" not in out + errors
    return json.loads(out)


def test_the_stream_command_watches_a_film_over_rtsp(camera, film, tmp_path):
    asked = [x for one in film[1] for x in ("--ask", f"{one.time}: {one.text}")]
    line = ("--video", f"{camera.address}clip", "--memory", "recent", "--budget", "200")
    report = report_of(stream(tmp_path, *line, *asked))
    (found,) = report["results"]
    assert report["seconds"] == pytest.approx(8.0, abs=0.1)
    assert [one["answer"] for one in found["answers"]] == [one.answer for one in film[1]]


def test_the_stream_command_goes_on_with_a_camera_that_comes_back(camera, tmp_path):
    """It loses power while the programs are compiled, or soon after."""
    name = camera.address.replace("rtsp://", "rtsp://user:secret@") + "locked"
    process = stream(tmp_path, "--video", name, "--reconnect", "--seconds", "30", "--budget", "24")
    time.sleep(25)
    camera.kill()
    time.sleep(2)
    camera.start()
    report = report_of(process)
    assert report["end"]["kind"] == "stop" and report["seconds"] == 30
    assert [one["kind"] for one in report["events"]] == ["stalled", "resumed"]

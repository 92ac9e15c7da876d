"""The server as it is started: from the command line to an answer, to a signal and back."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from browsers import HANGS
from serving import LAST

from jaxmem.experiments.serve import main

pytest.importorskip("uvicorn")
WEBSOCKETS = pytest.importorskip("websockets.sync.client")


class Process:
    """A server of its own."""

    def __init__(self, *argv, **environment):
        words = [sys.executable, "-m", "jaxmem.experiments.serve", "--port", "0", *argv]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        line = self.process.stdout.readline()
        found = re.search(r"on http://([\d.:]+)/", line)
        assert found, line + self.process.stderr.read()
        self.line, self.address = line, found[1]

    def get(self, path, body=None, **headers):
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(f"http://{self.address}{path}", data, headers)
        with urllib.request.urlopen(asked, timeout=HANGS) as found:
            return json.load(found)

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        out, errors = self.process.communicate(timeout=HANGS)
        return self.process.returncode, out, errors

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.mark.slow
def test_from_the_command_line_to_an_answer_and_on_after_a_restart(tmp_path):
    """A signal saves the demo in the middle; the next server goes on with it, and its socket."""
    argv = ("--demo", "--memory", "recent", "--budget", "24", "--saves", str(tmp_path))
    path = "/v1/streaming/sessions/demo"
    with Process(*argv, JAXMEM_TOKEN="t0") as server:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            server.get(path)
        mine = {"authorization": "Bearer t0"}
        answer = server.get(f"{path}/query", {"text": LAST, "at": 3.0}, **mine)
        assert answer["text"] and answer["asked_at"] == 3.0
        before = server.get(path, **mine)["stats"]["seconds"]
        address = f"ws://{server.address}/v1/video/chat/stream?token=t0"
        with WEBSOCKETS.connect(address) as socket:
            socket.send(json.dumps({"type": "session.config", "session": "demo"}))
            assert json.loads(socket.recv())["type"] == "session.created"
            late = {"type": "video.query", "text": LAST, "id": "late", "at": 1e6}
            socket.send(json.dumps(late))
            assert json.loads(socket.recv())["type"] == "response.waiting"
            code, _, errors = server.end()
            heard = [json.loads(text) for text in socket]
        assert code == 0 and errors == ""
        cut = [m for m in heard if m["type"] == "response.text.done" and m["id"] == "late"]
        assert cut[0]["cut"] and "stops" in cut[0]["why"]
        assert heard[-1]["type"] == "session.ended"
    with Process(*argv[1:]) as server:
        again = server.get(path)
        assert again["stats"]["seconds"] >= before and again["source"]["name"] == "demo"
        assert {q["id"] for q in again["questions"]} >= {answer["id"], "late"}
        assert server.get(f"{path}/query", {"text": LAST})["text"]
        assert server.end(signal.SIGINT)[0] == 0


WRONG = {
    "no such memory": (["--memory", "elephant"], "unknown memory"),
    "no budget": (["--budget", "-1"], "no budget"),
    "no lanes": (["--lanes", "0"], "--lanes must be at least 1"),
    "no silence": (["--silence", "0"], "--silence must be positive"),
    "no root": (["--root", "nowhere"], "no such folder"),
    "no frame": (["--frame", "big"], "HEIGHTxWIDTH"),
    "everybody": (["--host", "0.0.0.0"], "--token"),
    "no size": (["--bytes", "much"], "much"),
    "no room": (["--bytes", "100KiB"], "for one stream"),
    "no address": (["--host", "203.0.113.7", "--token", "t"], "cannot be listened on"),
    "no port": (["--port", "70000"], "at most 65535"),
    "no model": (["--model", "nowhere"], "nowhere"),
    "half a piece": (["--chunk-seconds", "0.5"], "multiple"),
    "no pixels": (["--model", "nowhere", "--max-pixels", "0"], "--max-pixels must be positive"),
    "no length": (["--model", "nowhere", "--piece-seconds", "0"], "--piece-seconds must be"),
    "idle": (["--max-pixels", "4096"], "--max-pixels has no effect on an embedded model"),
}


@pytest.mark.parametrize("argv,words", WRONG.values(), ids=WRONG)
def test_bad_arguments_are_one_sentence_and_status_2(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXMEM_TOKEN", raising=False)
    assert main(["--port", "0", *argv]) == 2
    errors = capsys.readouterr().err
    assert words in errors and errors.startswith("error: ") and errors.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxmem.serve.running", None)
    assert main([]) == 2
    assert 'pip install "jaxmem[serve]"' in capsys.readouterr().err


def test_help_is_there(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0 and "--saves" in capsys.readouterr().out


@pytest.mark.slow
def test_a_mesh_answers_as_one_device_does():
    """Two streams side by side on two devices each, from the command line."""
    argv = ("--demo", "--memory", "recent", "--budget", "24", "--lanes", "2")
    ask, path = {"text": LAST, "at": 3.0}, "/v1/streaming/sessions"
    with Process(*argv) as server:
        alone = server.get(f"{path}/demo/query", ask)
    devices = "--xla_force_host_platform_device_count=4"
    with Process(*argv, "--mesh", "data=2,model=2", XLA_FLAGS=devices) as server:
        assert server.get(f"{path}/demo/query", ask)["text"] == alone["text"]
        other = server.get(path, {"memory": "recent", "budget": 24})["id"]
        assert server.get(f"{path}/{other}/query", {"text": LAST})["asked_at"] == 0.0
        code, _, errors = server.end()
    assert code == 0 and errors == ""
    assert "over 4 devices (cpu): data=2, model=2" in server.line


def test_a_mesh_that_does_not_share_the_lanes_is_refused(capsys):
    assert main(["--mesh", "data=1,model=1", "--lanes", "0"]) == 2
    assert main(["--mesh", "data=64"]) == 2
    assert "devices" in capsys.readouterr().err

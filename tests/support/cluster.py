"""A proxy before real servers, and 16 sessions that are fed over its protocols."""

import base64
import json
import re
import signal
import subprocess
import sys
import time
from itertools import count

import httpx
from serving import COUNT, picture, pieces
from websockets.sync.client import connect

from jaxmem import saves
from jaxmem.data.media.picture import encode_png
from jaxmem.memory.baselines import Recent
from jaxmem.session import Session

SESSIONS = "/v1/streaming/sessions"
PUSHED = [f"pushed{i}" for i in range(8)]
SOCKETS = [f"socket{i}" for i in range(7)]
NAMES = [*PUSHED, *SOCKETS, "demo"]
SERVER = ("--memory", "recent", "--budget", "24", "--lanes", "16", "--save-every", "1")


class Process:
    """A command of the package that listens."""

    def __init__(self, command, *argv):
        words = [sys.executable, "-m", f"jaxmem.experiments.{command}", *argv]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"on (http://[\d.:]+)/", line)
        assert found, line
        self.address = found[1]

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.process.communicate(timeout=120)
        return self.process.returncode


class Cluster:
    """A proxy, its servers, and 16 sessions that are fed over its protocols."""

    def __init__(self, address, model, folder):
        self.address, self.model, self.folder = address, model, folder
        self.client = httpx.Client(base_url=address, timeout=300, trust_env=False)
        self.contexts, self.sockets = [], {}
        self.numbers, self.moved = count(), set()
        self.fed = dict.fromkeys((*PUSHED, *SOCKETS), 0)

    def wait(self, fits, seconds=300):
        end = time.monotonic() + seconds
        while not fits():
            assert time.monotonic() < end
            time.sleep(0.1)

    def begin(self):
        for name in PUSHED:
            assert self.client.post(SESSIONS, json={"id": name}).status_code == 201
        demo = self.client.post(SESSIONS, json={"id": "demo", "source": "demo"})
        assert demo.status_code == 201, demo.text
        for name in SOCKETS:
            context = connect(f"ws{self.address[4:]}/v1/video/chat/stream", proxy=None)
            self.sockets[name] = context.__enter__()
            self.contexts.append(context)
            self.say(name, "session.config", id=name)
            self.hear(name, "session.created")

    def say(self, name, type, **more):
        self.sockets[name].send(json.dumps({"type": type, **more}))

    def hear(self, name, type):
        while True:
            message = json.loads(self.sockets[name].recv(timeout=300))
            if message["type"] == type:
                return message
            assert message["type"] != "error", message

    def feed(self, seconds):
        """Send so many pictures, a second apart, to the sessions that are pushed to."""
        for _ in range(seconds):
            for name, at in self.fed.items():
                png = encode_png(picture(hash_of(name) + at))
                if name in PUSHED:
                    url = f"{SESSIONS}/{name}/frame?time={at}"
                    image = {"content-type": "image/png"}
                    answer = self.client.post(url, content=png, headers=image)
                    assert answer.status_code == 200, answer.text
                else:
                    data = base64.b64encode(png).decode()
                    self.say(name, "video.frame", data=data, time=float(at))
                self.fed[name] += 1

    def ask(self, name):
        if name in self.sockets:
            return self.ask_socket(name)
        answer = self.client.post(f"{SESSIONS}/{name}/query", json={"text": COUNT})
        assert answer.status_code == 200, answer.text
        return answer.json()["text"]

    def ask_socket(self, name):
        """Ask over the WebSocket, and once more if the session has moved meanwhile."""
        for id in (f"q{next(self.numbers)}", f"q{next(self.numbers)}"):
            self.say(name, "video.query", text=COUNT, id=id)
            while True:
                message = json.loads(self.sockets[name].recv(timeout=300))
                if message["type"] == "response.text.done" and message["id"] == id:
                    return message["text"]
                if message["type"] == "error":
                    assert message["code"] == "moved", message
                    self.moved.add(name)
                    break
        raise AssertionError("it moved twice")

    def expected(self, session, name, seen):
        """What a `Session` answers that saw the pictures of some seconds."""
        session.reset()
        frames = [picture(hash_of(name) + at) for at in seen]
        for piece in pieces(frames, [None] * len(frames), self.model.media):
            session.feed(piece)
        return session.ask(COUNT).text

    def states(self):
        return self.client.get("/health").json()["replicas"]

    def listed(self):
        sessions = self.client.get(SESSIONS).json()["sessions"]
        return {one["id"]: one for one in sessions}

    def saved(self, name):
        """Pieces of a session's last save."""
        numbers = saves.read(self.folder / ".running" / name).part().numbers
        return numbers["pieces"] + numbers["open"]

    def close(self):
        for context in self.contexts:
            context.__exit__(None, None, None)
        self.client.close()


def hash_of(name):
    return 100 * NAMES.index(name)


def check_a_loss(cluster, kill):
    """Feed 16 sessions, end one of two servers by `kill(its name)`, and look at all of them."""
    cluster.begin()
    cluster.feed(5)
    before = {name: cluster.ask(name) for name in NAMES}
    homes = {name: one["replica"] for name, one in cluster.listed().items()}
    assert set(homes) == set(NAMES) and len(set(homes.values())) == 2, homes
    running = cluster.folder / ".running"
    cluster.wait(lambda: all((running / x).is_dir() and cluster.saved(x) >= 4 for x in NAMES))
    cluster.feed(1)  # of which a server may have saved nothing yet
    victim = homes["demo"]
    kill(victim)
    moved = [name for name in NAMES if homes[name] == victim]
    assert 2 <= len(moved) <= 14
    saved = {name: cluster.saved(name) for name in moved}
    after = {name: cluster.ask(name) for name in NAMES}
    there = cluster.listed()
    session = Session(cluster.model, Recent(24))
    assert cluster.moved == set(SOCKETS) & set(moved)
    for name in (*PUSHED, *SOCKETS):
        seen = saved[name] if name in moved else cluster.fed[name]
        assert after[name] == cluster.expected(session, name, range(seen)), (name, name in moved)
        assert before[name]
    for name in moved:
        assert there[name]["replica"] != victim
        fed = there[name]["stats"]["seconds"] + there[name]["stats"]["lag"]
        assert fed >= saved[name] >= 4, (name, fed, saved[name])
    seconds = there["demo"]["stats"]["seconds"]
    cluster.wait(lambda: cluster.listed()["demo"]["stats"]["seconds"] > seconds + 1)  # it goes on
    for name in set(homes) - set(moved):
        assert there[name]["replica"] == homes[name]
    cluster.feed(2)  # they go on, all of them
    assert all(cluster.ask(name) for name in NAMES)
    asked = {"model": "tiny", "messages": [{"role": "user", "content": COUNT}]}
    header = {"x-streaming-session": moved[0]}
    chat = cluster.client.post("/v1/chat/completions", json=asked, headers=header)
    assert chat.json()["choices"][0]["message"]["content"]
    with cluster.client.stream(
        "POST", "/v1/chat/completions", json=asked | {"stream": True}, headers=header
    ) as stream:
        assert [x for x in stream.iter_lines() if x][-1] == "data: [DONE]"
    assert "jaxmem_streams_moved_total" in cluster.client.get("/metrics").text
    assert "<title>" in cluster.client.get("/").text
    return moved

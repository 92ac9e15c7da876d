"""The proxy's WebSocket, before servers without a model: sessions, losses, stops, closings."""

import json
import threading

import pytest
from replicas import SESSIONS

connect = pytest.importorskip("websockets.sync.client").connect
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed


class Client:
    """A WebSocket of a client."""

    def __init__(self, client, **config):
        address = str(client.base_url).rstrip("/").replace("http", "ws")
        self.context = connect(f"{address}/v1/video/chat/stream", proxy=None)
        self.socket = self.context.__enter__()
        if config.get("config", True):
            self.say("session.config", **config)

    def say(self, type, **more):
        self.socket.send(json.dumps({"type": type, **more}))

    def hear(self, type=None):
        """Return the next message, or the next one of a type."""
        while True:
            message = json.loads(self.socket.recv(timeout=20))
            if type is None or message["type"] == type:
                return message

    def ask(self):
        self.say("video.query", text="?")
        return self.hear("response.text.done")

    def save(self):
        self.say("session.save")
        self.hear("session.saved")

    def ended(self):
        """Return the code that it is closed with."""
        with pytest.raises(ConnectionClosed) as closed:
            self.socket.recv(timeout=20)
        return closed.value.rcvd.code


@pytest.fixture
def join():
    """Returns clients of an HTTP client's server, and closes them."""
    made = []
    yield lambda client, **config: made.append(Client(client, **config)) or made[-1]
    for one in made:
        one.socket.close()


def test_sessions_are_begun_and_joined(start, join):
    servers, client = start()
    clients = [join(client) for _ in range(8)]
    made = [one.hear("session.created")["session"] for one in clients]
    assert all(one.sessions for one in servers)
    for one, session in zip(clients, made, strict=True):
        one.say("video.frame", data="A" * 300_000)
        assert one.ask()["text"] == "1"
        other = join(client, session=session["id"])
        assert other.hear()["session"]["server"] == session["server"]
        assert other.ask() == one.ask()
        http = client.post(f"{SESSIONS}/{session['id']}/query", json={}).json()
        assert http == {"text": "1", "server": session["server"]}
    named = join(client, id="door")
    assert named.hear("session.created")["session"]["id"] == "door"
    assert join(client, id="door").hear()["code"] == "taken"
    clients[0].say("video.frame", data="A" * 500_000)
    assert clients[0].ended() == 1009


def test_what_is_wrong_is_answered_and_may_be_put_right(start, join):
    servers, client = start()
    wrong = join(client, config=False)
    wrong.say("video.query", text="?")
    assert wrong.hear()["code"] == "order"
    wrong.socket.send("nonsense")
    assert wrong.hear()["code"] == "order"
    wrong.say("session.config", session="nowhere")
    assert wrong.hear()["code"] == "no_session"
    for one in servers:  # wherever that connection is
        one.begin(f"on-{one.name}")
        wrong.say("session.config", session=f"on-{one.name}")
        assert wrong.hear()["session"]["server"] == one.name
        wrong.say("close", code=1013)
        assert wrong.ended() == 1013
        wrong = join(client, config=False)


def test_a_client_hears_that_its_session_goes_on_elsewhere(start, join):
    """It stays connected, and goes on with the last save; what comes meanwhile is not lost."""
    servers, client = start()
    mine = join(client, id="door", subscribe=["memory.map"], every=2.0)
    home = servers[int(mine.hear("session.created")["session"]["server"][1])]
    other = servers[1 - int(home.name[1])]
    quiet = join(client, session=other.begin("quiet")[0]["id"])
    quiet.hear("session.created")
    mine.say("video.frame", data="A")
    mine.save()
    mine.say("video.frame", data="A")  # not saved
    assert mine.ask()["text"] == "2"
    home.kill()
    moved = mine.hear()
    assert moved["type"] == "error" and moved["code"] == "moved"
    mine.say("video.frame", data="A")
    again = mine.hear("session.created")["session"]
    assert (again["id"], again["server"], again["frames"]) == ("door", other.name, 1)
    assert mine.ask() == {
        "type": "response.text.done", "text": "2", "session": "door", "server": other.name
    }  # fmt: skip
    joins = next(x for x in other.heard if x.get("session") == "door")
    assert (joins["subscribe"], joins["every"]) == (["memory.map"], 2.0)
    assert quiet.ask()["server"] == other.name
    mine.socket.close()
    other.kill()
    assert quiet.hear()["code"] == "no_replica"
    assert quiet.ended() == 1012  # clients connect again by themselves


def test_frames_that_are_sent_while_the_replica_dies_do_not_break_the_connection(start, join):
    servers, client = start()
    mine = join(client, id="door")
    home = servers[int(mine.hear("session.created")["session"]["server"][1])]
    mine.save()
    stop = threading.Event()

    def feed():
        while not stop.wait(0.001):
            mine.say("video.frame", data="A" * 1000)

    thread = threading.Thread(target=feed)
    thread.start()
    while len(home.heard) < 50:
        stop.wait(0.01)
    home.kill()
    assert mine.hear("session.created")["session"]["server"] != home.name
    other = servers[1 - int(home.name[1])]
    count = len(other.heard)
    while len(other.heard) < count + 50:
        stop.wait(0.01)
    stop.set()
    thread.join()
    assert int(mine.ask()["text"]) >= 50


def test_a_silent_replica_is_left_when_patience_is_over(start, join):
    """Its process is stopped: its connection stays, and says nothing."""
    servers, client = start(patience=1.0)
    mine = join(client, id="door")
    home = servers[int(mine.hear("session.created")["session"]["server"][1])]
    mine.save()
    stopped = threading.Event()
    home.listening.loop.call_soon_threadsafe(stopped.wait)
    mine.say("video.query", text="?")
    assert mine.hear()["code"] == "moved"
    assert mine.ask()["server"] != home.name
    stopped.set()


def test_a_session_that_was_never_saved_ends(start, join):
    servers, client = start()
    mine = join(client, id="door")
    servers[int(mine.hear("session.created")["session"]["server"][1])].kill()
    ended = mine.hear()
    assert ended["type"] == "session.ended" and "saved" in ended["why"]
    assert mine.ended() == 1012


def test_a_server_that_stops_hands_its_sockets_over(start, join):
    """Its clients do not hear that their sessions have ended, since they have not."""
    servers, client = start()
    mine = join(client, id="door")
    home = servers[int(mine.hear("session.created")["session"]["server"][1])]
    mine.say("video.frame", data="A")
    mine.ask()
    home.stop()
    home.say_ended()
    assert mine.hear()["code"] == "moved"
    assert mine.hear()["session"]["frames"] == 1
    assert mine.ask()["server"] != home.name

"""Who may use a server, what it has room for, and what it does when it ends."""

import threading
import time

import pytest
from serving import COUNT, LAST, RECENT, picture

from jaxmem.serve.engines import Engines
from jaxmem.serve.hub import Hub
from jaxmem.serve.limits import Limits, RefusedError
from jaxmem.serve.listeners import Listeners
from jaxmem.serve.sources import Allowed
from jaxmem.serve.table import STOPPING
from jaxmem.serve.wanting import Wanted

pytest.importorskip("httpx")
from starlette.testclient import TestClient, WebSocketDenialResponse

from jaxmem.serve.app import make_app

SOCKET, SESSIONS = "/v1/video/chat/stream", "/v1/streaming/sessions"


@pytest.fixture(scope="module")
def guarded(hub):
    app = make_app(hub, token="s3cret", host="127.0.0.1")
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        yield client


def test_the_token_is_needed_but_for_what_tells_nothing(guarded):
    assert guarded.get(SESSIONS).status_code == 401
    assert guarded.get("/metrics").json()["error"]["code"] == "token"
    assert guarded.get("/health").status_code == 200 and guarded.get("/").status_code in (200, 404)
    for given in ("s3cre", "s3crett", "S3CRET", ""):
        assert (
            guarded.get(SESSIONS, headers={"authorization": f"Bearer {given}"}).status_code == 401
        )
        assert guarded.get(SESSIONS, params={"token": given}).status_code == 401
    assert guarded.get(SESSIONS, headers={"authorization": "bearer s3cret"}).status_code == 200
    assert guarded.get(SESSIONS, params={"token": "s3cret"}).status_code == 200
    host = {"host": "127.0.0.1:8000"}
    closed = guarded.websocket_connect(SOCKET, headers=host)
    with pytest.raises(WebSocketDenialResponse) as refused, closed:
        pass
    assert refused.value.status_code == 401
    with guarded.websocket_connect(f"{SOCKET}?token=s3cret", headers=host):
        pass


def test_pages_of_others_and_other_names_of_this_machine_are_refused(guarded):
    mine = {"authorization": "Bearer s3cret"}
    for headers, status in (
        ({"origin": "http://127.0.0.1:8000"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:8001"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:8000"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "127.0.0.1.evil.example"}, 403),  # a name that was made to lead here
    ):
        assert guarded.get(SESSIONS, headers={**mine, **headers}).status_code == status, headers
    evil = guarded.websocket_connect(
        f"{SOCKET}?token=s3cret", headers={"host": "127.0.0.1", "origin": "http://x.y"}
    )
    with pytest.raises(WebSocketDenialResponse) as refused, evil:
        pass
    assert refused.value.status_code == 403
    found = guarded.get("/health").headers
    assert "default-src 'none'" in found["content-security-policy"]


def test_only_listed_addresses_and_devices_are_opened(tmp_path):
    allowed = Allowed(tmp_path, ("rtsp://cam/live/", "v4l2:/dev/video0"))
    assert allowed.find("rtsp://cam/live/2").where == "rtsp://cam/live/2"
    device = allowed.find("v4l2:/dev/video0")
    assert (device.where, device.options) == ("/dev/video0", {"format": "v4l2"})
    for name in ("rtsp://cam/live", "rtsp://cam.evil/live/", "v4l2:/dev/video1", "/dev/video0"):
        with pytest.raises(RefusedError):
            allowed.find(name)
    with pytest.raises(RefusedError, match="upload"):
        Allowed().find("talk.mp4")
    locked = Allowed(None, ("rtsp://me:secret@cam/live/", "rtsp://me:secret@cam/one"))
    for name in ("rtsp://cam/live/2", "rtsp://me:secret@cam/live/2"):
        found = locked.find(name)
        assert (found.where, found.name) == ("rtsp://me:secret@cam/live/2", "rtsp://cam/live/2")
    for name in ("rtsp://me:other@cam/one", "rtsp://evil/@cam/one"):
        with pytest.raises(RefusedError, match="rtsp://cam/live/; rtsp://cam/one") as refused:
            locked.find(name)
        assert "secret" not in str(refused.value)
    assert allowed.kinds == ("push", "upload", "demo", "file", "address", "device")


def test_a_playlist_opens_nothing_else(model, folder):
    """Neither a file of its own kind nor one that is named like a film."""
    root = folder / "root"
    for name in ("list.m3u8", "film.mp4"):
        (root / name).write_text("#EXTM3U\n#EXTINF:6,\n../secret.mp4\n#EXT-X-ENDLIST\n")
        with pytest.raises(ValueError, match="cannot be opened"):
            Allowed(root).find(name).open(model)
        (root / name).unlink()


def test_sessions_are_priced_before_anything_is_allocated(model):
    """The numbers are in the refusal; a smaller engine is started where a large one has no room."""
    engines = Engines(model, lanes=4)
    weights, state = engines.nbytes, 51_296
    engines = Engines(model, lanes=4, nbytes=weights + 3 * state)
    with pytest.raises(RefusedError, match="for one stream"):
        engines.start(Wanted("recent", "4096"))
    with pytest.raises(RefusedError, match="for one stream"):
        engines.start(RECENT)  # its states fit three times, the step does not
    assert not engines.streams
    roomy = Engines(model, lanes=4, nbytes=weights + 200 * state, memories=1)
    assert roomy.start(RECENT).lanes == 4 and roomy.nbytes > weights + 4 * state
    with pytest.raises(RefusedError, match="1 different memories"):
        roomy.start(Wanted("uniform", "24"))
    lives = [roomy.open(RECENT) for _ in range(4)]
    with pytest.raises(RefusedError, match="all 4 lanes"):
        roomy.open(RECENT)
    lives[0].close()
    roomy.open(RECENT)
    roomy.close()


def test_a_memory_that_is_compiled_holds_up_nobody_else(client, hub, tidy, monkeypatch):
    """Others begin, are fed, answer and are counted; who wants the same memory waits for it."""
    hub.engines.start(RECENT)
    begun, go_on, count, said = threading.Event(), threading.Event(), [], {}

    def slow(*given, **options):
        count.append(given)
        begun.set()
        assert go_on.wait(120)
        raise RefusedError("it did not compile.")

    def ask_for(id):
        asked = {"id": id, "memory": "uniform", "budget": 7}
        said[id] = client.post(SESSIONS, json=asked).json()

    monkeypatch.setattr("jaxmem.serve.engines.Engine", slow)
    waiting = [threading.Thread(target=ask_for, args=(id,)) for id in ("one", "two")]
    for one in waiting:
        one.start()
    try:
        assert begun.wait(120)
        assert client.post(SESSIONS, json={"id": "other"}).status_code == 201
        (other,) = hub.sessions
        for i in range(3):
            other.push(picture(i), at=float(i))
        found = client.post(f"{SESSIONS}/other/query", json={"text": LAST}).json()
        assert found["text"] and found["asked_at"] == 2.0
        assert client.post(f"{SESSIONS}/other/branch", json={"id": "twig"}).status_code == 201
        assert "jaxmem_bytes" in client.get("/metrics").text
        while hub._beginning != {"one", "two"}:
            time.sleep(0.01)
        taken = client.post(SESSIONS, json={"id": "one"})
        assert taken.status_code == 409 and not said
        limit, hub.limits = hub.limits, Limits(sessions=4)
        assert client.post(SESSIONS, json={"id": "fifth"}).status_code == 503  # two are beginning
        hub.limits = limit
    finally:
        go_on.set()
        for one in waiting:
            one.join(120)
    assert {one["error"]["message"] for one in said.values()} == {"it did not compile."}
    assert len(said) == 2 and len(hub.sessions) == 2


def test_an_engine_that_is_begun_while_the_server_stops_is_closed(model, monkeypatch):
    engines, made = Engines(model, lanes=2), []

    class Late:
        closed = False

        def __init__(self, *given, **options):
            made.append(self)
            engines.close()

        def close(self):
            self.closed = True

    monkeypatch.setattr("jaxmem.serve.engines.Engine", Late)
    with pytest.raises(RefusedError, match="the server stops"):
        engines.open(RECENT)
    assert made[0].closed and not engines.streams


def test_sessions_end_in_time(model, hub):
    """Idle ones, those that nobody looks at, those of a failed engine; too many do not begin."""
    with Hub(hub.engines, Limits(sessions=2, silence=900.0, linger=90.0), usual=RECENT) as mine:
        heard: list = []
        looks = lambda message: heard.append(message)
        (quiet,) = mine.create([RECENT])
        (brief,) = mine.create([RECENT], brief=True)
        with pytest.raises(RefusedError, match="2 sessions are open"):
            mine.create([RECENT])
        brief.publish.add(looks, looks=True)
        quiet.seen = brief.seen = time.monotonic() - 800
        mine.tidy()
        brief.publish.remove(looks)
        mine.tidy()
        assert mine.sessions == [quiet, brief]
        brief.publish.add(looks)
        brief.publish.left -= 100
        mine.tidy()
        assert mine.sessions == [quiet] and "nobody looked" in heard[-1]["why"]
        quiet.begin_source({"kind": "camera", "name": "x", "over": None})
        quiet.seen = time.monotonic() - 1000
        mine.tidy()
        assert mine.sessions == [quiet]  # it reads a source
        quiet.end_source("stopped")
        mine.tidy()
        assert mine.sessions == [quiet]  # since now
        quiet.seen = time.monotonic() - 1000
        mine.tidy()
        assert not mine.sessions and "silent" in quiet.live.closed
        (failing,) = mine.create([RECENT])
        failing.live.close("the engine failed (RuntimeError: out of memory)")
        mine.tidy()
        assert not mine.sessions and failing.state == "failed"
        mine.stopping = True  # the engines are others', too
        mine._folder.cleanup()


def test_what_is_under_way_is_cut_or_finished_and_saved_and_goes_on(model, hub, tmp_path, folder):
    """A server stops in the middle of a file; the next one goes on as if nothing had happened."""
    file = folder / "root" / "a" / "talk.mp4"
    allowed = Allowed(file.parent)
    first = Hub(Engines(model, lanes=4), usual=RECENT, allowed=allowed, saves=tmp_path)
    two = first.create([RECENT, RECENT], "one")
    (pushed,) = first.create([RECENT], "pushed")
    for i in range(3):
        pushed.push(picture(i), at=float(i))
    pushed.questions.watch("was the horn heard", 5, 0.0, "horn")
    done = pushed.ask(LAST)
    later = pushed.ask(LAST, at=100.0)
    heard = []
    pushed.publish.add(heard.append)
    first.read(two, allowed.find("talk.mp4"), pace=4.0)
    while two[0].pieces < 2:
        time.sleep(0.01)
    assert first.stop(30.0) == []
    assert done.done and not done.cut and later.cut and STOPPING in later.why
    assert [m["type"] for m in heard][-1] == "session.ended" and two[1].state == "ended"
    with pytest.raises(RefusedError, match=STOPPING):
        first.create([RECENT])
    second = Hub(Engines(model, lanes=4), usual=RECENT, allowed=allowed, saves=tmp_path)
    assert second.resume() == [] and second.resume() == []
    assert {one.id for one in second.sessions} == {two[0].id, two[1].id, "pushed"}
    again = second.get("pushed")
    assert again.pieces == 3 and [q.done for q in again.questions._asked] == [True, True]
    assert again.plain()["standing"][0]["id"] == "horn"
    one, other = second.get("one"), second.get(two[1].id)
    assert one.plain()["peers"] == ["one", other.id]
    while one.busy:
        time.sleep(0.01)
    whole = second.engines.open(RECENT).watch(file)
    expected = whole.ask(COUNT).reply(60).text
    assert one.live.stats.seconds == other.live.stats.seconds == 6.0
    for served in (one, other):
        assert served.live.ask(COUNT).reply(60).text == expected
    second.stop(0.0)


def test_listeners_are_counted():
    heard, listeners = [], Listeners("x")
    listeners.add(heard.append)
    looks = lambda message: heard.append(None)
    listeners.add(looks, looks=True)
    listeners({"type": "t"})
    assert heard == [{"type": "t", "session": "x"}, None] and listeners.lookers == (looks,)
    before = listeners.left
    listeners.remove(looks)
    assert listeners.lookers == () and listeners.left < before

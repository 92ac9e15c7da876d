"""The proxy over HTTP, before servers without a model: places, streams, losses, lists."""

import json
import threading
import time

import pytest
from replicas import SESSIONS, Listening, wait

httpx = pytest.importorskip("httpx")
pytest.importorskip("websockets")
NAMES = [f"camera{i}" for i in range(16)]


def begin(client, id=None, **more):
    found = client.post(SESSIONS, json=({} if id is None else {"id": id}) | more)
    assert found.status_code == 201, found.text
    return found.json()


def query(client, id):
    found = client.post(f"{SESSIONS}/{id}/query", json={"text": "?"})
    assert found.status_code == 200, found.text
    return found.json()


def test_sessions_stay_where_they_are_and_are_spread(start):
    servers, client = start()
    made = [begin(client) for _ in NAMES]  # the proxy names them, so that they are even
    assert all(len(one.sessions) >= 5 for one in servers)
    for one in made:
        for i in range(2):
            frame = client.post(f"{SESSIONS}/{one['id']}/frame", json={"time": i})
            assert frame.json() == {"pieces": i + 1, "seen": {"time": i}, "server": one["server"]}
        assert query(client, one["id"]) == {"text": "2", "server": one["server"]}
    named = [begin(client, name) for name in NAMES]  # by their names
    assert {one["server"] for one in named} == {"s0", "s1"}
    again = client.post(SESSIONS, json={"id": NAMES[0]})
    assert again.status_code == 409 and again.json()["error"]["code"] == "taken"
    listed = client.get(SESSIONS).json()
    assert {one["id"] for one in listed["sessions"]} == {*NAMES, *(one["id"] for one in made)}
    assert all(one["replica"] == one["server"] for one in listed["sessions"])
    assert listed["saved"] == ["s0", "s1"]
    assert client.delete(f"{SESSIONS}/{NAMES[0]}").status_code == 204
    gone = client.post(f"{SESSIONS}/{NAMES[0]}/query", json={})
    assert gone.status_code == 404 and gone.json()["error"]["code"] == "no_session"


def test_a_lost_replicas_sessions_go_on_and_others_do_not_move(start):
    servers, client = start(3)
    homes = {name: begin(client, name)["server"] for name in NAMES}
    assert set(homes.values()) == {"s0", "s1", "s2"}
    for name in NAMES:
        client.post(f"{SESSIONS}/{name}/frame", json={})
        client.post(f"{SESSIONS}/{name}/save", json={})
        client.post(f"{SESSIONS}/{name}/frame", json={})  # not saved
    servers[1].kill()
    asked = next(name for name in NAMES if homes[name] == "s1")
    assert query(client, asked)["text"] == "1"  # at once, with its last save
    found = {name: query(client, name) for name in NAMES}
    for name, home in homes.items():
        moved = home == "s1"
        assert found[name]["text"] == ("1" if moved else "2")
        assert (found[name]["server"] != home) == moved
    assert client.get("/health").json()["replicas"] == {"ok": 2, "lost": 1}


def test_what_reads_a_camera_goes_on_though_nobody_asks(start):
    servers, client = start(patience=0.5)
    for name in NAMES:
        begin(client, name)
        client.post(f"{SESSIONS}/{name}/save", json={})
    time.sleep(0.6)  # a replica that is late would have come by now
    servers[0].kill()
    wait(lambda: len(servers[1].sessions) == len(NAMES))
    assert set(servers[1].sessions) == set(NAMES)


def test_nothing_saved_is_said_so(start):
    servers, client = start()
    homes = {name: begin(client, name)["server"] for name in NAMES}
    servers[0].kill()
    lost = next(name for name in NAMES if homes[name] == "s0")
    found = client.post(f"{SESSIONS}/{lost}/query", json={})
    assert found.status_code == 404 and found.json()["error"]["code"] == "no_session"
    servers[1].kill()
    found = client.post(f"{SESSIONS}/{lost}/query", json={})
    assert found.status_code == 503 and found.json()["error"]["code"] == "no_replica"
    assert client.get("/health").status_code == 503


def test_a_silent_replica_is_lost_when_patience_is(start):
    """Its process is stopped, so its connections stay: what waits for it is answered elsewhere."""
    servers, client = start(2, patience=1.0)
    homes = {name: begin(client, name)["server"] for name in NAMES}
    name = next(name for name in NAMES if homes[name] == "s0")
    client.post(f"{SESSIONS}/{name}/save", json={})
    stopped = threading.Event()
    servers[0].listening.loop.call_soon_threadsafe(stopped.wait)
    assert query(client, name)["server"] == "s1"
    stopped.set()


def test_a_server_that_stops_hands_its_sessions_over(start):
    servers, client = start()
    homes = {name: begin(client, name)["server"] for name in NAMES}
    client.post(f"{SESSIONS}/{NAMES[0]}/frame", json={})
    first = servers[int(homes[NAMES[0]][1])]
    first.stop()
    assert query(client, NAMES[0]) == {"text": "1", "server": "s1" if first.name == "s0" else "s0"}
    assert begin(client)["server"] != first.name


def test_a_full_replica_is_passed_over(start):
    servers, client = start(2, room=4)
    for name in NAMES[:8]:
        begin(client, name)
    assert [len(one.sessions) for one in servers] == [4, 4]
    full = client.post(SESSIONS, json={})
    assert full.status_code == 503 and full.json()["error"]["code"] == "full"
    restored = client.post(f"{SESSIONS}/kept/restore", json={})
    assert restored.status_code == 503
    client.delete(f"{SESSIONS}/{NAMES[0]}")
    restored = client.post(f"{SESSIONS}/kept/restore", json={})
    assert restored.status_code == 201 and restored.json()["of"] == "kept"
    assert "resume" in client.post(SESSIONS, json={"resume": "x"}).json()["error"]["message"]
    assert client.post(SESSIONS, content=b"{").json()["error"]["code"] == "bad_json"
    assert client.post(SESSIONS, json={"id": "../x"}).json()["error"]["code"] == "bad_name"


@pytest.mark.parametrize("path", ["query", "chat"])
def test_events_come_as_they_are_written_and_end_when_the_server_dies(start, path):
    servers, client = start()
    home = servers[int(begin(client, "door")["server"][1])]
    url, more = f"{SESSIONS}/door/query", {}
    if path == "chat":
        url, more = "/v1/chat/completions", {"headers": {"x-streaming-session": "door"}}
        whole = client.post(url, json={}, **more).json()
        assert whole["session"] == "door" and whole["server"] == home.name
        assert client.post(url, json={}).json()["session"] is None
    home.gate.set()
    with client.stream("POST", url, json={"stream": True}, **more) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert len("".join(answer.iter_text()).strip().split("\n\n")) == 3
    home.gate.clear()
    with client.stream("POST", url, json={"stream": True}, **more) as answer:
        lines = filter(None, answer.iter_lines())
        first = [next(lines), next(lines)]  # while the answer is being written
        assert '"a"' in first[0] and '"b"' in first[1]
        home.kill()
        rest = [json.loads(x.removeprefix("data: ")) for x in lines if "DONE" not in x]
    (error,) = rest  # no half of an event before it
    assert (error["error"] if path == "chat" else error)["code"] == "cut"


def test_an_upload_waits_for_its_reader_and_is_not_kept(start):
    """A slow server slows its client; a file that was begun cannot be sent again by itself."""
    servers, client = start()
    home = servers[int(begin(client, "door")["server"][1])]
    sent = []

    def parts(count):
        for _ in range(count):
            sent.append(1)
            yield bytes(100_000)

    def upload(count, found):
        found.append(client.post(f"{SESSIONS}/door/upload", content=parts(count)))

    found = []
    thread = threading.Thread(target=upload, args=(400, found))
    thread.start()
    wait(lambda: home.received > 1_000_000)
    time.sleep(0.3)
    assert len(sent) < 300  # buffers of sockets hold some
    home.gate.set()
    thread.join()
    assert found[0].json() == {"bytes": 40_000_000}
    upload(400, found)
    assert found[1].status_code == 413  # the server's limit
    home.received = 0
    home.gate.clear()
    home.save("door")
    thread = threading.Thread(target=upload, args=(40, found))
    thread.start()
    wait(lambda: home.received > 1_000_000)
    home.kill()
    thread.join()
    assert found[2].status_code == 502 and "again" in found[2].json()["error"]["message"]
    upload(3, found)
    assert found[3].json() == {"bytes": 300_000}


def test_tokens_hosts_and_pages(start):
    servers, client = start(2, token="outer", inner="inner")
    assert client.get(SESSIONS).status_code == 401
    client.headers["authorization"] = "Bearer outer"
    assert begin(client, "door")["server"] in ("s0", "s1")
    assert query(client, "door")["text"] == "0"
    assert client.get(f"{SESSIONS}?token=outer", headers={"authorization": ""}).status_code == 200
    assert client.get("/v1/models", headers={"origin": "http://evil"}).status_code == 403
    origin = {"origin": str(client.base_url).rstrip("/")}
    found = client.get("/v1/models", headers=origin)
    assert found.json()["data"][0]["id"] == "stand-in"
    assert found.headers.get_list("x-content-type-options") == ["nosniff"]
    assert client.get("/v1/models", headers={"host": "evil"}).status_code == 403
    assert client.get("/nothing").status_code == 404
    assert servers


def test_metrics_name_their_replica(start):
    servers, client = start()
    begin(client, "door")
    text = client.get("/metrics").text
    counts = {one.name: float(len(one.sessions)) for one in servers}
    for name, count in counts.items():
        assert f'jaxmem_sessions{{replica="{name}"}} {count}' in text
        assert f'jaxmem_answers_total{{cut="false",replica="{name}"}} 2.0' in text
        assert f'jaxmem_replica_up{{replica="{name}"}} 1.0' in text
    assert text.count("# TYPE jaxmem_sessions gauge") == 1 and "jaxmem_streams_moved_total" in text


def test_a_server_that_keeps_nothing_is_told_of(start, caplog):
    servers, client = start(1)
    servers[0].folder = None
    begin(client, "door")
    wait(lambda: "s0 keeps no sessions" in caplog.text)


def test_a_server_that_is_no_replica_is_not_used(start):
    from jaxmem.serve.proxy.app import make_app

    servers, _ = start(1, replica=True)
    servers[0].replica = False
    proxy = Listening(make_app({"one": servers[0].address}))
    with httpx.Client(base_url=proxy.address, trust_env=False) as client:
        found = client.post(SESSIONS, json={})
        assert found.status_code == 503
        wait(lambda: "--replica" in client.post(SESSIONS, json={}).text)
    proxy.close()

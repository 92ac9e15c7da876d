"""Sessions over HTTP: what a session answers is what a `Session` of the same pieces answers."""

import base64
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import waiting
from serving import COUNT, LAST, RECENT, picture, pieces, same, sound

from jaxmem.data.media.picture import encode_png
from jaxmem.memory.baselines import Recent
from jaxmem.serve.memory_map import memory_map
from jaxmem.session import Session

pytest.importorskip("starlette")
PATH = "/v1/streaming/sessions"
MEMORY = Recent(24)


@pytest.fixture(scope="module")
def session(model):
    return Session(model, MEMORY)


def begin(client, **body):
    found = client.post(PATH, json=body)
    assert found.status_code == 201, found.text
    return f"{PATH}/{found.json()['id']}"


def post(client, path, i, frame, samples=None, **more):
    body = {"image": base64.b64encode(encode_png(frame)).decode(), "time": float(i), **more}
    if samples is not None:
        body["audio"] = base64.b64encode(samples.tobytes()).decode()
    found = client.post(f"{path}/frame", json=body)
    assert found.status_code == 200, found.text
    return found.json()


def ask(client, path, text=LAST, **more):
    found = client.post(f"{path}/query", json={"text": text, **more})
    assert found.status_code == 200, found.text
    return found.json()


wait_for = partial(waiting.wait_for, seconds=60.0)


def test_pushed_pictures_and_sound_are_answered_as_in_a_session(client, hub, session, tidy):
    """Answers, what every layer holds, and the state itself; the last second is unfinished."""
    session.reset()
    path = begin(client, id="mine")
    frames, sounds = [picture(i) for i in range(5)], [sound(i) for i in range(5)]
    counts = [post(client, path, i, frames[i], sounds[i]) for i in range(5)]
    assert sum(one["pieces"] for one in counts) == 4
    expected = pieces(frames, sounds, session.model.media)
    for piece in expected[:4]:
        session.feed(piece)
    same(hub.get("mine").live.session().carry, session.carry)
    held = memory_map(session.kept(), (24,) * 4, 4.0, 1.0)
    assert client.get(f"{path}/map").json() == held
    session.feed(expected[4])
    for text in (LAST, COUNT):
        found = ask(client, path, text)
        assert found["text"] == session.ask(text).text and 4 <= found["asked_at"] <= 5
        assert found["first_token_ms"] > 0
    shown = client.get(path).json()
    assert shown["stats"]["chunks"] == 4 and shown["stats"]["nbytes"] == session.nbytes
    assert [q["answer"] for q in shown["questions"]] == [session.ask(q).text for q in (LAST, COUNT)]


def test_pictures_are_shown_as_the_model_sees_them(client, model, tidy):
    path = begin(client)
    assert client.get(f"{path}/picture").status_code == 404
    for i in range(3):
        data = encode_png(picture(i))
        kind = {"content-type": "image/png"}
        assert client.post(f"{path}/frame?time={i}", content=data, headers=kind).status_code == 200
    seen = pieces([picture(2)], [sound(0)], model.media)[0]
    found = client.get(f"{path}/picture")
    assert found.headers["content-type"] == "image/png"
    assert found.content == encode_png(seen.frames[0])
    first = pieces([picture(0)], [sound(0)], model.media)[0]
    assert client.get(f"{path}/picture/0.2").content == encode_png(first.frames[0])


def test_an_answer_comes_in_parts(client, tidy):
    path = begin(client)
    post(client, path, 0, picture(0))
    with client.stream("POST", f"{path}/query", json={"text": LAST, "stream": True}) as found:
        events = [json.loads(line[6:]) for line in found.iter_lines() if line]
    kinds = [event["type"] for event in events]
    assert kinds[0] == "response.start" and kinds[-1] == "response.text.done"
    parts = [event["delta"] for event in events if event["type"] == "response.text.delta"]
    assert "".join(parts) == events[-1]["text"] == ask(client, path)["text"]


def test_a_session_is_saved_restored_and_branched(client, tidy):
    path = begin(client, id="old")
    for i in range(4):
        post(client, path, i, picture(i), sound(i))
    assert client.post(f"{path}/save").json() == {"saved": "old"}
    branch = f"{PATH}/{client.post(f'{path}/branch', json={'id': 'other'}).json()['id']}"
    back = begin(client, restore="old")
    assert "old" in client.get(PATH).json()["saved"]
    seconds = [client.get(one).json()["stats"]["seconds"] for one in (path, back)]
    assert seconds == [3.0, 4.0]  # the last second may have more to come; what is kept, has not
    assert ask(client, path)["text"] == ask(client, back)["text"]
    for one in (path, branch, back):
        for i in range(4, 7):
            post(client, one, i, picture(i), sound(i))
    maps = [client.get(f"{one}/map").json() for one in (path, branch, back)]
    assert maps[0] == maps[1] == maps[2]
    assert len({ask(client, one, COUNT)["text"] for one in (path, branch, back)}) == 1
    assert client.delete(path).status_code == 204 and client.get(path).status_code == 404
    assert client.get(branch).json()["stats"]["chunks"] == 3


def test_a_file_is_read_by_the_server_and_asked_at_its_times(client, session, folder, tidy):
    """By its name, and uploaded; a question that waits knows what had ended by its time."""
    file = folder / "root" / "a" / "talk.mp4"
    expected = {}
    for stop in (3.0, None):
        session.reset()
        session.watch(file, stop=stop)
        expected[stop] = session.ask(COUNT).text, session.kept()
    path = begin(client)
    with ThreadPoolExecutor(1) as thread:
        early = thread.submit(ask, client, path, COUNT, at=3.5, id="early")
        wait_for(lambda: client.get(path).json()["questions"])
        found = client.post(f"{path}/source", json={"source": "a/talk.mp4"})
        assert found.status_code == 202 and found.json()["source"]["name"] == "a/talk.mp4"
        assert early.result(60)["text"] == expected[3.0][0]
        assert early.result()["asked_at"] == 3.5
    wait_for(lambda: client.get(path).json()["source"]["over"])
    again = begin(client)
    assert client.post(f"{again}/upload", content=file.read_bytes()).status_code == 202
    wait_for(lambda: client.get(again).json()["source"]["over"])
    held = memory_map(expected[None][1], (24,) * 4, 6.0, 1.0)
    for one in (path, again):
        assert ask(client, one, COUNT)["text"] == expected[None][0]
        assert client.get(f"{one}/map").json() == held
    shown = client.get(again).json()
    assert shown["source"]["name"] == "upload" and shown["stats"]["chunks"] == 6


def test_the_demo_is_paced_and_stopped(client, hub, tidy):
    path = begin(client, source="demo", pace=50.0)
    found = client.post(f"{path}/source", json={"source": "demo"})
    assert (found.status_code, found.json()["error"]["code"]) == (409, "source")
    assert client.post(f"{path}/frame", json={"audio": ""}).status_code == 409
    wait_for(lambda: client.get(path).json()["stats"]["seconds"] > 3)
    assert client.delete(f"{path}/source").json()["source"]["over"] == "stopped"
    assert ask(client, path)["text"]
    assert not hub._readings


def bomb():
    """A PNG of 50,000 x 50,000 pixels in a few bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000)))


def encoded(data):
    return {"image": base64.b64encode(data).decode()}


WRONG = {
    "no JSON": ("", {"content": b"{"}, 400, "bad_json"),
    "a list": ("", {"json": [1]}, 400, "bad_json"),
    "deep JSON": ("", {"content": b"[" * 100_000}, 400, "bad_json"),
    "no such memory": ("", {"json": {"memory": "elephant"}}, 400, "unknown memory"),
    "no budget": ("", {"json": {"budget": "-3"}}, 400, "is no budget"),
    "a budget beyond all": ("", {"json": {"budget": 1 << 40}}, 400, "is no budget"),
    "no option": ("", {"json": {"memory": "hermes", "options": {"nose": 1}}}, 400, "nose"),
    "an option of another kind": (
        *("", {"json": {"memory": "hermes", "options": {"positions": [1]}}}, 400, ""),
    ),
    "a file of the server": (
        *("", {"json": {"memory": "omnimem", "options": {"table": "/etc/passwd"}}}, 400, "a file"),
    ),
    "not side by side": ("", {"json": {"memory": "rekv"}}, 400, "host memory"),
    "a path for an id": ("", {"json": {"id": "../x"}}, 400, "bad_name"),
    "an id that is there": ("", {"json": {"id": "there"}}, 409, "taken"),
    "nothing saved": ("", {"json": {"restore": "nothing"}}, 404, "unknown"),
    "a saved path": ("", {"json": {"restore": "../saves"}}, 400, "bad_name"),
    "no picture": ("/frame", {"json": {}}, 400, "no sound"),
    "no base64": ("/frame", {"json": {"image": "%"}}, 400, "base64"),
    "no picture in it": ("/frame", {"json": encoded(b"hello")}, 400, "no JPEG"),
    "half a picture": ("/frame", {"json": encoded(encode_png(picture(0))[:999])}, 400, "damaged"),
    "a bomb": ("/frame", {"json": encoded(bomb())}, 400, "90,000 pixels"),
    "many pixels": (
        "/frame",
        {"json": encoded(encode_png(0 * picture(0, (300, 301))))},
        400,
        "pixels",
    ),
    "many bytes": ("/frame", {"json": {"image": "A" * 300_000}}, 413, "too_large"),
    "a long body": ("/frame", {"content": b" " * 400_001}, 413, "too_large"),
    "half a sample": ("/frame", {"json": {"audio": "AAAA"}}, 400, "half a sample"),
    "no time": ("/frame", {"json": {**encoded(bomb()), "time": "now"}}, 400, "seconds"),
    "an endless time": ("/frame", {"content": b'{"image": "", "time": NaN}'}, 400, "seconds"),
    "a file outside": ("/source", {"json": {"source": "../secret.mp4"}}, 404, "no file"),
    "a whole path": ("/source", {"json": {"source": "/etc/passwd"}}, 404, "no file"),
    "a link outside": ("/source", {"json": {"source": "link.mp4"}}, 404, "no file"),
    "a folder": ("/source", {"json": {"source": "a"}}, 404, "no file"),
    "an address": ("/source", {"json": {"source": "http://127.0.0.1:9/x.mp4"}}, 403, "root"),
    "a protocol": ("/source", {"json": {"source": "concat:a/talk.mp4"}}, 404, "no file"),
    "a near address": (
        *("/source", {"json": {"source": "rtsp://127.0.0.1:9/liver"}}, 403, "source"),
    ),
    "no source": ("/source", {"json": {"source": 7}}, 400, "source must be"),
    "no pace": ("/source", {"json": {"source": "demo", "pace": 0}}, 400, "pace"),
    "a long file": ("/upload", {"content": bytes(300_001)}, 413, "too_large"),
    "no film": ("/upload", {"content": b"#EXTM3U\n/etc/passwd\n"}, 400, "cannot be opened"),
    "no question": ("/query", {"json": {"text": " "}}, 400, "question in words"),
    "a long question": ("/query", {"json": {"text": "a" * 5000}}, 400, "5,000"),
    "other words": ("/query", {"json": {"text": "what was the weather"}}, 400, "weather"),
    "a bad time": ("/query", {"json": {"text": LAST, "at": []}}, 400, "seconds"),
}


@pytest.mark.parametrize("path,body,status,words", WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_refused_with_a_repair(client, hub, tidy, path, body, status, words):
    begin(client, id="there")
    found = client.post(f"{PATH}/there{path}" if path else PATH, **body)
    error = found.json()["error"]
    assert found.status_code == status, error
    assert words in error["code"] or words in error["message"], error
    assert error["type"] == "invalid_request_error" and "Traceback" not in error["message"]
    assert [one.id for one in hub.sessions] == ["there"] and hub.sessions[0].pieces == 0
    assert not list(Path(hub._folder.name).iterdir())


def test_a_session_that_is_not_there_is_404(client):
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/query"), ("GET", "/map")):
        found = client.request(method, f"{PATH}/nothing{path}")
        assert found.status_code == 404 and found.json()["error"]["code"] == "no_session"
    assert client.get("/elsewhere").status_code == 404
    assert client.put(PATH).status_code == 405


def test_what_there_is(client, hub, tidy):
    path = begin(client)
    post(client, path, 0, picture(0))
    ask(client, path)
    found = client.get("/health").json()
    assert found == {"status": "ok", "sessions": 1, "replica": False}
    found = client.get("/v1/models").json()
    assert found["data"][0]["id"] == "tiny" and found["jaxmem"]["memories"][0]["name"] == "recent"
    names = [one["name"] for one in found["jaxmem"]["memories"]]
    assert "omnimem" in names and "rekv" not in names and found["jaxmem"]["frame"] == [48, 48]
    assert found["jaxmem"]["files"] == ["a/talk.mp4", "link.mp4"]
    for text in found["jaxmem"]["questions"]:
        hub.engines.model.tokenize(text)
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
    assert float(lines['jaxmem_lanes_taken{budget="24",memory="recent"}']) == 1
    assert float(lines['jaxmem_answers_total{cut="false"}']) >= 1
    assert float(lines["jaxmem_sessions"]) == 1 and RECENT in hub.engines.streams

"""The WebSocket: order of messages, several memories on one stream, joining, slow readers."""

import asyncio
import base64
import json
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from serving import COUNT, LAST, picture, pieces, sound

from jaxmem.data.media.events import Event
from jaxmem.data.media.picture import encode_png
from jaxmem.data.media.types import End
from jaxmem.memory.baselines import Recent, Uniform
from jaxmem.serve.app import make_app
from jaxmem.serve.outbox import Outbox
from jaxmem.session import Session

pytest.importorskip("starlette")
TWO = [{"memory": "recent"}, {"memory": "uniform", "budget": 24}]


def send(socket, i, frame, samples=None):
    data = base64.b64encode(encode_png(frame)).decode()
    socket.say("video.frame", data=data, time=float(i))
    if samples is not None:
        socket.say("audio.chunk", data=base64.b64encode(samples.tobytes()).decode(), time=float(i))


def refused(socket, code):
    message = socket.session.receive_json()
    assert message["type"] == "error" and message["code"] == code, message
    return message["message"]


def test_two_memories_see_one_stream(connect, model):
    """Each answers as a `Session` of its own; a third joins later and sees what comes then."""
    socket = connect(memories=TWO)
    made = socket.wait("session.created")
    ids = [one["id"] for one in made["sessions"]]
    assert made["session"]["id"] == ids[0] and made["sessions"][1]["peers"] == ids
    frames, sounds = [picture(i) for i in range(4)], [sound(i) for i in range(4)]
    for i in range(4):
        send(socket, i, frames[i], sounds[i])
    socket.say("video.query", text=COUNT, id="q1")
    done = socket.wait("response.text.done", 2, id="q1")
    found = {one["session"]: one["text"] for one in done}
    for id, memory in zip(ids, (Recent(24), Uniform(24)), strict=True):
        session = Session(model, memory)
        for piece in pieces(frames, sounds, model.media):
            session.feed(piece)
        assert found[id] == session.ask(COUNT).text
        parts = [m["delta"] for m in socket.heard if m.get("delta") and m["session"] == id]
        assert "".join(parts) == found[id]
    socket.say("session.memory", memory="recent", budget=24)
    third = socket.wait("session.added")["session"]
    assert third["peers"] == [*ids, third["id"]]
    send(socket, 4, frames[0])
    socket.say("video.query", text=LAST, id="q2")
    assert len({m["session"] for m in socket.wait("response.text.done", 3, id="q2")}) == 3


def test_a_reload_finds_the_sessions_again(connect, client):
    first = connect(memories=TWO, subscribe=["memory.map", "session.stats"], every=0.2)
    made = first.wait("session.created")
    send(first, 0, picture(0))
    first.say("video.query", text=LAST, id="mine")
    first.wait("response.text.done", 2)
    stats = first.wait("session.stats", session=made["session"]["id"])["stats"]
    assert stats["everything"] == 0 and stats["nbytes"] > 0
    assert first.wait("memory.map", session=made["sessions"][1]["id"])["map"]["layers"]
    second = connect(session=made["sessions"][1]["id"])
    again = second.wait("session.created")
    assert [one["id"] for one in again["sessions"]] == [one["id"] for one in made["sessions"]]
    assert again["session"]["questions"][0]["id"] == "mine"
    second.say("video.query", text=LAST, id="theirs")
    assert first.wait("response.text.done", id="theirs")["text"]
    for id in made["session"]["peers"]:
        client.delete(f"/v1/streaming/sessions/{id}")
    for socket in (first, second):
        assert socket.wait("session.ended", 2)[0]["why"] == "it was closed"
        assert socket.session.receive()["type"] == "websocket.close"


def test_the_order_of_messages_is_checked(connect):
    socket = connect(config=False)
    socket.say("video.query", text=LAST)
    assert "session.config first" in refused(socket, "order")
    socket.session.send_text("{")
    refused(socket, "bad_json")
    socket.session.send_bytes(b"\xff\xfe")
    refused(socket, "bad_json")
    socket.say("session.config", session="nothing")
    refused(socket, "no_session")
    socket.say("session.config", memory="elephant")
    assert "elephant" in refused(socket, "invalid_request")
    socket.say("session.config", memories=[{}] * 5)
    assert "up to 4" in refused(socket, "invalid_request")
    socket.say("session.config", subscribe=["all"])
    assert "memory.map" in refused(socket, "invalid_request")
    socket.say("session.config")
    socket.wait("session.created")
    socket.say("session.config")
    refused(socket, "order")
    socket.say("session.nothing")
    assert "video.frame" in refused(socket, "unknown_type")
    socket.say(["video.frame"])
    refused(socket, "unknown_type")
    for message, words in (
        ({"type": "video.frame"}, "no picture"),
        ({"type": "video.frame", "data": "####"}, "base64"),
        ({"type": "video.frame", "data": "AAAA", "time": "1"}, "seconds"),
        ({"type": "audio.chunk", "data": "AAAA"}, "half a sample"),
        ({"type": "video.query", "text": 3}, "question in words"),
        ({"type": "session.watch", "text": LAST}, "every"),
        ({"type": "session.unwatch", "id": "x"}, "no standing"),
        ({"type": "session.source", "source": "../secret.mp4"}, "no file"),
        ({"type": "session.memory", "memory": "rekv"}, "host memory"),
    ):
        socket.session.send_text(json.dumps(message))
        found = socket.session.receive_json()
        assert found["type"] == "error" and words in found["message"], found
    socket.say("video.frame", data="A" * 400_000)
    refused(socket, "too_large")
    socket.say("video.query", text="what was the weather", id="lost")
    assert socket.session.receive_json()["id"] == "lost"
    send(socket, 0, picture(0))  # it is still served
    socket.say("video.query", text=LAST)
    socket.wait("response.text.done")


def test_a_flood_of_questions_is_bounded(connect, hub):
    """As many are answered as may wait; the others are refused, and say which they are."""
    socket = connect()
    id = socket.wait("session.created")["session"]["id"]
    going = threading.Event()
    blocked = threading.Thread(target=lambda: hub.get(id).live.engine.run(going.wait))
    blocked.start()
    for i in range(30):
        socket.say("video.query", text=LAST, id=f"q{i}")
    errors = []
    while len(errors) < 30 - hub.limits.questions:
        message = socket.session.receive_json()
        errors += [message] if message["type"] == "error" else []
    assert {one["code"] for one in errors} == {"busy"} and errors[-1]["id"] == "q29"
    going.set()
    blocked.join(60)
    done = socket.wait("response.text.done", hub.limits.questions)
    assert {one["id"] for one in done} == {f"q{i}" for i in range(hub.limits.questions)}


def test_standing_questions_are_begun_and_ended(connect, hub):
    socket = connect()
    id = socket.wait("session.created")["session"]["id"]
    socket.say("session.watch", text="was the horn heard", every=2, id="horn")
    begun = socket.wait("session.watching")
    assert (begun["id"], begun["every"], begun["answer"]) == ("horn", 2.0, None)
    for i in range(5):
        send(socket, i, picture(i))
    socket.say("video.query", text=LAST)
    socket.wait("response.text.done")
    (standing,) = hub.get(id).plain()["standing"]
    assert standing["answer"] in ("yes", "no")
    alerts = [m for m in socket.heard if m["type"] == "session.alert"]
    assert bool(alerts) == (standing["answer"] == "yes")
    asked = hub.get(id).plain()["stats"]["questions"]
    assert 2 <= asked <= 3  # after 1 s, after 3 s if that was over, and the one above
    socket.say("session.unwatch", id="horn")
    assert socket.wait("session.unwatched")["id"] == "horn"


def test_saves_branches_and_sources_of_a_socket(connect):
    socket = connect(id="kept")
    socket.wait("session.created")
    send(socket, 0, picture(0))
    socket.say("session.source", source="a/talk.mp4")
    assert socket.wait("source.started")["source"]["kind"] == "file"
    assert "everything" in socket.wait("source.ended")["why"]
    socket.say("session.save")
    assert socket.wait("session.saved")["saved"] == "kept"
    socket.say("session.branch")
    branch = socket.wait("session.branched")["session"]
    assert branch["stats"]["seconds"] == 7.0 and branch["source"] is None
    back = connect(restore="kept")
    assert back.wait("session.created")["session"]["stats"]["seconds"] == 7.0
    socket.say("session.source", source=None)  # nothing is read
    socket.say("video.done")
    socket.say("video.query", text=LAST)
    assert socket.wait("response.start")["asked_at"] == 7.0
    socket.wait("response.text.done")


def test_messages_wait_for_a_slow_reader_only_so_long():
    async def read():
        outbox = Outbox(3)
        for i in range(3):
            outbox({"type": "response.text.delta", "i": i})
        outbox({"type": "session.stats"})  # left out
        await asyncio.sleep(0)
        assert not outbox.slow and (await outbox.get())["i"] == 0
        outbox({"type": "memory.map"})
        outbox({"type": "response.text.done"})
        await asyncio.sleep(0)
        assert outbox.slow and await outbox.get() is None
        closed = Outbox(3)
        closed({"type": "error"})
        await asyncio.sleep(0)
        closed.close()
        return await closed.get(), await closed.get()

    assert asyncio.run(read()) == ({"type": "error"}, None)


class Camera:
    """In place of a camera: it gives a piece, breaks off until it is `back`, and gives another."""

    kind, name, where, end = "camera", "rtsp://cam/live", "rtsp://cam/live", End(2.0, "over", "end")

    def __init__(self):
        self.back, self.lost = threading.Event(), threading.Event()

    def plain(self, lost=None):
        return {"kind": self.kind, "name": self.name, "over": None, "lost": lost}

    def open(self, model, after, told):
        self.told, self.media = told, model.media
        return self

    def __iter__(self):
        piece = SimpleNamespace(
            frames=np.zeros((1, *self.media.size, 3), np.uint8),
            samples=np.zeros(round(self.media.sample_rate), np.float32),
        )
        yield piece
        self.told(Event(0.5, "damaged", "a frame is damaged"))
        self.told(Event(1.0, "stalled", "no data; opening the source again"))
        self.lost.set()
        assert self.back.wait(60)
        self.told(Event(1.0, "resumed", "after 2.0 s without the source"))
        yield piece

    def close(self):
        self.back.set()


def lost_sources(client):
    """Return how many cameras broke off since the server began: tests share it."""
    (count,) = re.findall(r"^jaxmem_sources_lost_total (\S+)$", client.get("/metrics").text, re.M)
    return float(count)


def test_another_app_over_the_same_hub_silences_no_counter(client, hub):
    before = lost_sources(client)
    make_app(hub, host="127.0.0.1")
    hub.listener({"type": "source.lost"})
    assert lost_sources(client) == before + 1


def test_a_camera_that_is_lost_is_said_to_be_and_found_again(client, hub, tidy):
    camera, heard, before = Camera(), [], lost_sources(client)
    served, late = hub.create([hub.usual]) + hub.create([hub.usual])
    served.publish.add(lambda message: heard.append((message["type"], message.get("message"))))
    hub.read([served], camera)
    assert camera.lost.wait(60)
    (reading,) = set(hub._readings.values())
    reading.add(late)  # a second memory joins meanwhile
    for one in (served, late):
        found = client.get(f"/v1/streaming/sessions/{one.id}").json()["source"]
        assert found["lost"] == "no data; opening the source again" and found["over"] is None
    camera.back.set()
    reading._thread.join(60)
    assert [one for one in heard if one[0].startswith("source.")] == [
        ("source.started", None),
        ("source.lost", "no data; opening the source again"),
        ("source.resumed", "after 2.0 s without the source"),
        ("source.ended", None),
    ]
    assert served.source["lost"] is late.source["lost"] is None and served.source["over"] == "over"
    assert (served.pieces, late.pieces) == (2, 1)
    assert lost_sources(client) == before + 1

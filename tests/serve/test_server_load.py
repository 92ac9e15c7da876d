"""Many clients, bad ones, slow ones: nothing is left behind, and the others are served."""

import asyncio
import base64
import json
import os
import random
import threading
import time

import pytest
from serving import COUNT, LAST, RECENT, picture

from jaxmem.data.media.picture import encode_png
from jaxmem.serve.engines import Engines
from jaxmem.serve.hub import Hub
from jaxmem.serve.limits import Limits

uvicorn = pytest.importorskip("uvicorn")
websockets = pytest.importorskip("websockets.asyncio.client")
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed

pytestmark = pytest.mark.slow
CLIENTS, CONNECTS = 64, 1000
PATIENT = {"open_timeout": 120, "ping_interval": None}  # every width of a batch is compiled
FRAME = base64.b64encode(encode_png(picture(0))).decode()


@pytest.fixture(scope="module")
def server(model):
    """A server in this process, so that its tasks, threads and descriptors can be counted."""
    from jaxmem.serve.app import make_app
    from jaxmem.serve.running import listening

    limits = Limits(sessions=200, linger=0.5, connections=300)
    hub = Hub(Engines(model, lanes=CLIENTS), limits, usual=RECENT)
    with listening("127.0.0.1", 0) as listener:
        app = make_app(hub, host="127.0.0.1")
        config = uvicorn.Config(
            app,
            log_level="error",
            ws="websockets-sansio",
            ws_max_size=limits.message_bytes,
            ws_ping_timeout=300,
        )
        running = uvicorn.Server(config)
        loops = []

        async def serve():
            loops.append(asyncio.get_running_loop())
            await running.serve([listener])

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        address = f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/video/chat/stream"
        yield hub, address, lambda: counted(hub, app, loops[0])
        running.should_exit = True
        thread.join(30)
        hub.stop(5.0)


def counted(hub, app, loop):
    """What a server holds on to, once it is quiet."""
    end = time.monotonic() + 60
    while hub.sessions or app.state.connections.open:
        assert time.monotonic() < end, (hub.sessions, app.state.connections.open)
        time.sleep(0.05)
    time.sleep(1.0)
    engines = hub.engines.streams.values()
    return {
        "tasks": len(asyncio.all_tasks(loop)),
        "threads": sum("AnyIO" not in thread.name for thread in threading.enumerate()),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "lanes": sum(taken for taken, _ in engines),
    }


def about(before, after):
    """Whether there is no more than before; idle sockets of the standard library aside."""
    assert after["lanes"] == before["lanes"] == 0
    assert after["tasks"] <= before["tasks"] and after["threads"] <= before["threads"]
    assert after["descriptors"] <= before["descriptors"] + 2, (before, after)


async def say(socket, type, **more):
    await socket.send(json.dumps({"type": type, **more}))


async def hear(socket, type):
    while True:
        message = json.loads(await socket.recv())
        if message["type"] == type:
            return message


async def talk(address, number, seconds=4):
    """A client that behaves: pictures at their times, and two questions."""
    async with websockets.connect(address, **PATIENT) as socket:
        await say(socket, "session.config", subscribe=["session.stats", "memory.map"], every=0.5)
        await hear(socket, "session.created")
        for i in range(seconds):
            data = base64.b64encode(encode_png(picture(i))).decode()
            await say(socket, "video.frame", data=data, time=float(i))
        texts = []
        for text in (LAST, COUNT):
            await say(socket, "video.query", text=text)
            texts.append((await hear(socket, "response.text.done"))["text"])
        return number, texts


def test_clients_at_once_hear_the_same_and_leave_nothing(server):
    """All see the same pictures, so all must hear the same, whatever the others do."""
    hub, address, count = server
    asyncio.run(talk(address, -1))
    before = count()

    async def all_of_them():
        return await asyncio.gather(*(talk(address, i) for i in range(CLIENTS)))

    found = asyncio.run(all_of_them())
    assert len(found) == CLIENTS and len({json.dumps(texts) for _, texts in found}) == 1
    about(before, count())
    assert hub.engines.streams[RECENT] == (0, CLIENTS)


def test_connects_and_disconnects_at_random_moments_leave_nothing(server):
    _, address, count = server
    asyncio.run(talk(address, -1))
    before, rng = count(), random.Random(7)

    async def come_and_go(gate):
        async with gate:
            try:
                async with websockets.connect(address, **PATIENT) as socket:
                    if rng.random() < 0.1:
                        return
                    await say(socket, "session.config", subscribe=["memory.map"], every=0.2)
                    if rng.random() < 0.2:
                        return
                    await hear(socket, "session.created")
                    for i in range(rng.randrange(3)):
                        await say(socket, "video.frame", data=FRAME, time=float(i))
                    if rng.random() < 0.5:
                        await say(socket, "video.query", text=LAST)
                    await asyncio.sleep(rng.random() / 50)
                    if rng.random() < 0.5:
                        socket.transport.abort()  # the cable is pulled
            except (ConnectionClosed, OSError):
                pass

    async def all_of_them():
        gate = asyncio.Semaphore(16)
        await asyncio.gather(*(come_and_go(gate) for _ in range(CONNECTS)))

    asyncio.run(all_of_them())
    about(before, count())
    assert asyncio.run(talk(address, 0))[1]


def test_bad_and_slow_clients_do_not_harm_another(server):
    """Nonsense, floods, bombs and one who never reads, while another one is answered."""
    _, address, count = server
    expected = asyncio.run(talk(address, -1))[1]
    before = count()
    nonsense = [
        "", "{", "[]", '{"type": 7}', "\x00" * 100, '{"type": "video.frame", "data": "AAAA"}',
        json.dumps({"type": "audio.chunk", "data": "A" * 100_001}),
        json.dumps({"type": "session.config"}), json.dumps({"type": "session.memory"}),
    ]  # fmt: skip

    async def fool():
        try:
            async with websockets.connect(address, **PATIENT) as socket:
                await say(socket, "session.config")
                for i in range(300):
                    await socket.send(nonsense[i % len(nonsense)])
                    await say(socket, "video.query", text=LAST)
                await socket.send(b"\xff" * 1000)
                await asyncio.sleep(0.5)
        except ConnectionClosed:
            pass

    async def sleeper():
        """Asks for all there is and reads none of it."""
        try:
            async with websockets.connect(address, **PATIENT, max_queue=1) as socket:
                names = ["session.stats", "memory.map"]
                await say(socket, "session.config", subscribe=names, every=0.2)
                for _ in range(3000):
                    await say(socket, "video.query", text="nobody knows these words" * 20)
                await asyncio.sleep(2.0)
        except ConnectionClosed:
            pass

    async def all_of_them():
        others = [asyncio.create_task(one()) for one in (fool, fool, sleeper, sleeper)]
        good = await asyncio.gather(*(talk(address, i) for i in range(4)))
        await asyncio.gather(*others)
        return good

    found = asyncio.run(all_of_them())
    assert [texts for _, texts in found] == [expected] * 4
    about(before, count())

"""One server of the embedded model for all tests that only talk to it."""

from contextlib import ExitStack

import browsers
import pytest
from serving import RECENT, Socket

from jaxmem.models.tiny.embedded import embedded
from jaxmem.serve.engines import Engines
from jaxmem.serve.limits import Limits
from jaxmem.serve.sources import Allowed


@pytest.fixture(scope="session")
def model():
    return embedded()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """What a server may read, what it may not, and where it keeps sessions."""
    from jaxmem.data.world.files import write_video
    from jaxmem.data.world.world import split_seed, world

    folder = tmp_path_factory.mktemp("served")
    write_video(folder / "root" / "a" / "talk.mp4", world(split_seed("test", 3), 6), fps=2, scale=1)
    (folder / "secret.mp4").write_bytes((folder / "root" / "a" / "talk.mp4").read_bytes())
    (folder / "root" / "link.mp4").symlink_to(folder / "secret.mp4")
    return folder


@pytest.fixture(scope="session")
def hub(model, folder):
    from jaxmem.serve.hub import Hub

    hub = Hub(
        Engines(model, lanes=4),
        Limits(frame_bytes=200_000, message_bytes=400_000, upload_bytes=300_000, pixels=90_000),
        usual=RECENT,
        allowed=Allowed(folder / "root", ("rtsp://127.0.0.1:9/live/",)),
        saves=folder / "saves",
    )
    yield hub
    hub.stop(0.0)


@pytest.fixture(scope="session")
def client(hub):
    pytest.importorskip("httpx")
    from starlette.testclient import TestClient

    from jaxmem.serve.app import make_app

    with TestClient(make_app(hub), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def tidy(hub):
    """Every test begins and ends without sessions."""
    yield
    for one in hub.sessions:
        hub.close(one, "the test is over")


@pytest.fixture
def connect(client, tidy):
    def connect(**config):
        session = client.websocket_connect("/v1/video/chat/stream")
        session.__enter__()
        opened.append(session)
        socket = Socket(session)
        if config.get("config", True):
            socket.say("session.config", **config)
        return socket

    opened = []
    yield connect
    for session in opened:
        session.__exit__(None, None, None)


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Path of what the camera of a browser shows, and the one shape in it."""
    path = tmp_path_factory.mktemp("clip") / "clip.y4m"
    return path, browsers.write_clip(path)


@pytest.fixture(scope="session")
def browser(clip):
    playwright = pytest.importorskip("playwright.sync_api")
    flags = [*browsers.FLAGS, f"--use-file-for-fake-video-capture={clip[0]}"]
    playwright.expect.set_options(timeout=browsers.SLOW)
    with playwright.sync_playwright() as found:
        started = found.chromium.launch(executable_path=browsers.chromium(), args=flags)
        yield started
        started.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """Address of a server in a process of its own."""
    folder = tmp_path_factory.mktemp("server")
    options = (*browsers.OPTIONS, "--saves", str(folder / "saves"))
    with browsers.serving(*options, cwd=folder) as address:
        yield address


@pytest.fixture
def visit(browser):
    with browsers.visiting(browser) as visit:
        yield visit


@pytest.fixture
def start(monkeypatch):
    """Starts stand-ins and a proxy before them; returns both, and a client."""
    httpx = pytest.importorskip("httpx")
    pytest.importorskip("websockets")
    from replicas import Listening, StandIn, wait

    from jaxmem.serve.proxy import relay, replica, replicas
    from jaxmem.serve.proxy.app import make_app

    monkeypatch.setattr(replicas, "TICK_SECONDS", 0.1)
    monkeypatch.setattr(relay, "MOVE_SECONDS", 1.0)
    monkeypatch.setattr(replica, "HEALTH_SECONDS", 0.5)
    stack = ExitStack()

    def start(count=2, *, token=None, inner=None, patience=5.0, **more):
        folder = {}
        servers = [StandIn(f"s{i}", folder, token=inner or token, **more) for i in range(count)]
        app = make_app(
            {one.name: one.address for one in servers},
            token=token,
            inner=inner,
            host="127.0.0.1",
            patience=patience,
            limits=Limits(message_bytes=400_000),
        )
        proxy = Listening(app)
        client = httpx.Client(base_url=proxy.address, timeout=20, trust_env=False)
        for one in (*servers, proxy, client):
            stack.callback(one.close)
        wait(lambda: client.get("/health").json()["status"] == "ok")
        return servers, client

    yield start
    stack.close()

"""Clients that others wrote, against a server that listens."""

import asyncio
import base64
import threading

import pytest
from serving import COUNT, LAST, RECENT, picture, sound
from stalling import serving

from jaxmem.data.media.picture import encode_png
from jaxmem.serve.engines import Engines
from jaxmem.serve.hub import Hub
from jaxmem.serve.sources import Allowed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def film(folder):
    """A file under the root of the server, also at an address that it may open."""
    path = folder / "root" / "a" / "talk.mp4"
    data = path.read_bytes()
    with serving(data, len(data), ranges=True) as where:
        yield path, where


@pytest.fixture(scope="module")
def address(model, folder, film):
    uvicorn = pytest.importorskip("uvicorn")
    from jaxmem.serve.app import make_app
    from jaxmem.serve.running import listening

    allowed = Allowed(folder / "root", (film[1],))
    hub = Hub(Engines(model, lanes=2), usual=RECENT, allowed=allowed)
    with listening("127.0.0.1", 0) as listener:
        app = make_app(hub, token="key", host="127.0.0.1")
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="websockets-sansio"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join(30)
        hub.stop(5.0)


def message(text, count):
    data = [base64.b64encode(encode_png(picture(i))).decode() for i in range(count)]
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{one}"}} for one in data
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_the_client_of_openai(address):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=address, api_key="key", max_retries=0)
    assert client.models.list().data[0].id == "tiny"
    asked = {"model": "tiny", "messages": message(COUNT, 3)}
    whole = client.chat.completions.create(**asked, temperature=0)
    text = whole.choices[0].message.content
    assert text and whole.usage.completion_tokens == 1
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "stop"
    other = client.chat.completions.create(**asked, extra_body={"memory": "uniform", "budget": 32})
    assert other.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="weather"):
        client.chat.completions.create(model="tiny", messages=message("the weather", 1))
    with pytest.raises(openai.NotFoundError, match="no model"):
        client.chat.completions.create(model="gpt", messages=message(LAST, 1))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address, api_key="no", max_retries=0).models.list()


@pytest.fixture
def client(address):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=address, api_key="key", max_retries=0) as client:
        yield client


def said(client, parts, text=COUNT, **more):
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    found = client.chat.completions.create(model="tiny", messages=messages, **more)
    return found.choices[0].message.content


def test_videos_of_openais_client(client, film):
    """As data, as a file under the root, at an address that is listed: all are the same."""
    path, where = film
    data = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
    urls = (data, "a/talk.mp4", f"file://{path}", where)
    answers = [said(client, [{"type": "video_url", "video_url": {"url": url}}]) for url in urls]
    assert answers[0] and len(set(answers)) == 1
    openai = pytest.importorskip("openai")
    for url, error in (
        ("http://127.0.0.1:9/x.mp4", openai.PermissionDeniedError),
        ("file:///etc/passwd", openai.NotFoundError),
        ("data:video/mp4;base64,AAAA", openai.BadRequestError),
        ("demo", openai.BadRequestError),
    ):
        with pytest.raises(error):
            said(client, [{"type": "video_url", "video_url": {"url": url}}])


def test_sessions_and_turns_of_openais_client(client):
    """A session by its header, asked twice with the turns before; streamed with its usage."""
    made = client.post("/streaming/sessions", body={"id": "seen"}, cast_to=object)
    assert made["id"] == "seen"
    headers = {"x-streaming-session": "seen"}
    for i in range(3):
        image = base64.b64encode(encode_png(picture(i))).decode()
        audio = base64.b64encode(sound(i).tobytes()).decode()
        body = {"image": image, "audio": audio, "time": i}
        client.post("/streaming/sessions/seen/frame", body=body, cast_to=object)
    turns = [{"role": "system", "content": "be brief"}]
    for text in (LAST, COUNT):
        turns.append({"role": "user", "content": text})
        asked = {"model": "tiny", "messages": turns, "extra_headers": headers}
        whole = client.chat.completions.create(**asked)
        more = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**asked, **more))
        answer = whole.choices[0].message.content
        parts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
        assert "".join(filter(None, parts)) == answer
        assert chunks[-1].usage == whole.usage and whole.usage.prompt_tokens
        turns.append({"role": "assistant", "content": answer})
    for message in turns[1:]:
        assert message["content"]
    heard = client.get("/streaming/sessions/seen", cast_to=object)["questions"]
    assert [one["text"] for one in heard] == [LAST, LAST, COUNT, COUNT]
    openai = pytest.importorskip("openai")
    headers = {"x-streaming-session": "gone"}
    with pytest.raises(openai.NotFoundError, match="no session"):
        client.chat.completions.create(model="tiny", messages=turns, extra_headers=headers)


def test_many_questions_at_once_of_openais_asynchronous_client(address):
    """More than there are lanes: those that find none are told to wait, and try again."""
    openai = pytest.importorskip("openai")

    async def ask_all():
        how = {"base_url": address, "api_key": "key", "max_retries": 8}
        async with openai.AsyncOpenAI(**how) as client:
            asked = {"model": "tiny", "messages": message(COUNT, 3)}
            return await asyncio.gather(
                *(client.chat.completions.create(**asked) for _ in range(5))
            )

    answers = {one.choices[0].message.content for one in asyncio.run(ask_all())}
    assert len(answers) == 1

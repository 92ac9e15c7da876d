"""Clients that others wrote, against a server that listens."""

import asyncio
import base64
import threading

import pytest
from serving import COUNT, LAST, RECENT, picture

from jaxmem.data.media.picture import encode_png
from jaxmem.serve.engines import Engines
from jaxmem.serve.hub import Hub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(model):
    uvicorn = pytest.importorskip("uvicorn")
    from jaxmem.serve.app import make_app
    from jaxmem.serve.running import listening

    hub = Hub(Engines(model, lanes=2), usual=RECENT)
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

"""Chat completions as clients of OpenAI's interface send them."""

import base64
import io
import json
import wave
from pathlib import Path

import pytest
from serving import COUNT, LAST, picture, pieces, sound

from jaxmem.data.media.picture import encode_png
from jaxmem.memory.baselines import Recent
from jaxmem.serve.gathering import Gatherer
from jaxmem.session import Session

pytest.importorskip("starlette")
LAST_SOUND = "what was the last sound"
CHAT, SESSIONS = "/v1/chat/completions", "/v1/streaming/sessions"


def url(data, kind="image/png"):
    return {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}


def message(text, *parts):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def images(count):
    return [{"type": "image_url", "image_url": url(encode_png(picture(i)))} for i in range(count)]


def test_a_session_is_asked_by_its_header(client, model, tidy):
    client.post(SESSIONS, json={"id": "seen"})
    body = {"image": url(encode_png(picture(0)))["url"], "time": 0}
    assert client.post(f"{SESSIONS}/seen/frame", json=body).status_code == 200
    headers = {"x-streaming-session": "seen"}
    earlier = {"role": "system", "content": "be brief"}
    asked = {"model": "tiny", "messages": [earlier, *message(LAST)]}
    found = client.post(CHAT, json=asked, headers=headers).json()
    text = client.post(f"{SESSIONS}/seen/query", json={"text": LAST}).json()["text"]
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert choice["finish_reason"] == "stop" and found["object"] == "chat.completion"
    count = len(model.tokenize(LAST))
    assert found["usage"]["prompt_tokens"] == count and found["usage"]["completion_tokens"] == 1
    asked |= {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", CHAT, json=asked, headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line[6:] for line in response.iter_lines() if line]
    *chunks, last = [json.loads(line) for line in lines[:-1]]
    assert (
        lines[-1] == "[DONE]" and last["usage"]["total_tokens"] == count + 1 and not last["choices"]
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == text
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert [one["id"] for one in client.get(SESSIONS).json()["sessions"]] == ["seen"]


def test_pictures_and_videos_of_a_message_are_watched_and_forgotten(client, model, hub, folder):
    session = Session(model, Recent(24))
    for piece in pieces([picture(i) for i in range(4)], [None] * 4, model.media):
        session.feed(piece)
    found = client.post(CHAT, json={"messages": message(COUNT, *images(4))}).json()
    assert found["choices"][0]["message"]["content"] == session.ask(COUNT).text
    file = folder / "root" / "a" / "talk.mp4"
    session.reset()
    session.watch(file)
    for where in ({"url": "a/talk.mp4"}, url(file.read_bytes(), "video/mp4")):
        part = {"type": "video_url", "video_url": where}
        body = {"model": "tiny:recent", "budget": 24, "messages": message(COUNT, part)}
        found = client.post(CHAT, json=body).json()
        assert found["choices"][0]["message"]["content"] == session.ask(COUNT).text
    assert not hub.sessions


def test_pictures_have_the_times_of_their_stamps_and_sounds_are_heard(client, model, hub):
    session, times = Session(model, Recent(24)), (0.0, 1.5, 3.0, 3.5)
    gatherer, made = Gatherer(model.media), []
    for i, at in enumerate(times):
        made += gatherer.picture(picture(i), 0.0, at)
    for piece in made + gatherer.flush():
        session.feed(piece)
    stamped = [{"type": "text", "text": f"<{at} seconds>"} for at in times]
    parts = [x for pair in zip(stamped, images(4), strict=True) for x in pair]
    found = client.post(CHAT, json={"messages": message(COUNT, *parts)}).json()
    assert found["choices"][0]["message"]["content"] == session.ask(COUNT).text
    assert found["usage"]["prompt_tokens"] == len(model.tokenize(COUNT))
    heard = io.BytesIO()
    with wave.open(heard, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(sound(0, 3.0).tobytes())
    session.reset()
    (path := Path(hub._folder.name) / "heard.wav").write_bytes(heard.getvalue())
    text = session.watch(path).ask(LAST_SOUND).text
    path.unlink()
    data = {"data": base64.b64encode(heard.getvalue()).decode(), "format": "wav"}
    for part in (
        {"type": "input_audio", "input_audio": data},
        {"type": "audio_url", "audio_url": url(heard.getvalue(), "audio/wav")},
    ):
        found = client.post(CHAT, json={"messages": message(LAST_SOUND, part)}).json()
        assert found["choices"][0]["message"]["content"] == text
    assert not hub.sessions


WRONG = {
    "nothing to see": ({"messages": message(LAST)}, 400, "x-streaming-session"),
    "no messages": ({"messages": []}, 400, "list of messages"),
    "no content": ({"messages": [{"role": "user"}]}, 400, "content"),
    "another part": (
        {"messages": message(LAST, {"type": "file"})},
        400,
        "audio_url or input_audio",
    ),
    "no sound": (
        {"messages": message(LAST, {"type": "input_audio", "input_audio": {"data": "?"}})},
        *(400, "no base64"),
    ),
    "sound that is none": (
        {"messages": message(LAST, {"type": "audio_url", "audio_url": url(b"RIFF", "audio/wav")})},
        *(400, "cannot be opened"),
    ),
    "no address": ({"messages": message(LAST, {"type": "image_url"})}, 400, "address"),
    "a remote picture": (
        {"messages": message(LAST, {"type": "image_url", "image_url": {"url": "http://x/y.png"}})},
        *(400, "base64"),
    ),
    "a remote film": (
        {"messages": message(LAST, {"type": "video_url", "video_url": "http://x/y.mp4"})},
        *(403, "may not"),
    ),
    "an endless film": (
        {"messages": message(LAST, {"type": "video_url", "video_url": "demo"})},
        *(400, "no end"),
    ),
    "another model": ({"model": "gpt", "messages": message(LAST)}, 404, "model_not_found"),
    "two answers": ({"n": 2, "messages": message(LAST, *images(1))}, 400, "n must be 1"),
    "other words": ({"messages": message("what was the weather", *images(1))}, 400, "weather"),
}


@pytest.mark.parametrize("body,status,words", WRONG.values(), ids=WRONG)
def test_what_makes_no_sense_is_refused(client, hub, body, status, words):
    found = client.post(CHAT, json=body)
    error = found.json()["error"]
    assert found.status_code == status and words in f"{error['code']} {error['message']}", error
    assert not hub.sessions

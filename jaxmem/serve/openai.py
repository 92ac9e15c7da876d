"""Chat completions, as clients of OpenAI's interface send and read them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from jaxmem.serve.demo_world import DEMO
from jaxmem.serve.http import SSE, answer_messages
from jaxmem.serve.hub import Hub
from jaxmem.serve.limits import RefusedError, shown
from jaxmem.serve.outbox import Outbox
from jaxmem.serve.question import Question
from jaxmem.serve.served import Served
from jaxmem.serve.sources import Source, is_live
from jaxmem.serve.wire import read_base64, read_body, read_json, read_picture

CHAT = "/v1/chat/completions"
SESSION = "x-streaming-session"
"""Header that names the session which is asked."""
STAMP = re.compile(r"<(\d+(?:\.\d+)?) seconds>")
"""A text before a picture that says its time, as clients write it for Qwen3-VL."""


class Media(NamedTuple):
    """A picture, video or sound of a message."""

    kind: str  # of its part
    url: str
    at: float | None = None  # seconds, of a picture; None: a frame after the last one


class Chat:
    """The handler of a hub."""

    def __init__(self, hub: Hub):
        """Serve a hub."""
        self.hub, self.limits, self.model = hub, hub.limits, hub.engines.model

    async def chat(self, request: Request) -> Response:
        """Answer the last message: about a session, or about the media that it brings."""
        self.hub.check_running()
        body = read_json(await read_body(request.stream(), self.limits.chat_bytes))
        memory = self._memory(body)
        text, media = read_messages(body.get("messages"))
        name = request.headers.get(SESSION)
        if name is not None and media:
            raise RefusedError(f"{SESSION} names a session: leave the media of the message out.")
        if name is not None:
            served, own = self.hub.get(name), False
        elif media:
            served, own = await run_in_threadpool(self._watch, memory, media), True
        else:
            raise RefusedError(
                f"there is nothing to see: name a session in the header {SESSION}, or give a part "
                "with video_url, image_url or audio_url."
            )
        outbox = Outbox(self.limits.events)
        served.publish.add(outbox)
        try:
            question = await run_in_threadpool(partial(served.ask, text))
        except BaseException:
            served.publish.remove(outbox)
            self._leave(served, own)
            raise
        messages = self._messages(served, question, outbox, own)
        await anext(messages)
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            chunks = self._chunks(question, messages, usage)
            return StreamingResponse(chunks, media_type=SSE)
        async for _ in messages:
            pass
        if question.cut:
            raise RefusedError(f"the answer was cut: {question.why}", "cut", 503)
        message = {"role": "assistant", "content": question.answer}
        choice = {"index": 0, "message": message, "finish_reason": self._finish(question)}
        about = self._about(question, "chat.completion")
        return JSONResponse(about | {"choices": [choice], "usage": self._usage(question)})

    def _memory(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return which memory a body asks for: `model` is NAME or NAME:MEMORY."""
        given = body.get("model") or self.model.name
        name, _, memory = given.partition(":") if isinstance(given, str) else ("", "", "")
        if given != self.model.name and name != self.model.name:
            raise RefusedError(
                f"there is no model {shown(given)}, only {self.model.name}: name that, or "
                f"{self.model.name}:MEMORY.",
                "model_not_found",
                404,
            )
        if body.get("n") not in (None, 1):
            raise RefusedError(f"n must be 1, got {shown(body['n'])}.")
        found = {key: body.get(key) for key in ("memory", "budget", "options")}
        return found | ({"memory": memory} if memory and given != self.model.name else {})

    def _watch(self, memory: Mapping[str, Any], media: Sequence[Media]) -> Served:
        """Return a session that has seen pictures and videos, and heard sounds."""
        (served,) = self.hub.create([self.hub.wanted(memory)], brief=True, lasting=False)
        try:
            for i, (kind, url, at) in enumerate(media):
                if kind == "image_url":
                    data = read_base64(url, "an image_url", self.limits.frame_bytes)
                    picture = read_picture(served, data, self.limits)
                    served.push(picture, at=i / served.media.fps if at is None else at)
                else:
                    self._see(served, url)
            served.finish()
        except BaseException:
            self.hub.close(served, "its media could not be read")
            raise
        return served

    def _see(self, served: Served, url: str) -> None:
        """Feed all of a video or a sound to a session."""
        path = None
        if url.startswith("data:"):
            data = read_base64(url, "a video or a sound", self.limits.chat_bytes)
            path = self.hub.upload()
            path.write_bytes(data)
            source = Source("file", str(path), "data")
        else:
            source = self.hub.allowed.find(url.removeprefix("file://"))
        try:
            reader = source.open(self.model)
            try:
                if source.kind == DEMO or is_live(reader):
                    raise RefusedError(f"{url} has no end: begin a session with it, and ask that.")
                served.begin_source(source.plain())
                for piece in reader:
                    served.feed(piece, wait=True)
            finally:
                reader.close()
                served.end_source("it was watched")
        finally:
            if path is not None:
                path.unlink(missing_ok=True)

    def _leave(self, served: Served, own: bool) -> None:
        if own:
            self.hub.close(served, "its question was answered")

    async def _messages(
        self, served: Served, question: Question, outbox: Outbox, own: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield what `answer_messages` does, and end the session after it if it is our own."""
        try:
            async for message in answer_messages(served, question.id, outbox):
                yield message
        finally:
            self._leave(served, own)

    async def _chunks(
        self, question: Question, messages: AsyncIterator[dict[str, Any]], usage: bool
    ) -> AsyncIterator[str]:
        about = self._about(question, "chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            return f"data: {json.dumps(about | {'choices': [choice]})}\n\n"

        yield chunk({"role": "assistant", "content": ""})
        async for message in messages:
            if message["type"] == "response.text.delta":
                yield chunk({"content": message["delta"]})
        if question.cut:
            error = {"type": "server_error", "code": "cut", "message": question.why}
            yield f"data: {json.dumps({'error': error})}\n\n"
        else:
            yield chunk({}, self._finish(question))
        if usage:
            last = about | {"choices": [], "usage": self._usage(question)}
            yield f"data: {json.dumps(last)}\n\n"
        yield "data: [DONE]\n\n"

    def _about(self, question: Question, kind: str) -> dict[str, Any]:
        made = {"id": f"chatcmpl-{question.id}", "object": kind, "created": int(time.time())}
        return made | {"model": self.model.name}

    def _finish(self, question: Question) -> str:
        """Return why an answer ended; a model whose answers are one token ends them by itself."""
        return "length" if question.tokens >= self.model.max_new > 1 else "stop"

    def _usage(self, question: Question) -> dict[str, int]:
        asked, answered = len(self.model.tokenize(question.text)), question.tokens
        return {
            "prompt_tokens": asked,
            "completion_tokens": answered,
            "total_tokens": asked + answered,
        }


def read_messages(messages: object) -> tuple[str, list[Media]]:
    """Return the text of the last message, and pictures, videos and sounds of all.

    Earlier texts are not read: what a session remembers is its stream. Nor are time stamps: they
    are the times of the pictures behind them.

    Raises:
      RefusedError: if there is no text, or a part of another kind.
    """
    if not isinstance(messages, list) or not messages:
        raise RefusedError(f"messages must be a list of messages, got {shown(messages)}.")
    text, media = "", list[Media]()
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise RefusedError(f"a message must have content, got {shown(message)}.")
        texts: list[str] = []
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "text":
                texts.append(str(part.get("text", "")))
            elif kind == "image_url":
                stamp = STAMP.fullmatch(texts[-1].strip()) if texts else None
                media.append(Media(kind, _url(part.get(kind)), stamp and float(stamp[1])))
                texts = texts[:-1] if stamp else texts
            elif kind in ("video_url", "audio_url"):
                media.append(Media(kind, _url(part.get(kind))))
            elif kind == "input_audio" and isinstance(given := part.get(kind), dict):
                media.append(Media("audio_url", f"data:,{given.get('data')}"))
            else:
                raise RefusedError(
                    "a part must be text, image_url, video_url, audio_url or input_audio, got "
                    f"{shown(part)}."
                )
        text = " ".join(texts).strip()
    return text, media


def _url(given: object) -> str:
    url = given.get("url") if isinstance(given, dict) else given
    if not isinstance(url, str):
        raise RefusedError(f"an address must be text, got {shown(given)}.")
    return url

"""Sessions over HTTP: `/v1/streaming/sessions`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from jaxmem.data.media.picture import encode_png
from jaxmem.serve.hub import Hub
from jaxmem.serve.limits import RefusedError, shown
from jaxmem.serve.outbox import Outbox
from jaxmem.serve.served import Served
from jaxmem.serve.sources import Source
from jaxmem.serve.wire import (
    push,
    read_body,
    read_json,
    read_number,
    read_pace,
    read_picture,
    read_pushed,
    too_large,
)

PATH = "/v1/streaming/sessions"
SSE = "text/event-stream"


class Sessions:
    """The handlers of a hub's sessions."""

    def __init__(self, hub: Hub):
        """Serve a hub."""
        self.hub, self.limits = hub, hub.limits

    def routes(self) -> list[Route]:
        """Return the routes."""
        one = f"{PATH}/{{id}}"
        table: dict[str, dict[str, Callable[..., Any]]] = {
            PATH: {"GET": self.list, "POST": self.create},
            one: {"GET": self.show, "DELETE": self.close},
            f"{one}/frame": {"POST": self.frame},
            f"{one}/source": {"POST": self.read, "DELETE": self.stop},
            f"{one}/upload": {"POST": self.upload},
            f"{one}/query": {"POST": self.query},
            f"{one}/save": {"POST": self.save},
            f"{one}/branch": {"POST": self.branch},
            f"{one}/restore": {"POST": self.restore},
            f"{one}/map": {"GET": self.map},
            f"{one}/picture": {"GET": self.picture},
            f"{one}/picture/{{seconds:float}}": {"GET": self.thumbnail},
        }
        return [
            Route(path, handler, methods=[method])
            for path, handlers in table.items()
            for method, handler in handlers.items()
        ]

    def _of(self, request: Request) -> Served:
        return self.hub.get(request.path_params["id"])

    async def _json(self, request: Request) -> dict[str, Any]:
        return read_json(await read_body(request.stream(), self.limits.message_bytes))

    async def list(self, request: Request) -> Response:
        """Answer with all sessions."""
        hub, short = self.hub, request.query_params.get("only") == "ids"
        about = lambda one: {"id": one.id, "stream": one.stream} if short else one.plain()
        sessions = [about(one) for one in hub.sessions]
        saved = await run_in_threadpool(lambda: hub.keeping and hub.keeping.names)
        lasting = await run_in_threadpool(lambda: hub.lasting and hub.lasting.names)
        return JSONResponse({"sessions": sessions, "saved": saved or [], "lasting": lasting})

    async def create(self, request: Request) -> Response:
        """Begin a session, or go on with a saved one, or with one of a server that is gone."""
        body = await self._json(request)
        if body.get("resume") is not None:
            found, failed = await run_in_threadpool(self.hub.go_on, body["resume"])
            plain = [one.plain() for one in found]
            return JSONResponse(plain[0] | {"sessions": plain, "failed": failed}, 201)
        if body.get("restore") is not None:
            work = partial(self.hub.restore, body["restore"], body.get("id"))
            served = await run_in_threadpool(work)
        else:
            work = partial(self.hub.create, [self.hub.wanted(body)], body.get("id"))
            (served,) = await run_in_threadpool(work)
        if body.get("source") is not None:
            try:
                await self._read(served, body)
            except (ValueError, OSError):
                self.hub.close(served, "its source could not be opened")
                raise
        return JSONResponse(served.plain(), 201)

    async def show(self, request: Request) -> Response:
        """Answer with one session."""
        return JSONResponse(self._of(request).plain())

    async def close(self, request: Request) -> Response:
        """End a session."""
        await run_in_threadpool(self.hub.close, self._of(request), "it was closed")
        return Response(status_code=204)

    async def frame(self, request: Request) -> Response:
        """Take a picture, or a picture and sound."""
        served, limits = self._of(request), self.limits
        if request.headers.get("content-type", "").startswith("image/"):
            at = request.query_params.get("time")
            at = None if at is None else _float(at)
            data = await read_body(request.stream(), limits.frame_bytes)

            def work() -> tuple[int, int]:
                return push(served, read_picture(served, data, limits), None, at)
        else:
            body = await self._json(request)

            def work() -> tuple[int, int]:
                at = read_number(body.get("time"), "time")
                return push(served, *read_pushed(served, body, limits), at)

        pieces, dropped = await run_in_threadpool(work)
        return JSONResponse({"pieces": pieces, "dropped": dropped})

    async def _read(self, served: Served, body: dict[str, Any]) -> None:
        pace = read_pace(body.get("pace"))

        def work() -> None:
            source = self.hub.allowed.find(body.get("source"))
            self.hub.read(served.group, source, pace=pace)

        await run_in_threadpool(work)

    async def read(self, request: Request) -> Response:
        """Have a session read a source by itself."""
        served = self._of(request)
        await self._read(served, await self._json(request))
        return JSONResponse(served.plain(), 202)

    async def stop(self, request: Request) -> Response:
        """Stop that."""
        served = self._of(request)
        await run_in_threadpool(self.hub.stop_reading, served)
        return JSONResponse(served.plain())

    async def upload(self, request: Request) -> Response:
        """Take a whole file, and read it."""
        served, most = self._of(request), self.limits.upload_bytes
        path, total = self.hub.upload(), 0
        try:
            with path.open("wb") as file:
                async for chunk in request.stream():
                    total += len(chunk)
                    if total > most:
                        raise too_large("a file", most)
                    await run_in_threadpool(file.write, chunk)
            source = Source("file", str(path), "upload")
            await run_in_threadpool(self.hub.read, served.group, source)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return JSONResponse(served.plain(), 202)

    async def query(self, request: Request) -> Response:
        """Ask, and answer with the whole answer, or with its parts as they are written."""
        self.hub.check_running()
        served, body = self._of(request), await self._json(request)
        outbox = Outbox(self.limits.events)
        served.publish.add(outbox)
        try:
            at = read_number(body.get("at"), "at")
            work = partial(served.ask, body.get("text"), at=at, id=body.get("id"))
            question = await run_in_threadpool(work)
        except BaseException:
            served.publish.remove(outbox)
            raise
        messages = answer_messages(served, question.id, outbox)
        await anext(messages)  # so that it is tidied up, whatever becomes of the response
        if body.get("stream"):
            return StreamingResponse(as_events(messages), media_type=SSE)
        async for _ in messages:
            pass
        if question.cut:
            raise RefusedError(f"the answer was cut: {question.why}", "cut", 503)
        names = ("id", "asked_at", "first_token_ms")
        found = {name: getattr(question, name) for name in names}
        return JSONResponse({"text": question.answer} | found)

    async def save(self, request: Request) -> Response:
        """Save a session."""
        name = await run_in_threadpool(self.hub.save, self._of(request))
        return JSONResponse({"saved": name})

    async def branch(self, request: Request) -> Response:
        """Begin a session that goes on from where another one is."""
        body, id = await self._json(request), self._of(request).id
        new = await run_in_threadpool(self.hub.branch, id, body.get("id"))
        return JSONResponse(new.plain(), 201)

    async def restore(self, request: Request) -> Response:
        """Begin a session that goes on from what was saved under a name."""
        body, name = await self._json(request), request.path_params["id"]
        new = await run_in_threadpool(self.hub.restore, name, body.get("id"))
        return JSONResponse(new.plain(), 201)

    async def map(self, request: Request) -> Response:
        """Answer with what every layer holds."""
        return JSONResponse(await run_in_threadpool(self._of(request).map))

    async def picture(self, request: Request) -> Response:
        """Answer with the last picture as the model sees it."""
        return await _png(self._of(request).picture)

    async def thumbnail(self, request: Request) -> Response:
        """Answer with a small picture of about a time."""
        found = self._of(request).thumbnails.nearest(request.path_params["seconds"])
        return await _png(found)


async def _png(picture: np.ndarray | None) -> Response:
    if picture is None:
        raise RefusedError("no picture has come yet.", "no_picture", 404)
    headers = {"cache-control": "no-store"}
    data = await run_in_threadpool(encode_png, picture)
    return Response(data, media_type="image/png", headers=headers)


def _float(text: str) -> float | None:
    try:
        return read_number(float(text), "time")
    except ValueError as error:
        raise RefusedError(f"time must be a number of seconds, got {shown(text)}.") from error


async def answer_messages(served: Served, id: str, outbox: Outbox) -> AsyncIterator[dict[str, Any]]:
    """Yield an empty message, then those about one answer; it is cut if nobody reads to its end."""
    done = False
    try:
        yield {}
        while not done:
            message = await outbox.get()
            if message is None:
                return
            if message.get("id") == id and message["type"].startswith("response."):
                done = message["type"] == "response.text.done"
                yield message
    finally:
        served.publish.remove(outbox)
        if not done:
            served.questions.cut(id, "nobody read the answer")


async def as_events(messages: AsyncIterator[dict[str, Any]]) -> AsyncIterator[str]:
    """Yield messages as server-sent events."""
    async for message in messages:
        yield f"data: {json.dumps(message)}\n\n"

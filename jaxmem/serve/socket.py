"""The WebSocket `/v1/video/chat/stream`: pictures, sound and questions in, answers out."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.concurrency import run_in_threadpool
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from jaxmem.serve.hub import Hub
from jaxmem.serve.limits import RefusedError, shown
from jaxmem.serve.outbox import SKIPPED, Outbox
from jaxmem.serve.served import Served
from jaxmem.serve.wire import push, read_json, read_number, read_pace, read_pushed, too_large

PATH = "/v1/video/chat/stream"
CONFIG = "session.config"
RECEIVED = (
    *(CONFIG, "video.frame", "audio.chunk", "video.query", "video.done", "session.save"),
    *("session.branch", "session.watch", "session.unwatch", "session.source", "session.memory"),
)
"""Types of the messages that clients send."""
SENT = (
    *("session.created", "session.added", "response.waiting", "response.start"),
    *("response.text.delta", "response.text.done", "memory.map", "session.stats"),
    *("session.saved", "session.branched", "session.watching", "session.unwatched"),
    *("session.alert", "source.started", "source.lost", "source.resumed"),
    *("source.ended", "session.ended", "error"),
)
"""Types of the messages that a server sends."""
CONFIG_SECONDS = 30.0
"""Until the first message."""
CLOSE_SECONDS = 5.0
MOST_SESSIONS = 4
"""Memories that see the stream of one connection."""
SOONEST = 0.2
"""Seconds between two maps or statistics, at least."""
GONE = (WebSocketDisconnect, OSError)
"""Raised where nobody is there any more."""
DONE, TOO_SLOW = 1000, 1013
"""Codes that a connection is closed with."""


class Connection:
    """One client, and the sessions that it looks at."""

    def __init__(self, hub: Hub, websocket: WebSocket):
        """Serve a connection that was accepted."""
        self.hub, self.limits, self.websocket = hub, hub.limits, websocket
        self.outbox = Outbox(hub.limits.events)
        self._first: Served | None = None
        self._tasks: TaskGroup
        self._table: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
            "video.frame": self._frame,
            "audio.chunk": self._frame,
            "video.query": self._query,
            "video.done": self._finish,
            "session.save": self._save,
            "session.branch": self._branch,
            "session.watch": self._watch,
            "session.unwatch": self._unwatch,
            "session.source": self._source,
            "session.memory": self._add,
        }
        assert (CONFIG, *self._table) == RECEIVED

    @property
    def begun(self) -> bool:
        """Return whether it looks at a session."""
        return self._first is not None

    @property
    def sessions(self) -> list[Served]:
        """Return the sessions that see the client's stream.

        Raises:
          RefusedError: if it has not begun, or all of them have ended.
        """
        if self._first is None:
            raise RefusedError(f"send {CONFIG} first.", "order")
        found = self._first.group
        if not found:
            self._first.live.check_open()
        return found

    async def run(self) -> None:
        """Serve until the client leaves, reads too slowly, or its sessions have ended."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self._to_its_end, self._read)
                self._tasks.start_soon(self._to_its_end, self._write)
        finally:
            for one in [] if self._first is None else self._first.peers:
                one.publish.remove(self.outbox)
        if self.websocket.application_state is WebSocketState.CONNECTED:
            code = TOO_SLOW if self.outbox.slow else DONE
            with anyio.move_on_after(CLOSE_SECONDS), suppress(*GONE, RuntimeError):
                await self.websocket.close(code)

    async def _to_its_end(self, job: Callable[[], Awaitable[None]]) -> None:
        with suppress(*GONE):
            await job()
        self._tasks.cancel_scope.cancel()

    async def _write(self) -> None:
        """Send messages until a reader is too slow, or all sessions have ended."""
        ended: set[str] = set()
        while (message := await self.outbox.get()) is not None:
            try:
                await self.websocket.send_text(json.dumps(message))
            except RuntimeError:  # the client is closing the connection
                return
            if message["type"] == "session.ended" and self._first is not None:
                ended.add(message["session"])
                if ended >= {one.id for one in self._first.peers}:
                    return

    async def _read(self) -> None:
        begin = time.monotonic()
        while True:
            left = begin + CONFIG_SECONDS - time.monotonic()
            text = None
            with anyio.move_on_after(max(left, 0.0) if self._first is None else None):
                text = await self._text()
            if text is None:
                return
            message: dict[str, Any] = {}
            try:
                message = read_json(text)
                await self._take(message)
            except (ValueError, OSError) as error:
                about = {"id": message["id"]} if isinstance(message.get("id"), str) else {}
                self.outbox(error_of(error) | about)

    async def _text(self) -> str | bytes:
        """Return the next message.

        Raises:
          WebSocketDisconnect: if there is none.
        """
        message = await self.websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", DONE))
        text = message.get("text")
        data = message.get("bytes", b"") if text is None else text
        if len(data) > self.limits.message_bytes:
            return json.dumps({"type": "", "bytes": len(data)})  # `_take` refuses it
        return data

    async def _take(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        if kind == "" and message.get("bytes"):
            raise too_large("a message", self.limits.message_bytes)
        if kind == CONFIG:
            if self._first is not None:
                raise RefusedError(
                    f"{CONFIG} is the first message and comes once: open another connection.",
                    "order",
                )
            await self._configure(message)
            return
        handler = self._table.get(kind) if isinstance(kind, str) else None
        if handler is None:
            known = ", ".join(RECEIVED)
            raise RefusedError(f"type must be one of {known}; got {shown(kind)}.", "unknown_type")
        await handler(message)

    async def _configure(self, message: dict[str, Any]) -> None:
        """Begin sessions, or join some; then tell what is asked for, every so often."""
        names, every = message.get("subscribe") or [], read_number(message.get("every"), "every")
        if not isinstance(names, list) or not all(name in SKIPPED for name in names):
            raise RefusedError(f"subscribe lists some of {', '.join(SKIPPED)}; got {shown(names)}.")
        if message.get("session") is not None:
            first = self.hub.get(message["session"])
        elif message.get("restore") is not None:
            work = partial(self.hub.restore, message["restore"], brief=True)
            first = await run_in_threadpool(work)
        else:
            wanted = [self.hub.wanted({**message, **one}) for one in self._memories(message)]
            work = partial(self.hub.create, wanted, message.get("id"), brief=True)
            first, *_ = await run_in_threadpool(work)
        self._first, found = first, first.group or [first]
        for one in found:
            one.publish.add(self.outbox, looks=True)
        about = [one.plain() for one in found]
        self.outbox({"type": "session.created", "session": first.plain(), "sessions": about})
        if names:
            self._tasks.start_soon(self._tell, names, max(every or 1.0, SOONEST))

    def _memories(self, message: dict[str, Any]) -> Sequence[dict[str, Any]]:
        """Return what a message says of every memory."""
        given = message.get("memories") or [{}]
        fits = isinstance(given, list) and 1 <= len(given) <= MOST_SESSIONS
        if not fits or not all(isinstance(one, dict) for one in given):
            raise RefusedError(
                f'memories lists up to {MOST_SESSIONS} objects, as {{"memory": "omnimem", '
                f'"budget": "96"}}; got {shown(given)}.'
            )
        return given

    async def _tell(self, names: Sequence[str], every: float) -> None:
        """Send statistics and maps; a map that waits for its engine holds up nothing else."""
        drawing: set[str] = set()
        limiter = anyio.CapacityLimiter(MOST_SESSIONS)  # threads that frames do not wait for

        async def draw(one: Served) -> None:
            drawing.add(one.id)
            with suppress(ValueError):  # it has ended meanwhile
                found = await anyio.to_thread.run_sync(one.map, limiter=limiter)
                self.outbox(self._about(one, "memory.map", map=found))
            drawing.remove(one.id)

        while self._first is not None:
            for one in self._first.group:
                if "session.stats" in names:
                    self.outbox(self._about(one, "session.stats", stats=one.stats()))
                if "memory.map" in names and one.id not in drawing:
                    self._tasks.start_soon(draw, one)
            await anyio.sleep(every)

    def _about(self, served: Served, kind: str, **more: Any) -> dict[str, Any]:
        return {"type": kind, "session": served.id, **more}

    async def _frame(self, message: dict[str, Any]) -> None:
        name = "image" if message["type"] == "video.frame" else "audio"
        given = {name: message.get("data")}
        at = read_number(message.get("time"), "time")

        def work() -> None:
            first = self.sessions[0]
            push(first, *read_pushed(first, given, self.limits), at)

        await run_in_threadpool(work)

    async def _query(self, message: dict[str, Any]) -> None:
        self.hub.check_running()
        at = read_number(message.get("at"), "at")
        for one in self.sessions:
            work = partial(one.ask, message.get("text"), at=at, id=message.get("id"))
            await run_in_threadpool(work)

    async def _finish(self, message: dict[str, Any]) -> None:
        del message
        for one in self.sessions:
            await run_in_threadpool(one.finish)

    async def _save(self, message: dict[str, Any]) -> None:
        del message
        for one in self.sessions:
            saved = await run_in_threadpool(self.hub.save, one)
            self.outbox(self._about(one, "session.saved", saved=saved))

    async def _branch(self, message: dict[str, Any]) -> None:
        del message
        for one in self.sessions:
            new = await run_in_threadpool(self.hub.branch, one.id)
            self.outbox({"type": "session.branched", "session": new.plain(), "of": one.id})

    async def _watch(self, message: dict[str, Any]) -> None:
        text, every, id = (message.get(name) for name in ("text", "every", "id"))
        for one in self.sessions:
            one.questions.watch(text, every, one.seconds, id)

    async def _unwatch(self, message: dict[str, Any]) -> None:
        id, sessions = message.get("id"), self.sessions
        mine = [one for one in sessions if any(x["id"] == id for x in one.questions.standing())]
        for one in mine or sessions[:1]:
            one.questions.unwatch(id)

    async def _source(self, message: dict[str, Any]) -> None:
        if message.get("source") is None:
            await run_in_threadpool(self.hub.stop_reading, self.sessions[0])
            return

        def work() -> None:
            source = self.hub.allowed.find(message["source"])
            self.hub.read(self.sessions, source, pace=read_pace(message.get("pace")))

        await run_in_threadpool(work)

    async def _add(self, message: dict[str, Any]) -> None:
        sessions, wanted = self.sessions, self.hub.wanted(message)
        if len(sessions) >= MOST_SESSIONS:
            raise RefusedError(f"{MOST_SESSIONS} memories see this stream, more are not taken.")
        await run_in_threadpool(self.hub.join, sessions[0], wanted)


def error_of(error: Exception) -> dict[str, Any]:
    """Return the message that says what was refused."""
    code = error.code if isinstance(error, RefusedError) else "invalid_request"
    return {"type": "error", "code": code, "message": str(error)}

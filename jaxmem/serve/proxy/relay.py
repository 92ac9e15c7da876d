"""A WebSocket on its way to a replica and back, and on to another one when that is lost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup
from starlette.websockets import WebSocket, WebSocketState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from jaxmem.serve.limits import RefusedError, shown
from jaxmem.serve.proxy.replica import LostError, Replica
from jaxmem.serve.proxy.replicas import UNSURE, Replicas
from jaxmem.serve.running import PONG_SECONDS
from jaxmem.serve.socket import (
    CLOSE_SECONDS,
    CONFIG,
    CONFIG_SECONDS,
    DONE,
    GONE,
    PATH,
    TOO_SLOW,
    error_of,
)
from jaxmem.serve.table import STOPPING
from jaxmem.serve.wire import read_json

ABNORMAL, RESTARTS = 1006, 1012
"""Codes: a connection ended without a word; the server starts again."""
TRIES = 6
MOVE_SECONDS, AGAIN_SECONDS = 60.0, 0.5
"""That a replica is looked for which goes on with a session; and between two looks."""
MOVED = (
    "the server of this session is gone. It goes on at another one from its last save: send again "
    "what came since, and ask again what was not answered."
)
UNSAVED = "its server was lost, and nothing of it was saved"


@dataclass(eq=False)
class Upstream:
    """The connection to a replica; `over` is set when it has ended and what follows is settled."""

    replica: Replica
    connection: ClientConnection
    over: anyio.Event = field(default_factory=anyio.Event)


class Relay:
    """One client, and the replica that its sessions are on."""

    def __init__(self, replicas: Replicas, websocket: WebSocket, token: str | None):
        """Serve a client that was accepted."""
        self._replicas, self._websocket = replicas, websocket
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._upstream: Upstream | None = None
        self._sessions: list[str] = []  # open ones that it looks at
        self._config: Mapping[str, Any] = {}
        self._begun = False  # what was asked for first may still come
        self._stopping = False  # its replica says so
        self._code = DONE
        self._tasks: TaskGroup

    async def run(self) -> None:
        """Serve it to its end."""
        try:
            async with anyio.create_task_group() as self._tasks:
                with suppress(*GONE, RuntimeError):
                    await self._read()
                self._tasks.cancel_scope.cancel()
        finally:
            self._leave()
        if self._websocket.application_state is WebSocketState.CONNECTED:
            with anyio.move_on_after(CLOSE_SECONDS), suppress(*GONE, RuntimeError):
                await self._websocket.close(self._code)

    def _leave(self) -> None:
        """Let go of the replica."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.connection.transport.abort()

    def _end(self, code: int) -> None:
        self._code = code
        self._tasks.cancel_scope.cancel()

    async def _say(self, message: Mapping[str, Any]) -> None:
        await self._websocket.send_text(json.dumps(message))

    # From the client.

    async def _read(self) -> None:
        """Pass on what the client sends."""
        with anyio.move_on_after(CONFIG_SECONDS) as first:
            while True:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                text = message.get("text")
                data = message.get("bytes", b"") if text is None else text
                if self._sessions:
                    first.deadline = float("inf")
                    await self._pass_on(data)
                    continue
                try:
                    await self._pass_on(await self._place(data))
                except RefusedError as error:
                    if error.code in UNSURE:  # clients try again by themselves
                        self._code = TOO_SLOW
                        return
                    await self._say(error_of(error))

    async def _place(self, data: str | bytes) -> str | bytes:
        """Connect to the replica that a message is for, which may begin sessions; return it."""
        try:
            message = read_json(data)
        except RefusedError:  # the replica says what is wrong with it
            message = {}
        begins = message.get("type") == CONFIG and not self._begun
        if begins:
            self._config = message
        for _ in range(TRIES):
            replica = self._replicas.any()
            if begins and isinstance(message.get("session"), str):
                replica = await self._replicas.find(message["session"]) or replica
            elif begins and message.get("restore") is None:
                message, replica = await self._named(message)
                data = json.dumps(message)
            try:
                if self._upstream is None or (begins and self._upstream.replica is not replica):
                    self._leave()
                    self._upstream = await self._connected(replica)
                self._begun = self._begun or begins
                return data
            except LostError:
                await replica.check()
        raise RefusedError("no replica takes connections: try again later.", UNSURE[0], 503)

    async def _named(self, message: Mapping[str, Any]) -> tuple[dict[str, Any], Replica]:
        """Return the message that begins a session with an id, and where it begins."""
        id = message.get("id")
        if id is None:
            id = self._replicas.new_id()
        elif isinstance(id, str) and await self._replicas.find(id) is not None:
            raise RefusedError(f"there is a session {shown(id)} already; name another.", "taken")
        return {**message, "id": id}, self._replicas.order(str(id))[0]

    async def _pass_on(self, data: str | bytes) -> None:
        """Send a message to the replica; what a lost one did not take waits for the next."""
        while (upstream := self._upstream) is not None:
            try:
                await upstream.connection.send(data)
                return
            except ConnectionClosed:
                await upstream.over.wait()
                if self._upstream is upstream:
                    self._upstream = None

    # To the client.

    async def _connected(self, replica: Replica) -> Upstream:
        """Connect to a replica, and pass on what it says from now on.

        Raises:
          LostError: if it cannot be reached.
        """
        more = {"ping_timeout": PONG_SECONDS, "additional_headers": self._headers, "proxy": None}
        try:
            with replica.waited_for():
                url = replica.url(PATH, "ws")
                found = await connect(url, compression=None, max_size=None, **more)
        except (OSError, WebSocketException) as error:
            raise LostError(f"{replica.name}: {error}") from error
        upstream = Upstream(replica, found)
        self._tasks.start_soon(self._hear, upstream)
        return upstream

    async def _hear(self, upstream: Upstream) -> None:
        """Pass on what a replica says, and settle what comes after it."""
        with suppress(LostError, ConnectionClosed), upstream.replica.waited_for():
            async for data in upstream.connection:
                try:
                    await self._pass_back(upstream.replica, data)
                except (*GONE, RuntimeError):
                    self._end(DONE)
                    return
        upstream.connection.transport.abort()
        code = upstream.connection.close_code
        lost = code in (None, ABNORMAL, RESTARTS) or self._stopping
        if self._upstream is upstream:
            with suppress(*GONE, RuntimeError):
                if not lost or not await self._move(upstream.replica):
                    self._end(RESTARTS if lost else code or DONE)
        upstream.over.set()

    async def _pass_back(self, replica: Replica, data: str | bytes) -> None:
        if isinstance(data, bytes):
            await self._websocket.send_bytes(data)
            return
        if not self._sessions and data.startswith('{"type": "error"'):
            self._begun = False
        if '"session.created"' in data or '"session.added"' in data or '"session.ended"' in data:
            message = json.loads(data)
            found = message.get("sessions", [message.get("session")])
            if message["type"] in ("session.created", "session.added"):
                self._replicas.note(found, replica)
                new = [one["id"] for one in found if one["state"] == "open"]
                self._sessions += [id for id in new if id not in self._sessions]
            elif message["type"] == "session.ended":
                if message["why"] == STOPPING:  # it goes on, elsewhere
                    self._stopping = True
                    return
                self._sessions = [id for id in self._sessions if id != message["session"]]
        await self._websocket.send_text(data)

    async def _move(self, old: Replica) -> bool:
        """Go on at another replica; return whether there is anything to go on with."""
        await old.check()
        end = anyio.current_time() + MOVE_SECONDS
        while True:
            replica = None
            try:
                for session in self._sessions:
                    replica = await self._replicas.find(session, fresh=True)
                    if replica is not None:
                        await self._rejoin(replica, session)
                        return True
                break
            except (LostError, ConnectionClosed) as error:
                refused = RefusedError(
                    f"the session's servers are lost, one after another: {error}"
                )
                if replica is not None:
                    await replica.check()
            except RefusedError as error:
                refused = error
            if anyio.current_time() > end:
                await self._say(error_of(refused))
                return False
            await anyio.sleep(AGAIN_SECONDS)
        for session in self._sessions:
            await self._say({"type": "session.ended", "why": UNSAVED, "session": session})
        return False

    async def _rejoin(self, replica: Replica, session: str) -> None:
        """Look at a session on another replica from now on.

        Raises:
          LostError: if it cannot be reached.
        """
        upstream = await self._connected(replica)
        about = {name: self._config.get(name) for name in ("subscribe", "every")}
        await self._say(error_of(RefusedError(MOVED, "moved")))
        await upstream.connection.send(json.dumps({"type": CONFIG, "session": session, **about}))
        self._upstream, self._stopping = upstream, False

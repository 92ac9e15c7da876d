"""Requests over HTTP on their way to a replica and back, as streams of bytes.

A replica that is lost before it has begun to answer is replaced by another one, which the request
goes to anew: what the first one did of it is lost with it, unless that was saved just then.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import anyio
import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from jaxmem.serve.http import PATH
from jaxmem.serve.limits import Limits, RefusedError, checked_name
from jaxmem.serve.openai import CHAT, SESSION
from jaxmem.serve.proxy.exchange import Exchange
from jaxmem.serve.proxy.replica import LostError, Replica
from jaxmem.serve.proxy.replicas import SILENT, Replicas
from jaxmem.serve.wire import read_body, read_json

TRIES = 6
"""Replicas that one request may lose."""
STOPPING, GONE = "stopping", "no_session"
FULL = ("full", "bytes", "memories", STOPPING)
"""Codes of errors that another replica may not answer with."""
WAIT_SECONDS, WAITS = 0.5, 120
"""For the replica of a session to stop, so that another one can go on with it; and how often."""
LOST = "lost"


class Forward:
    """The handler of everything that one replica answers."""

    def __init__(self, replicas: Replicas, client: httpx.AsyncClient, limits: Limits):
        """Pass requests on to replicas."""
        self._replicas, self._client, self._limits = replicas, client, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        request = Request(scope, receive)
        exchange = Exchange(self._client, request, receive, send, self._limits.message_bytes)
        refusals: list[RefusedError] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(exchange.until_left, tasks.cancel_scope)
            try:
                await self._serve(request, exchange)
            except RefusedError as error:
                refusals.append(error)
            except ClientDisconnect:
                pass
            tasks.cancel_scope.cancel()
        if refusals:
            raise refusals[0]

    async def _serve(self, request: Request, exchange: Exchange) -> None:
        path, post = request.url.path, request.method == "POST"
        words = path.removeprefix(f"{PATH}/").split("/")
        if post and (path == PATH or words[1:] == ["restore"]):
            await self._begin(exchange)
        elif path.startswith(f"{PATH}/"):
            await self._to_session(exchange, words[0])
        elif path == CHAT and SESSION in request.headers:
            await self._to_session(exchange, request.headers[SESSION])
        else:
            await self._to_any(exchange, lambda: self._replicas.usable)

    async def _begin(self, exchange: Exchange) -> None:
        """Begin a session under its name, which it is given if it has none."""
        most = self._limits.message_bytes
        given = read_json(await read_body(exchange.body.parts(), most))
        if given.get("resume") is not None:
            raise RefusedError("resume is for proxies: this one goes on with sessions by itself.")
        if given.get("id") is None:
            given["id"] = self._replicas.new_id()
        elif await self._replicas.find(checked_name(given["id"])) is not None:
            raise RefusedError(
                f"there is a session {given['id']} already; name another.", "taken", 409
            )
        exchange.content = json.dumps(given).encode()
        await self._to_any(exchange, partial(self._replicas.order, given["id"]))

    async def _to_any(self, exchange: Exchange, order: Callable[[], list[Replica]]) -> None:
        """Send a request to the first replica that takes it."""
        refused: set[Replica] = set()
        for _ in range(TRIES):
            self._replicas.any()  # or there is none
            left = [one for one in order() if one not in refused] or order()
            code = await self._to(left[0], exchange, FULL if len(left) > 1 else ())
            if code is None:
                return
            if code != LOST:
                refused.add(left[0])
        raise _lost()

    async def _to_session(self, exchange: Exchange, id: str) -> None:
        """Send a request to the replica of a session, wherever it goes on."""
        held, losses, fresh = (GONE, STOPPING), 0, False
        for wait in range(WAITS):
            try:
                found = await self._replicas.find(id, fresh=fresh)
            except RefusedError as error:
                if error.code != SILENT or wait == WAITS - 1:
                    raise
                await anyio.sleep(WAIT_SECONDS)
                continue
            fresh = False
            replica = self._replicas.any() if found is None else found
            code = await self._to(replica, exchange, held)
            if code is None:
                return
            if code == LOST:
                losses += 1
                if losses == TRIES:
                    break
            elif code == GONE:
                fresh, held = True, (STOPPING,)  # once: then it is nowhere
            else:
                await anyio.sleep(WAIT_SECONDS)
                await replica.check()
        raise _lost()

    async def _to(self, replica: Replica, exchange: Exchange, held: tuple[str, ...]) -> str | None:
        """Return which error among some it answered with, LOST, or None: it is answered."""
        try:
            return await exchange.to(replica, held)
        except LostError as error:
            await replica.check()
            if not exchange.body.again:
                raise _lost() from error
            return LOST


def _lost() -> RefusedError:
    return RefusedError(
        "the server that had this request was lost, and it could not be repeated: send it again.",
        LOST,
        502,
    )

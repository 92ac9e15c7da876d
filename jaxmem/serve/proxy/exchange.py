"""One request and its answer, as bytes that are passed on as they come."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anyio
import httpx
from starlette.requests import Request
from starlette.types import Receive, Send

from jaxmem.serve.guard import HEADERS, error_body
from jaxmem.serve.http import SSE
from jaxmem.serve.openai import CHAT
from jaxmem.serve.proxy.body import Body
from jaxmem.serve.proxy.replica import LostError, Replica

HOPS = frozenset(
    (
        *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te"),
        *("trailer", "transfer-encoding", "upgrade", "proxy-connection"),
    )
)
"""Headers that are about one connection."""
READ = HOPS | {"host", "origin", "expect"}
"""Headers of requests that the proxy has read, and does not pass on."""
CUT = "the server that wrote this answer was lost; ask again, the session goes on elsewhere."


class Exchange:
    """A request, which may be sent to one replica after another until one answers.

    Attributes:
      body: of the request.
      content: what is sent in place of it; None: nothing is.
    """

    def __init__(
        self, client: httpx.AsyncClient, request: Request, receive: Receive, send: Send, most: int
    ):
        """Take a request; bodies of at most so many bytes can be sent again."""
        self.body, self.content = Body(receive, most), None
        self._client, self._request, self._send = client, request, send

    content: bytes | None

    async def until_left(self, scope: anyio.CancelScope) -> None:
        """Cancel a scope when the client leaves."""
        await self.body.gone()
        scope.cancel()

    async def to(self, replica: Replica, held: tuple[str, ...]) -> str | None:
        """Send the request to a replica, and its answer to the client.

        Args:
          replica: that answers.
          held: codes of errors that the client does not hear.

        Returns:
          The code of such an error; None: the client has its answer, or as much as there was.

        Raises:
          LostError: if the replica was lost before it began to answer.
          ClientDisconnect: if the client has left.
        """
        response = None
        try:
            with replica.waited_for():
                response = await self._client.send(await self._made(replica), stream=True)
                if held and response.status_code in (404, 503):
                    data = b"".join([part async for part in response.aiter_raw()])
                    code = _code(data)
                    if code in held:
                        return code
                    parts = _whole(data)
                else:
                    parts = response.aiter_raw()
            await self._answer(replica, response, parts)
        finally:
            if response is not None:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        return None

    async def _made(self, replica: Replica) -> httpx.Request:
        request, scope = self._request, self._request.scope
        left = READ | ({"authorization"} if "authorization" in self._client.headers else set())
        content: bytes | AsyncIterator[bytes] | None = self.content
        if content is not None:
            left |= {"content-length"}
        elif {"content-length", "transfer-encoding"} & set(request.headers):
            content = self.body.parts()
        else:
            content = None
            async for _ in self.body.parts():
                pass
        headers = [(k, v) for k, v in request.headers.raw if k.decode("latin-1") not in left]
        path = scope.get("raw_path") or request.url.path.encode()
        query = scope.get("query_string", b"")
        url = httpx.URL(replica.url("/")).copy_with(
            raw_path=path + (b"?" + query if query else b"")
        )
        return self._client.build_request(request.method, url, headers=headers, content=content)

    async def _answer(
        self, replica: Replica, response: httpx.Response, parts: AsyncIterator[bytes]
    ) -> None:
        """Send an answer on, as far as it comes."""
        left = HOPS | set(HEADERS)  # which the proxy sends itself
        headers = [
            (k, v) for k, v in response.headers.raw if k.decode("latin-1").lower() not in left
        ]
        status = response.status_code
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        events = response.headers.get("content-type", "").startswith(SSE)
        try:
            with replica.waited_for():
                async for part in whole_events(parts) if events else parts:
                    await self._send(_part(part))
        except LostError:
            if not events:
                return  # the client sees that there is no end
            await self._send(_part(self._cut()))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    def _cut(self) -> bytes:
        """Return the end of an answer in events that has none."""
        if self._request.url.path == CHAT:
            error = error_body(CUT, "cut", "server_error")
            return f"data: {json.dumps(error)}\n\ndata: [DONE]\n\n".encode()
        return f"data: {json.dumps({'type': 'error', 'code': 'cut', 'message': CUT})}\n\n".encode()


def _part(data: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": True}


def _code(data: bytes) -> str | None:
    """Return the code of an error in a body; None: it is something else."""
    try:
        return json.loads(data)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def whole_events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield server-sent events, none of them in halves: what follows one may be of another hand."""
    rest = b""
    async for part in parts:
        done, end, rest = (rest + part).rpartition(b"\n\n")
        if end:
            yield done + end
    if rest:
        yield rest

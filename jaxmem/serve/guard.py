"""Who may use a server, what every answer of it carries, and its errors as clients read them."""

from __future__ import annotations

import hmac
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from jaxmem.serve.limits import LOCAL, RefusedError

OPEN, STATIC = ("/", "/health"), "/static/"
"""What needs no token: it tells nothing of the sessions, and imports of a page send none."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src "
    "'self' blob: data:; connect-src 'self'; font-src 'self'; manifest-src 'self'; media-src "
    "'self' blob:; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(self), display-capture=(self)",
}
"""Of every answer: the page loads nothing from elsewhere, and sends its address nowhere."""


def error_body(message: str, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """Return the body of an error, as OpenAI has it."""
    return {"error": {"type": kind, "message": message, "code": code}}


def _refused(request: Request, error: Exception) -> Response:
    del request
    code, status = "invalid_request", 500 if isinstance(error, OSError) else 400
    if isinstance(error, RefusedError):
        code, status = error.code, error.status
    return JSONResponse(error_body(str(error), code), status)


def _http_error(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path}: {error.detail}."
    return JSONResponse(error_body(message, "http"), error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> Response:
    del request
    message = f"the server could not do that ({type(error).__name__}); its log says more."
    return JSONResponse(error_body(message, "internal", "server_error"), 500)


HANDLERS: Any = {
    HTTPException: _http_error,
    ValueError: _refused,
    OSError: _refused,
    Exception: _failed,
}
"""Of a starlette application."""


class Guard:
    """Refuses requests without the token, of pages of other sites, and under a foreign name."""

    def __init__(self, app: ASGIApp, token: str | None, local: bool):
        """Guard an application."""
        self.app, self.token, self.local = app, token, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            status, message, code = refused
            response = JSONResponse(error_body(message, code), status)
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).send_denial_response(response)
            else:
                await response(scope, receive, send)
            return

        async def send_with(message: Any) -> None:
            if message["type"] == "http.response.start":
                static = {"cache-control": "no-cache"} if scope["path"].startswith(STATIC) else {}
                more = [(k.encode(), v.encode()) for k, v in {**HEADERS, **static}.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        await self.app(scope, receive, send_with)

    def _refused(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        host = headers.get("host", "")
        if self.local and urlsplit(f"//{host}").hostname not in LOCAL:
            return 403, f"this server is not {host!r}: use 127.0.0.1 or localhost.", "host"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, f"pages of {origin!r} may not use this server.", "origin"
        path = scope["path"]
        if self.token is None or path in OPEN or path.startswith(STATIC):
            return None
        given = headers.get("authorization", "")
        given = given[7:] if given[:7].lower() == "bearer " else ""
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        given = given or query.get("token", [""])[0]
        if hmac.compare_digest(given.encode(), self.token.encode()):
            return None
        return 401, "give the server's token: Authorization: Bearer TOKEN, or ?token=.", "token"

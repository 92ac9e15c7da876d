"""The server as an ASGI application: routes, and the files of its page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from jaxmem.serve import http, socket
from jaxmem.serve.about import About
from jaxmem.serve.connections import Connections
from jaxmem.serve.guard import HANDLERS, Guard
from jaxmem.serve.hub import Hub
from jaxmem.serve.limits import LOCAL, RefusedError
from jaxmem.serve.metrics import Metrics
from jaxmem.serve.openai import CHAT, Chat

PAGE = Path(__file__).parent / "page"
TIDY_SECONDS = 0.5
log = logging.getLogger("jaxmem.serve")


def make_app(
    hub: Hub, *, token: str | None = None, host: str | None = None, replica: bool = False
) -> Starlette:
    """Return the application that serves a hub.

    Its `state.connections` are the open WebSockets.

    Args:
      hub: of the sessions; the application does not end it.
      token: that every request needs; None: none.
      host: the address that is listened on. Where it is this machine's own, requests that name
        another one are refused, so that no web page reaches the server under a name of its own.
      replica: whether a proxy says which sessions it goes on with.
    """
    metrics, connections = Metrics(hub), Connections(hub)

    async def endpoint(websocket: WebSocket) -> None:
        await connections(websocket)

    async def health(request: Request) -> Response:
        del request
        status = "stopping" if hub.stopping else "ok"
        more = {"sessions": len(hub.sessions), "replica": replica}
        return JSONResponse({"status": status, **more})

    async def page(request: Request) -> Response:
        del request
        if not (PAGE / "index.html").is_file():
            raise RefusedError("this installation has no page.", "no_page", 404)
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        tasks = [asyncio.create_task(_again(work)) for work in (hub.tidy, hub.keep_up)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    routes = [
        *http.Sessions(hub).routes(),
        Route("/v1/models", About(hub).models),
        Route(CHAT, Chat(hub).chat, methods=["POST"]),
        WebSocketRoute(socket.PATH, endpoint),
        Route("/metrics", metrics.show),
        Route("/health", health),
        Route("/", page),
        Mount("/static", StaticFiles(directory=PAGE, check_dir=False)),
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)
    app.state.connections = connections
    app.add_middleware(Guard, token=token, local=host in LOCAL)
    return app


async def _again(work: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        try:
            await run_in_threadpool(work)
        except Exception:
            log.exception("sessions could not be looked after")

"""The proxy as an ASGI application: the protocols of a server, spoken by many."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from jaxmem.serve.guard import HANDLERS, Guard
from jaxmem.serve.http import PATH
from jaxmem.serve.limits import LOCAL, Limits
from jaxmem.serve.proxy.forward import Forward
from jaxmem.serve.proxy.joined import Joined
from jaxmem.serve.proxy.relay import Relay
from jaxmem.serve.proxy.replica import client_of
from jaxmem.serve.proxy.replicas import Replicas
from jaxmem.serve.socket import PATH as SOCKET

PATIENCE = 10.0
"""Seconds without an answer after which a replica counts as lost."""


def make_app(
    places: Mapping[str, str | None],
    *,
    token: str | None = None,
    inner: str | None = None,
    host: str | None = None,
    patience: float = PATIENCE,
    limits: Limits | None = None,
) -> Starlette:
    """Return the application that serves the replicas of some addresses.

    Its `state.replicas` are the replicas.

    Args:
      places: addresses (http://HOST:PORT) of replicas by name; None: it has none yet.
      token: that every request needs; None: none.
      inner: that the replicas need; None: the same.
      host: as of `jaxmem.serve.app.make_app`.
      patience: seconds without an answer after which a replica counts as lost.
      limits: of messages; None: those of the class.
    """
    inner = token if inner is None else inner
    client = client_of(inner)
    replicas = Replicas(places, client, patience)
    joined = Joined(replicas)

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await Relay(replicas, websocket, inner).run()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        async with client, anyio.create_task_group() as tasks:
            tasks.start_soon(replicas.look_after)
            yield
            tasks.cancel_scope.cancel()

    forward = Forward(replicas, client, limits or Limits())
    routes = [
        Route(PATH, joined.sessions, methods=["GET"]),
        Route("/metrics", joined.metrics),
        Route("/health", joined.health),
        WebSocketRoute(SOCKET, socket),
        Route("/{path:path}", forward),
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=lifespan)
    app.state.replicas = replicas
    app.add_middleware(Guard, token=token, local=host in LOCAL)
    return app

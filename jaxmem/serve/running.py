"""Runs a server until a signal ends it: nothing is lost then that can be kept."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import anyio
import uvicorn
from starlette.applications import Starlette

from jaxmem.serve.app import make_app
from jaxmem.serve.connections import Connections
from jaxmem.serve.hub import Hub
from jaxmem.serve.limits import Limits

PONG_SECONDS = 120.0
"""That a client has to answer a ping: what it sends is not read while its session is compiled."""
CLOSING_SECONDS = 3
"""That connections get to close, once all sessions have ended."""


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
      ValueError: if the address or the port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be listened on: {error}; give another --host or --port."
        ) from error
    # Connections inherit it; asyncio leaves it out where a socket does not name its protocol.
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


class Server(uvicorn.Server):
    """A server whose first signal ends the sessions, and with them the server."""

    def __init__(self, config: uvicorn.Config, hub: Hub, sockets: Connections, grace: float):
        """Serve a hub with its WebSockets; `grace` is of `Hub.stop`."""
        super().__init__(config)
        self._hub, self._sockets, self._grace = hub, sockets, grace
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until the end."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first one lets answers finish, the second does not wait."""
        del sig, frame
        if self._hub.stopping:
            self.should_exit = self.force_exit = True
        elif self._loop is not None:
            self._hub.stopping = True
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        self._stopping = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        try:
            for trouble in await asyncio.to_thread(self._hub.stop, self._grace):
                print(trouble, file=sys.stderr, flush=True)
            with anyio.move_on_after(CLOSING_SECONDS):  # all of them hear of the end
                while self._sockets.looking:
                    await anyio.sleep(0.01)
        finally:
            self.should_exit = True


class Simple(uvicorn.Server):
    """A server that a signal ends, and its caller goes on: uvicorn's own ends the process."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal; the second one does not wait for answers."""
        del sig, frame
        self.force_exit, self.should_exit = self.should_exit, True


def config_of(app: Starlette, limits: Limits, connections: int) -> uvicorn.Config:
    """Return how an application with WebSockets is served.

    Args:
      app: that is served.
      limits: of messages.
      connections: at once.
    """
    return uvicorn.Config(
        app,
        log_level="warning",
        ws_max_size=limits.message_bytes,
        ws="websockets-sansio",
        limit_concurrency=connections,
        ws_ping_timeout=PONG_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        h11_max_incomplete_event_size=1 << 16,
        server_header=False,
    )


def run(
    hub: Hub,
    listener: socket.socket,
    *,
    grace: float,
    began: Callable[[Callable[[], None]], None] = lambda stop: None,
    **options: Any,
) -> None:
    """Serve a hub on a socket until SIGTERM or SIGINT, which end its sessions.

    Args:
      hub: of the sessions.
      listener: that listens.
      grace: seconds that answers get to finish.
      began: called with a function that does what a signal does.
      options: of `make_app`.
    """
    app = make_app(hub, **options)
    config = config_of(app, hub.limits, 4 * hub.limits.connections)
    server = Server(config, hub, app.state.connections, grace)
    began(lambda: server.handle_exit(signal.SIGTERM, None))
    asyncio.run(server.serve([listener]))

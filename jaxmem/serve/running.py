"""Runs a server until a signal ends it: nothing is lost then that can be kept."""

from __future__ import annotations

import asyncio
import socket
import sys
from types import FrameType

import anyio
import uvicorn

from jaxmem.serve.app import make_app
from jaxmem.serve.connections import Connections
from jaxmem.serve.hub import Hub

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
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise ValueError(
            f"{host}:{port} cannot be listened on: {error}; give another --host or --port."
        ) from error


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


def run(
    hub: Hub, listener: socket.socket, *, token: str | None = None, host: str = "", grace: float
) -> None:
    """Serve a hub on a socket until SIGTERM or SIGINT, which end its sessions.

    Args:
      hub: of the sessions.
      listener: that listens.
      token: as in `make_app`.
      host: as in `make_app`.
      grace: seconds that answers get to finish.
    """
    app = make_app(hub, token=token, host=host)
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_max_size=hub.limits.message_bytes,
        ws="websockets-sansio",
        limit_concurrency=4 * hub.limits.connections,
        ws_ping_timeout=PONG_SECONDS,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        h11_max_incomplete_event_size=1 << 16,
        server_header=False,
    )
    asyncio.run(Server(config, hub, app.state.connections, grace).serve([listener]))

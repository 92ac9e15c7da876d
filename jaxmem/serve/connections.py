"""All WebSockets of a server."""

from __future__ import annotations

import json

from starlette.websockets import WebSocket

from jaxmem.serve.hub import Hub
from jaxmem.serve.limits import RefusedError
from jaxmem.serve.socket import Connection, error_of

FULL = 1013
"""Code that a connection is closed with which is one too many."""


class Connections:
    """The WebSockets of a hub.

    Attributes:
      open: those that there are.
    """

    def __init__(self, hub: Hub):
        """Serve a hub."""
        self.hub = hub
        self.open: set[Connection] = set()

    @property
    def looking(self) -> bool:
        """Return whether one of them looks at a session, or has not heard yet that it ended."""
        return any(one.begun for one in self.open)

    async def __call__(self, websocket: WebSocket) -> None:
        """Serve one connection to its end."""
        await websocket.accept()
        if len(self.open) >= self.hub.limits.connections:
            refused = RefusedError("no more connections are taken: try again later.", "full")
            await websocket.send_text(json.dumps(error_of(refused)))
            await websocket.close(FULL)
            return
        connection = Connection(self.hub, websocket)
        self.open.add(connection)
        try:
            await connection.run()
        finally:
            self.open.remove(connection)

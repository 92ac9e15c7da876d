"""The body of a request on its way through the proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import Receive


class Body:
    """Reads a body no faster than it is passed on, and again from its beginning while it is small.

    Attributes:
      read: set once the client has sent all of it.
      again: whether all that was read is still here.
    """

    def __init__(self, receive: Receive, most: int):
        """Read what an ASGI server receives; keep at most so many bytes."""
        self._receive, self._most = receive, most
        self._kept: list[bytes] = []
        self._size = 0
        self.read, self.again = anyio.Event(), True

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the body from its beginning.

        Raises:
          ClientDisconnect: if the client leaves in the middle.
        """
        for part in list(self._kept):
            yield part
        while not self.read.is_set():
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            self._size += len(part)
            if self.again and self._size <= self._most:
                self._kept.append(part)
            elif self.again:
                self.again = False
                self._kept.clear()
            if not message.get("more_body", False):
                self.read.set()
            if part:
                yield part

    async def gone(self) -> None:
        """Wait until the client, whose body was read, has left."""
        await self.read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

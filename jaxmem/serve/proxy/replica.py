"""A server behind the proxy, as the proxy knows it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio
import httpx

from jaxmem.serve.http import PATH

HEALTH_SECONDS = 2.0
"""Until a question after its health counts as not answered."""
log = logging.getLogger("jaxmem.serve.proxy")
OK, STOPPING, LOST, UNKNOWN = "ok", "stopping", "lost", "unknown"


class LostError(Exception):
    """A replica was lost while it was waited for; what it did of it is unknown."""


def client_of(token: str | None) -> httpx.AsyncClient:
    """Return what speaks to replicas; answers may take as long as they do."""
    timeout = httpx.Timeout(None, connect=HEALTH_SECONDS)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return httpx.AsyncClient(timeout=timeout, limits=limits, headers=headers, trust_env=False)


class Replica:
    """A server of `jaxmem serve --replica`.

    Attributes:
      name: that sessions are shared out by; it stays when the address changes.
      address: http://HOST:PORT; None: it has none yet.
      state: "ok", "stopping", "lost" or "unknown", which it is before its first answer.
      why: it is lost, in words.
      sessions: open ones, and those that were begun since they were counted.
    """

    def __init__(self, name: str, address: str | None, client: httpx.AsyncClient, patience: float):
        """Know of a server; `patience`: seconds without an answer after which it is lost."""
        self.name, self.address, self.state = name, address, UNKNOWN
        self.why, self.sessions = "it has not answered yet", 0
        self._client, self._patience = client, patience
        self._answered, self._keeps = time.monotonic(), True
        self._waiting: set[anyio.CancelScope] = set()

    @property
    def usable(self) -> bool:
        """Return whether sessions may begin on it."""
        return self.state == OK

    @property
    def reachable(self) -> bool:
        """Return whether its sessions may be asked for."""
        return self.state in (OK, STOPPING)

    def url(self, path: str, scheme: str = "http") -> str:
        """Return the address of something on it.

        Raises:
          LostError: if it has none.
        """
        if self.address is None:
            raise LostError(self.name)
        return scheme + self.address.removeprefix("http") + path

    def _become(self, state: str, why: str = "") -> None:
        if LOST in (state, self.state) and state != self.state:
            log.warning("%s is %s%s", self.name, state, f": {why}" if why else "")
        self.state, self.why = state, why

    def lose(self, why: str) -> None:
        """Note that it is gone: whatever waits for it fails with `LostError`."""
        self._become(LOST, why)
        self.sessions = 0
        for scope in list(self._waiting):
            scope.cancel()

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """Raise `LostError` in a block that waits for it when it is lost.

        Raises:
          LostError: likewise for errors of the connection.
        """
        scope = anyio.CancelScope()
        try:
            with scope:
                self._waiting.add(scope)
                yield
        except httpx.TransportError as error:
            raise LostError(f"{self.name}: {type(error).__name__} {error}") from error
        finally:
            self._waiting.discard(scope)
        if scope.cancelled_caught:
            raise LostError(f"{self.name}: {self.why}")

    async def check(self) -> None:
        """Ask after its health."""
        try:
            found = await self._client.get(self.url("/health"), timeout=HEALTH_SECONDS)
            body = found.json()
            status, replica = body["status"], body["replica"]
        except (httpx.ConnectError, LostError) as error:
            self.lose(f"it cannot be reached ({error})")
            return
        except (httpx.TransportError, ValueError, KeyError, TypeError) as error:
            if time.monotonic() - self._answered > self._patience:
                self.lose(f"it does not answer as a server does ({type(error).__name__} {error})")
            return
        self._answered = time.monotonic()
        if not replica:
            self.lose("it was started without --replica")
            return
        self._become(OK if status == "ok" else STOPPING)

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Return its whole answer.

        Raises:
          LostError: if there is none.
        """
        with self.waited_for():
            return await self._client.request(method, self.url(path), **more)
        raise AssertionError  # `waited_for` has raised

    async def listed(self) -> Mapping[str, Any] | None:
        """Return its sessions by id and stream, and what lies in its folder; None: no answer."""
        try:
            found = await self.call("GET", f"{PATH}?only=ids", timeout=self._patience)
            found.raise_for_status()
            listed = found.json()
        except (LostError, httpx.HTTPStatusError, ValueError):
            await self.check()
            return None
        self.sessions = len(listed["sessions"])
        if listed["lasting"] is None and self._keeps:
            self._keeps = False
            log.warning("%s keeps no sessions (--saves): they end with it", self.name)
        return listed

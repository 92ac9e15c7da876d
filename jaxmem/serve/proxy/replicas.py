"""Which replica a session is on: found by asking, begun where there is room, taken up when lost.

A session's place follows from its name by rendezvous hashing over the replicas that live, so that
proxies side by side agree, and the death of one replica moves its own sessions only. What is known
of places is a cache: a proxy may be killed and started again at any moment.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import anyio
import httpx
from anyio.abc import TaskGroup

from jaxmem.serve.http import PATH
from jaxmem.serve.hub import NO_SAVES
from jaxmem.serve.limits import RefusedError
from jaxmem.serve.proxy.replica import LOST, UNKNOWN, LostError, Replica
from jaxmem.serve.question import new_id

TICK_SECONDS = 1.0
SILENT = "silent"
UNSURE = ("no_replica", SILENT)
"""Codes of refusals after which one tries again: nobody knows whether there is such a session."""
AGAIN_SECONDS = 30.0
"""Until a session is tried again that no replica could take up."""
log = logging.getLogger("jaxmem.serve.proxy")


class Replicas:
    """The servers behind a proxy.

    Attributes:
      all: of them, dead ones too.
      moved: how many streams were taken up by another one.
    """

    def __init__(
        self, places: Mapping[str, str | None], client: httpx.AsyncClient, patience: float
    ):
        """Know servers by name, with their addresses; see `Replica`."""
        self.all = [Replica(name, at, client, patience) for name, at in places.items()]
        self.moved = 0
        self._patience, self._began = patience, time.monotonic()
        self._home: dict[str, Replica] = {}
        self._stream: dict[str, str] = {}
        self._left: set[str] = set()  # in the folder, and open nowhere, at the last look
        self._tried: dict[str, float] = {}
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    @property
    def usable(self) -> list[Replica]:
        """Return the replicas on which sessions may begin."""
        return [one for one in self.all if one.usable]

    @property
    def reachable(self) -> list[Replica]:
        """Return the replicas whose sessions may be asked for."""
        return [one for one in self.all if one.reachable]

    def any(self) -> Replica:
        """Return the replica with the fewest sessions.

        Raises:
          RefusedError: if none lives.
        """
        if not self.usable:
            why = "; ".join(f"{one.name}: {one.why}" for one in self.all)
            raise RefusedError(f"no replica answers ({why}): try again later.", UNSURE[0], 503)
        return min(self.usable, key=lambda one: one.sessions)

    def order(self, id: str) -> list[Replica]:
        """Return the replicas in the order in which a session belongs to them.

        Raises:
          RefusedError: if none lives.
        """
        self.any()
        weight = lambda one: hashlib.blake2b(f"{one.name}/{id}".encode()).digest()
        return sorted(self.usable, key=weight, reverse=True)

    def new_id(self) -> str:
        """Return a name for a session that belongs to the replica with the fewest sessions."""
        wanted = self.any()
        while True:
            id = new_id()
            if self.order(id)[0] is wanted:
                wanted.sessions += 1
                return id

    def note(self, sessions: Sequence[Mapping[str, Any]], replica: Replica) -> None:
        """Note where sessions are."""
        for one in sessions:
            self._home[one["id"]], self._stream[one["id"]] = replica, one["stream"]

    async def find(self, id: str, *, fresh: bool = False) -> Replica | None:
        """Return the replica that a session is on, taken up anew if that was lost.

        Args:
          id: of the session.
          fresh: whether it is not where it was known to be.

        Returns:
          None: there is no such session, and nothing of it was saved.

        Raises:
          RefusedError: if there is no room for it, or no replica lives.
        """
        stream = self._stream.get(id, id)
        async with self._locks.setdefault(stream, anyio.Lock()):  # it is looked for once
            known = self._home.get(id)
            if known is not None and known.reachable and not fresh:
                return known
            self._home.pop(id, None)
            listed = await self._ask_all()
            for one, answer in listed.items():
                self.note(answer["sessions"], one)
            streams = {one["stream"] for found in listed.values() for one in found["sessions"]}
            if id in self._home or id in streams:
                return self._home.get(id)  # None: it has ended, other memories see its stream
            silent = [one.name for one in self.all if one.state == UNKNOWN or one.reachable]
            silent = [name for name in silent if name not in {one.name for one in listed}]
            if silent:
                raise RefusedError(
                    f"{', '.join(silent)} may have session {id}, but is silent: try again.",
                    SILENT,
                    503,
                )
            return await self._take_up(stream)

    async def _ask_all(self) -> dict[Replica, Mapping[str, Any]]:
        """Return what sessions all replicas have, of those that answer."""
        listed: dict[Replica, Mapping[str, Any]] = {}

        async def ask(one: Replica) -> None:
            answer = await one.listed()
            if answer is not None:
                listed[one] = answer

        async with anyio.create_task_group() as tasks:
            for one in self.reachable:
                tasks.start_soon(ask, one)
        return listed

    async def _take_up(self, stream: str) -> Replica | None:
        """Have a replica go on with the sessions of a stream that a lost one has saved."""
        refused: RefusedError | None = None
        for one in self.order(stream):
            try:
                answer = await one.call("POST", PATH, json={"resume": stream})
            except LostError:
                await one.check()
                continue
            if answer.status_code == 201:
                found = answer.json()
                self.note(found["sessions"], one)
                self.moved += 1
                for trouble in found["failed"]:
                    log.warning("%s: %s", one.name, trouble)
                log.warning("session %s goes on at %s", stream, one.name)
                return one
            error = refusal_of(answer)
            if error.code == "taken":
                return one  # another proxy was faster
            if answer.status_code == 404:
                return None
            if error.code == NO_SAVES[1]:  # it may lie where others see it
                continue
            refused = error
            if answer.status_code != 503:
                break
        self.any()  # or there is none
        if refused is not None:
            raise refused
        return None

    async def look_after(self) -> None:
        """Ask after all replicas for ever, and take up what lost ones have saved."""
        async with anyio.create_task_group() as tasks:
            while True:
                await self.look(tasks)
                await anyio.sleep(TICK_SECONDS)

    async def look(self, tasks: TaskGroup) -> None:
        """Ask after all replicas once."""
        async with anyio.create_task_group() as checks:
            for one in self.all:
                checks.start_soon(one.check)
        listed = await self._ask_all()
        self._learn(listed)
        if len(listed) < len(self.reachable) or not self._settled:
            return
        left = {name for found in listed.values() for name in found["lasting"] or ()}
        left -= {one["stream"] for found in listed.values() for one in found["sessions"]}
        now = time.monotonic()
        for name in left & self._left:  # twice: it is not one that just began
            if now - self._tried.get(name, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                self._tried[name] = now
                tasks.start_soon(self._take_up_left, name)
        self._left = left
        self._tried = {name: when for name, when in self._tried.items() if name in left}

    @property
    def _settled(self) -> bool:
        """Return whether all have answered, or had the time to: one may come with its sessions."""
        states = {one.state for one in self.all}
        late = time.monotonic() - self._began > self._patience
        return UNKNOWN not in states and (LOST not in states or late)

    def _learn(self, listed: Mapping[Replica, Mapping[str, Any]]) -> None:
        """Note where all sessions are; of two copies the one counts that was used so far."""
        home: dict[str, Replica] = {}
        for one, found in listed.items():
            for session in found["sessions"]:
                id = session["id"]
                self._stream[id] = session["stream"]
                if id not in home or self._home.get(id) is one:
                    home[id] = one
        unheard = {id: one for id, one in self._home.items() if one.reachable and one not in listed}
        self._home = unheard | home

    async def _take_up_left(self, stream: str) -> None:
        try:
            await self.find(stream)
        except RefusedError as error:
            log.warning("session %s cannot go on yet: %s", stream, error)


def refusal_of(answer: httpx.Response) -> RefusedError:
    """Return the error that a server answered with."""
    try:
        error = answer.json()["error"]
        return RefusedError(error["message"], error["code"], answer.status_code)
    except (ValueError, KeyError, TypeError):
        return RefusedError(f"a server answered {answer.status_code}.", "internal", 502)

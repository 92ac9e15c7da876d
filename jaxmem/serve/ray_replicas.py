"""Engines on many devices or hosts under Ray: streams are pinned to one, and move when it dies.

Every replica is a Ray actor with an `Engine` of its own. A stream has a name, which says where it
lives: the same name, the same replica, as long as that is alive. Streams save themselves to a
folder that all replicas see; when a replica dies, each of its streams goes on from its last save on
another one, at its next call.

    replicas = Replicas(make, "saves", count=8, num_gpus=1)     # make() -> Engine, run by each
    replicas.open("door")
    replicas.feed("door", piece)
    print(replicas.ask("door", "what was the last shape").text)
"""

from __future__ import annotations

from binascii import crc32
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxmem import saves
from jaxmem.pieces import PieceLike
from jaxmem.replies import Reply
from jaxmem.serve.engine import Engine
from jaxmem.serve.live import Live, Stats
from jaxmem.session import Session

T = TypeVar("T")
EVERY = 60
"""Pieces between two saves of a stream."""
THREADS = 64
"""Calls that a replica takes at once: feeding does not wait for answers."""


class Moved(NamedTuple):
    """A stream went on elsewhere after its replica died."""

    name: str
    seconds: float  # of stream in its last save; what was fed later is to be fed again, or lost


class Replica:
    """An engine and its streams by name, as a Ray actor runs them."""

    def __init__(self, make: Callable[[], Engine], folder: str, every: int):
        self._engine, self._folder, self._every = make(), Path(folder), every
        self._lives: dict[str, Live] = {}
        self._since: dict[str, int] = {}  # pieces since the last save

    def open(self, name: str) -> float:
        """Open a stream, or go on with its last save; return its seconds."""
        engine, path, session = self._engine, self._folder / name, None
        if saves.numbered(path):
            how = {"chunk_pieces": engine.chunk_pieces, "mesh": engine.mesh}
            session = Session.restore(path, engine.model, engine.memory, **how)
        self._lives[name], self._since[name] = engine.open(session), 0
        return 0.0 if session is None else session.seconds

    def feed(self, name: str, piece: PieceLike) -> int:
        """Feed a stream, and save it if that is due; return the chunks that were dropped for it."""
        dropped = self._lives[name].feed(piece)
        self._since[name] += 1
        if self._since[name] >= self._every:
            self.save(name)
        return dropped

    def ask(self, name: str, question: str) -> Reply:
        """Return a stream's answer."""
        return self._lives[name].ask(question).reply()

    def stats(self, name: str) -> Stats:
        """Return how a stream stands."""
        return self._lives[name].stats

    def save(self, name: str) -> None:
        """Save a stream."""
        self._lives[name].session().save(self._folder / name, replace=True)
        self._since[name] = 0

    def close(self, name: str) -> None:
        """End a stream; its saves stay."""
        self._lives.pop(name).close()


class Replicas:
    """Streams by name over several replicas. One thread may use it at a time.

    Attributes:
      moved: the streams that went on elsewhere so far.
    """

    def __init__(
        self,
        make: Callable[[], Engine],
        folder: str | Path,
        *,
        count: int,
        every: int = EVERY,
        **resources: Any,
    ):
        """Start the replicas.

        Args:
          make: makes an engine, in the process of each replica.
          folder: of saves, one folder for each stream; all replicas must see it.
          count: of replicas.
          every: pieces between two saves of a stream.
          resources: of each replica, as Ray takes them: `num_gpus=1`, `num_cpus=1`.

        Raises:
          ValueError: if a number is not positive, or Ray is not installed.
        """
        if min(count, every) < 1:
            raise ValueError(f"count and every must be at least 1, got {count} and {every}.")
        self._ray = ray = _ray()
        where = str(Path(folder).absolute())
        actor = ray.remote(Replica).options(max_concurrency=THREADS, **resources)
        self.alive = {i: actor.remote(make, where, every) for i in range(count)}
        self._homes: dict[str, int] = {}
        self.moved: list[Moved] = []

    def open(self, name: str) -> float:
        """Open a stream, or go on with the last save of that name; return its seconds.

        Raises:
          ValueError: if the name is open, or none for a folder, or the engine refuses.
        """
        if name in self._homes:
            raise ValueError(f"a stream of the name {name!r} is open: close it, or take another.")
        if not name or Path(name).name != name or name.startswith("."):
            raise ValueError(f"a stream's name is that of its folder of saves, got {name!r}.")
        return self._open(name)

    def feed(self, name: str, piece: PieceLike) -> int:
        """Feed a stream one piece; return the chunks that were dropped for it."""
        return self._call(name, "feed", piece)

    def ask(self, name: str, question: str) -> Reply:
        """Return a stream's answer."""
        return self._call(name, "ask", question)

    def stats(self, name: str) -> Stats:
        """Return how a stream stands."""
        return self._call(name, "stats")

    def save(self, name: str) -> None:
        """Save a stream now."""
        self._call(name, "save")

    def close(self, name: str) -> None:
        """End a stream; its saves stay."""
        self._call(name, "close")
        del self._homes[name]

    def home(self, name: str) -> int:
        """Return the replica that a name belongs to, of those alive.

        Rendezvous hashing: when one dies only its own streams move.
        """
        return max(self.alive, key=lambda i: crc32(f"{i}/{name}".encode()))

    def _open(self, name: str) -> float:
        while True:
            home = self.home(name)
            try:
                seconds = self._get(home, "open", name)
            except self._ray.exceptions.RayActorError as error:
                self._bury(home, error)
                continue
            self._homes[name] = home
            return seconds

    def _call(self, name: str, method: str, *args: Any) -> Any:
        if name not in self._homes:
            raise ValueError(f"no stream of the name {name!r} is open.")
        while True:
            home = self._homes[name]
            try:
                if home in self.alive:
                    return self._get(home, method, name, *args)
            except self._ray.exceptions.RayActorError as error:
                self._bury(home, error)
            self.moved.append(Moved(name, self._open(name)))

    def _get(self, home: int, method: str, *args: Any) -> Any:
        """Return what a replica's method returns; errors of it are those of its engine."""
        try:
            return self._ray.get(getattr(self.alive[home], method).remote(*args))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def _bury(self, home: int, error: Exception) -> None:
        self.alive.pop(home, None)
        if not self.alive:
            raise RuntimeError(f"every replica has died; saves are whole. The last: {error}")


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("replicas run under Ray: pip install 'jaxmem[ray]'.") from None
    return ray

"""The engines of a server: one per memory that somebody uses, as many as there is room for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxmem.bound import Bound
from jaxmem.decoder.placing import DATA, check_mesh, placed, spread_nbytes
from jaxmem.decoder.program import Program
from jaxmem.decoder.sampling import Sampling
from jaxmem.memory.base import AnyMemory
from jaxmem.memory.options import NAMES
from jaxmem.models.base import Model
from jaxmem.programs import compile
from jaxmem.report.numbers import size
from jaxmem.serve.engine import Engine
from jaxmem.serve.lanes import check_lanes
from jaxmem.serve.limits import RefusedError
from jaxmem.serve.live import Live
from jaxmem.serve.once import Once
from jaxmem.serve.parts import check_parts, parts_of
from jaxmem.serve.pricing import lane_nbytes, step_nbytes
from jaxmem.serve.wanting import Wanted, make_memory
from jaxmem.session import Session
from jaxmem.typing import Array

REHEARSING, REHEARSING_SECONDS = "jaxmem-rehearse", 0.2
LEAST = "96"  # slots that a memory is tried with, to see whether it runs at all


class Engines:
    """Engines by what clients want. Its methods may be called on any thread.

    An engine is priced, compiled and begun on the thread that asks for it first. Others who want
    the same one wait for that; those who want another one do not.
    """

    def __init__(
        self,
        model: Model,
        *,
        lanes: int = 8,
        chunk_pieces: int = 1,
        nbytes: int | None = None,
        memories: int = 16,
        sampling: Sampling | None = None,
        key: Array | None = None,
        rehearse: bool = False,
        mesh: Mesh | None = None,
    ):
        """Begin without an engine.

        Args:
          model: fitted to the size of its frames.
          lanes: of every engine; fewer where the device has no room for so many.
          chunk_pieces: pieces that are written at once.
          nbytes: that weights, states and the temporaries of steps may take, on all devices
            together; None: any.
          memories: different ones that are compiled in the life of a server, at most.
          sampling: how answers are drawn; None: greedily.
          key: JAX key, with `sampling`.
          rehearse: whether a new engine compiles everything at once, in the background.
          mesh: devices of every engine (`Engine`); None: the default one.

        Raises:
          ValueError: if the mesh does not share heads or lanes evenly.
        """
        if model.decoder.attends:
            check_mesh(mesh, model.decoder.kv_heads)
        check_parts(lanes, 1 if mesh is None else mesh.shape[DATA])
        params = placed(mesh, model.params, model.decoder.stacks)  # once for all engines
        self.model, self.lanes = model._replace(params=params), lanes
        self.mesh, self.chunk_pieces = mesh, chunk_pieces
        self.limit, self.memories, self.rehearse = nbytes, memories, rehearse
        self._drawing: dict[str, Any] = {"sampling": sampling, "key": key}
        self._lock = threading.RLock()  # of what follows; never held while something is compiled
        self._engines: dict[Wanted, Engine] = {}
        self._starting = Once[Engine]()
        self._reserved: dict[Wanted, int] = {}  # bytes of those that are being started
        self._users = Counter[Wanted]()  # streams that are being opened
        self._closings = 0
        self._prices: dict[tuple[Wanted, int], int] = {}
        self._known: set[Wanted] = set()
        self._weights = spread_nbytes(params)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the memories whose streams run side by side here with their own options."""
        found = []
        for name in NAMES:
            try:
                check_lanes(self._program(make_memory(self.model, Wanted(name, LEAST))))
                found.append(name)
            except ValueError:
                pass
        return tuple(found)

    def start(self, wanted: Wanted) -> Engine:
        """Return the engine of a memory, started if it was not.

        Raises:
          ValueError: if there is no such memory, or no room for it.
        """
        with self._used(wanted) as engine:
            return engine

    def open(self, wanted: Wanted, saved: Path | None = None, name: str | None = None) -> Live:
        """Return a new stream of the memory that a client wants.

        Args:
          wanted: memory, budget and options.
          saved: folder of a saved stream to go on with; None: an empty one.
          name: of the stream, where several are saved there.

        Raises:
          ValueError: if there is no room for it, or as by `start` and `Session.restore`.
        """
        with self._used(wanted) as engine:
            session = None
            if saved is not None:
                more = {**self._drawing, "chunk_pieces": self.chunk_pieces, "name": name}
                session = Session.restore(saved, self.model, engine.memory, **more)
            try:
                return engine.open(session)
            except ValueError as error:
                if engine.closed or len(engine.streams) < engine.lanes:
                    raise
                raise RefusedError(
                    f"all {engine.lanes} lanes of {wanted.memory} with a budget of "
                    f"{wanted.budget} are taken ({size(engine.nbytes)} each): close a session, or "
                    "start the server with more --lanes.",
                    "full",
                    503,
                ) from error

    @contextmanager
    def _used(self, wanted: Wanted) -> Iterator[Engine]:
        """Yield the engine of a memory, which may have to be started; it is not let go meanwhile.

        Raises:
          ValueError: as `start`.
        """
        with self._lock:
            self._users[wanted] += 1
        try:
            yield self._found(wanted) or self._starting.make(wanted, partial(self._start, wanted))
        finally:
            with self._lock:
                self._users[wanted] -= 1

    def _found(self, wanted: Wanted) -> Engine | None:
        found = self._engines.get(wanted)
        return None if found is None or found.closed else found

    def _start(self, wanted: Wanted) -> Engine:
        """Start an engine, if there is room for it and it was not started meanwhile."""
        if (found := self._found(wanted)) is not None:
            return found
        closings = self._closings
        try:
            program = self._program(make_memory(self.model, wanted))
            check_lanes(program)
            lanes = self._lanes(wanted, program)
            self._note(wanted)
            more = {"chunk_pieces": self.chunk_pieces, "mesh": self.mesh, **self._drawing}
            engine = Engine(self.model, program.memory, lanes=lanes, **more)
            with self._lock:
                if self._closings == closings:
                    self._engines[wanted] = engine
        finally:
            with self._lock:
                self._reserved.pop(wanted, None)
        if self._closings != closings:
            engine.close()
            raise RefusedError("the server stops: begin when it runs again.", "stopping", 503)
        if self.rehearse:
            work = partial(self._rehearse, engine)
            threading.Thread(target=work, name=REHEARSING, daemon=True).start()
        return engine

    def _note(self, wanted: Wanted) -> None:
        """Count a memory that is compiled, also if it is refused later: what is compiled stays.

        Raises:
          RefusedError: if there are too many.
        """
        with self._lock:
            if wanted not in self._known and len(self._known) >= self.memories:
                known = ", ".join(sorted({one.memory for one in self._known}))
                raise RefusedError(
                    f"the server has compiled {self.memories} different memories, budgets and "
                    f"options already ({known}), and takes no other: use one of these.",
                    "memories",
                    503,
                )
            self._known.add(wanted)

    def _program(self, memory: AnyMemory) -> Program:
        return compile(self.model, memory, chunk_pieces=self.chunk_pieces, mesh=self.mesh)

    def _rehearse(self, engine: Engine) -> None:
        """Compile what an engine may need later, once it has compiled what it needs first."""
        while not (engine.warm or engine.closed):
            time.sleep(REHEARSING_SECONDS)
        if not engine.closed:
            assert self.names  # they are looked up once
            engine.rehearse(self.question)

    @property
    def question(self) -> str | None:
        """Return a question of usual length, if the model names one."""
        return self.model.probes[0] if self.model.probes else None

    def _lanes(self, wanted: Wanted, program: Program) -> int:
        """Return how many lanes of a new engine there is room for, letting unused engines go."""
        lanes, limit = self.lanes, self.limit
        if limit is None:
            return lanes
        (bound, state), parts = lane_nbytes(self.model, program), parts_of(program)
        while True:
            needed = lanes * state
            if needed + self.nbytes <= limit:  # or else it would be compiled for nothing
                needed = self._price(wanted, program, bound, lanes, state)
                with self._lock:
                    if needed + self.nbytes <= limit:
                        self._reserved[wanted] = needed
                        return lanes
            if self._let_go():
                continue
            if lanes == parts:
                break
            lanes = parts * (lanes // parts // 2)
        raise RefusedError(
            f"{wanted.memory} with a budget of {wanted.budget} needs {size(needed)} for one stream "
            f"({size(state)} of state, the rest while a chunk is written); weights and the "
            f"memories in use take {size(self.nbytes)} of the {size(limit)} that there are: give a "
            "smaller budget, or close sessions.",
            "bytes",
            503,
        )

    def _price(self, wanted: Wanted, program: Program, bound: Bound, lanes: int, state: int) -> int:
        """Return the bytes of an engine: its states, and what its widest step needs besides."""
        if (wanted, lanes) not in self._prices:
            self._note(wanted)
            step = step_nbytes(self.model, program, bound, lanes)
            self._prices[wanted, lanes] = lanes * state + step
        return self._prices[wanted, lanes]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the weights, and of all engines as they were priced."""
        with self._lock:
            return (
                self._weights
                + sum(self._reserved.values())
                + sum(
                    self._prices.get((wanted, one.lanes), one.lanes * one.nbytes)
                    for wanted, one in self._engines.items()
                )
            )

    def _let_go(self) -> bool:
        """Close an engine that no stream uses; return whether there was one."""
        with self._lock:
            unused = (
                wanted
                for wanted, one in self._engines.items()
                if one.closed or not (one.streams or self._users[wanted])
            )
            found = next(unused, None)
            engine = None if found is None else self._engines.pop(found)
        if engine is not None:
            engine.close()
        return engine is not None

    @property
    def streams(self) -> Mapping[Wanted, tuple[int, int]]:
        """Return how many lanes of every engine are taken, and how many there are."""
        with self._lock:
            engines = dict(self._engines)
        return {wanted: (len(one.streams), one.lanes) for wanted, one in engines.items()}

    def close(self) -> None:
        """Close all engines; answers that are being written are finished."""
        with self._lock:
            self._closings += 1
            engines = list(self._engines.values())
            self._engines.clear()
        for engine in engines:
            engine.close()

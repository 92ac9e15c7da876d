"""The engines of a server: one per memory that somebody uses, as many as there is room for."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import jax
from jax.sharding import Mesh

from jaxmem.bound import Bound, bind
from jaxmem.decoder.placing import DATA, check_mesh, placed, spread_nbytes
from jaxmem.decoder.program import Program
from jaxmem.decoder.sampling import Sampling
from jaxmem.memory.base import AnyMemory
from jaxmem.memory.options import NAMES, worded
from jaxmem.models.base import Model
from jaxmem.programs import compile, memory_for, stream_tokens
from jaxmem.report.numbers import size
from jaxmem.serve.engine import Engine
from jaxmem.serve.lanes import check_lanes, lane_shapes
from jaxmem.serve.limits import RefusedError, shown
from jaxmem.serve.live import Live
from jaxmem.serve.parts import check_parts, parts_of
from jaxmem.serve.stepper import lowered_step
from jaxmem.serve.wanting import Wanted
from jaxmem.session import Session
from jaxmem.typing import Array

BANK_SECONDS = 3600.0
"""Of stream that a bank has room for, in memories that have one."""
BITS, REHEARSING = "bits", "jaxmem-rehearse"
REHEARSING_SECONDS = 0.2
LEAST = "96"
"""Slots that a memory is tried with, to see whether it runs at all."""


class Engines:
    """Engines by what clients want. Its methods may be called on any thread."""

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
        self.model, self.lanes, self.chunk_pieces = (
            model._replace(params=params),
            lanes,
            chunk_pieces,
        )
        self.mesh = mesh
        self.limit, self.memories, self.rehearse = nbytes, memories, rehearse
        self._drawing: dict[str, Any] = {"sampling": sampling, "key": key}
        self._engines: dict[Wanted, Engine] = {}
        self._prices: dict[tuple[Wanted, int], int] = {}
        self._known: set[Wanted] = set()
        self._lock = threading.RLock()
        self._weights = spread_nbytes(params)

    def memory(self, wanted: Wanted) -> AnyMemory:
        """Return the memory that a client wants.

        Raises:
          ValueError: if there is none of that name, or it does not take its budget and options.
        """
        model, options = self.model, dict(wanted.options)
        bits = options.pop(BITS, None)
        for name in set(options) & set(worded(wanted.memory)):
            kind = worded(wanted.memory)[name].type
            if Path in (kind, *get_args(kind)):
                raise RefusedError(f"option {name} is a file of the server; leave it out.")
        more = {"tokens": stream_tokens(model, BANK_SECONDS), BITS: bits}
        if wanted.memory == "full":
            more["tokens"] = None  # what it holds is said with `capacity`
        try:
            return memory_for(model, wanted.memory, wanted.budget, **more, **options)
        except TypeError as error:
            raise RefusedError(
                f"the options {shown(options)} of memory {wanted.memory} do not fit: {error}."
            ) from error

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the memories whose streams run side by side here with their own options."""
        found = []
        for name in NAMES:
            try:
                memory = self.memory(Wanted(name, LEAST))
                check_lanes(self._program(memory))
                found.append(name)
            except ValueError:
                pass
        return tuple(found)

    def start(self, wanted: Wanted) -> Engine:
        """Return the engine of a memory, started if it was not.

        Raises:
          ValueError: if there is no such memory, or no room for it.
        """
        with self._lock:
            return self._of(wanted)

    def open(self, wanted: Wanted, saved: Path | None = None, name: str | None = None) -> Live:
        """Return a new stream of the memory that a client wants.

        Args:
          wanted: memory, budget and options.
          saved: folder of a saved stream to go on with; None: an empty one.
          name: of the stream, where several are saved there.

        Raises:
          ValueError: if there is no room for it, or as by `memory` and `Session.restore`.
        """
        with self._lock:
            engine = self._of(wanted)
            session = None
            if saved is not None:
                more = {**self._drawing, "chunk_pieces": self.chunk_pieces, "name": name}
                session = Session.restore(saved, self.model, engine.memory, **more)
            if len(engine.streams) >= engine.lanes:
                raise RefusedError(
                    f"all {engine.lanes} lanes of {wanted.memory} with a budget of "
                    f"{wanted.budget} are taken ({size(engine.nbytes)} each): close a session, or "
                    "start the server with more --lanes.",
                    "full",
                    503,
                )
            return engine.open(session)

    def _of(self, wanted: Wanted) -> Engine:
        """Return the engine of a memory, which may have to be started."""
        found = self._engines.get(wanted)
        if found is not None and not found.closed:
            return found
        memory = self.memory(wanted)
        if wanted not in self._known and len(self._known) >= self.memories:
            known = ", ".join(sorted({one.memory for one in self._known}))
            raise RefusedError(
                f"the server has compiled {self.memories} different memories, budgets and options "
                f"already ({known}), and takes no other: use one of these.",
                "memories",
                503,
            )
        program = self._program(memory)
        check_lanes(program)
        more = {"chunk_pieces": self.chunk_pieces, "mesh": self.mesh, **self._drawing}
        engine = Engine(self.model, memory, lanes=self._lanes(wanted, program), **more)
        self._known.add(wanted)
        self._engines[wanted] = engine
        if self.rehearse:
            work = partial(self._rehearse, engine)
            threading.Thread(target=work, name=REHEARSING, daemon=True).start()
        return engine

    def _program(self, memory: AnyMemory) -> Program:
        return compile(self.model, memory, chunk_pieces=self.chunk_pieces, mesh=self.mesh)

    def _rehearse(self, engine: Engine) -> None:
        """Compile what an engine may need later, once it has compiled what it needs first."""
        while not engine.warm and not engine.closed:
            time.sleep(REHEARSING_SECONDS)
        if not engine.closed:
            assert self.names  # they are looked up once
            engine.rehearse(self.question)

    @property
    def question(self) -> str | None:
        """Return a question of usual length; None: the model names none."""
        return self.model.probes[0] if self.model.probes else None

    def _lanes(self, wanted: Wanted, program: Program) -> int:
        """Return how many lanes of a new engine there is room for, letting unused engines go."""
        lanes, limit = self.lanes, self.limit
        if limit is None:
            return lanes
        bound = jax.eval_shape(partial(bind, program), self.model.params)
        parts = parts_of(program)
        state = spread_nbytes(lane_shapes(program, bound, parts)) // parts
        while True:
            needed = lanes * state
            if needed + self.nbytes <= limit:  # or else it would be compiled for nothing
                needed = self._price(wanted, program, bound, lanes, state)
            if needed + self.nbytes <= limit:
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
            self._known.add(wanted)  # also if it is refused: what is compiled stays
            step = lowered_step(self.model, program, bound, lanes, lanes).compile()
            found = step.memory_analysis()  # of one device
            temporary = 0 if found is None else found.temp_size_in_bytes
            devices = 1 if self.mesh is None else self.mesh.size
            self._prices[wanted, lanes] = lanes * state + devices * temporary
        return self._prices[wanted, lanes]

    @property
    def nbytes(self) -> int:
        """Return the bytes of the weights, and of all engines as they were priced."""
        with self._lock:
            return self._weights + sum(
                self._prices.get((wanted, one.lanes), one.lanes * one.nbytes)
                for wanted, one in self._engines.items()
            )

    def _let_go(self) -> bool:
        """Close an engine that no stream uses; return whether there was one."""
        for wanted, engine in self._engines.items():
            if engine.closed or not engine.streams:
                engine.close()
                del self._engines[wanted]
                return True
        return False

    @property
    def streams(self) -> Mapping[Wanted, tuple[int, int]]:
        """Return how many lanes of every engine are taken, and how many there are."""
        with self._lock:
            engines = dict(self._engines)
        return {wanted: (len(one.streams), one.lanes) for wanted, one in engines.items()}

    def close(self) -> None:
        """Close all engines; answers that are being written are finished."""
        with self._lock:
            engines = list(self._engines.values())
            self._engines.clear()
        for engine in engines:
            engine.close()

"""`Engine`: many live streams of one model and one memory, stepped together on one device.

One thread owns JAX. In every turn it begins the questions whose chunks are written, writes one
chunk of every stream that has one, and writes a few tokens of every answer: watching never waits
for an answer, and no stream for another. What does not fit is dropped oldest first and counted.

    with Engine(load("tiny"), OmniMem(96), lanes=32) as engine:
        stream = engine.open()
        stream.feed(piece)
        print(stream.ask("what was the last shape?").reply().text)
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from jaxmem.asking import check_drawing
from jaxmem.decoder.program import Carry
from jaxmem.decoder.sampling import Sampling
from jaxmem.memory.base import AnyMemory
from jaxmem.memory.sizes import stream_nbytes
from jaxmem.models.base import Model
from jaxmem.programs import compile
from jaxmem.saving import made_by
from jaxmem.serve.answers import Answer, Asked
from jaxmem.serve.lanes import widths
from jaxmem.serve.live import Live
from jaxmem.serve.stepper import Stepper
from jaxmem.typing import Array

if TYPE_CHECKING:
    from jaxmem.session import Session

CLOSED = "the engine is closed; start another one."
FAILED = "the engine failed"


class Engine:
    """Streams of one model through one memory, side by side on one device.

    Attributes:
      model: what sees and answers.
      memory: what every stream keeps; each has its own state.
      lanes: B, how many streams there is room for.
      chunk_pieces: pieces that are written at once.
      waiting: chunks of a stream that may wait before the oldest is dropped.
      mesh: the devices; None: the default one.
      stepper: what the engine's thread runs.
      warm: whether a step was taken: the first one waits for the compiler.
      changed: notified when anything is; it guards the streams' queues and counts.
    """

    def __init__(
        self,
        model: Model,
        memory: AnyMemory,
        *,
        lanes: int = 8,
        chunk_pieces: int = 1,
        waiting: int = 4,
        sampling: Sampling | None = None,
        key: Array | None = None,
        mesh: Mesh | None = None,
    ):
        """Start an engine without streams, and its thread.

        Args:
          model: fitted to the size of its frames (`for_frames`).
          memory: what is kept.
          lanes: B.
          chunk_pieces: pieces that are written at once.
          waiting: chunks of a stream that may wait, at least 1.
          sampling: how answers are drawn; None: greedily.
          key: JAX key that the answers' keys are made from, with `sampling`.
          mesh: devices of this host: streams lie along its `data`, heads along its `model`
            (`jaxmem.parse_mesh`); None: the default device.

        Raises:
          ValueError: if an argument is out of range, the model is not fitted, the memory does not
            fit the model or does not run side by side (`lanes.check_lanes`), or the mesh does not
            share lanes and heads evenly.
        """
        if waiting < 1 or waiting != int(waiting):
            raise ValueError(f"waiting must be a whole number, at least 1, got {waiting}.")
        check_drawing(1, sampling, key)
        self.model, self.memory, self.lanes = model, memory, lanes
        self.chunk_pieces, self.waiting = chunk_pieces, waiting
        self.sampling, self.key = sampling, key
        if mesh is not None and mesh.is_multi_process:
            raise ValueError(
                "an engine runs on the devices of one host: give it parse_mesh(text, "
                "jax.local_devices()), and start one on every host."
            )
        self.mesh = mesh
        self.program = compile(model, memory, chunk_pieces=chunk_pieces, mesh=mesh)
        self.stepper = Stepper(model, self.program, lanes, sampling, key)
        self.warm = False
        self.changed = threading.Condition()
        # What follows is guarded by `changed`.
        self._live: dict[int, Live] = {}
        self._jobs: list[tuple[Callable[[], Any], Future[Any]]] = []
        self._asked_in_all = 0
        self._answers: list[Answer] = []  # of the thread alone: those that are begun
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="jaxmem-engine", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Return whether the engine was closed, or has failed."""
        return self._stopping

    @property
    def nbytes(self) -> int:
        """Return the bytes of one stream's memory and states; they never change."""
        return stream_nbytes(self.memory, self.program.spec)

    @cached_property
    def made(self) -> dict[str, str]:
        """Return what the streams are made by, as saves of them say; it reads all weights once."""
        return made_by(self.program, self.model.params)

    @property
    def streams(self) -> list[Live]:
        """Return the streams that are open."""
        with self.changed:
            return list(self._live.values())

    def rehearse(self, question: str | None = None, *, most: int | None = None) -> None:
        """Compile the step of every width, and what a question of this length runs; run nothing.

        Without it the first batch of each width waits for the compiler. It ends with the engine.

        Args:
          question: None: no question.
          most: the largest width; None: all lanes.
        """
        parts = self.stepper.parts
        for width in widths(self.lanes // parts):
            if not self._stopping and parts * width <= (most or self.lanes):
                self.stepper.rehearse(parts * width, question)

    def open(self, session: Session | None = None) -> Live:
        """Return a new stream.

        Args:
          session: a stream of the same model and memory to go on with, as it was saved or branched;
            it stays as it is. None: an empty stream.

        Raises:
          ValueError: if every lane is taken, the session is another program's, or the engine is
            closed.
        """
        anywhere = lambda program: replace(program, mesh=None)
        if session is not None and anywhere(session.program) != anywhere(self.program):
            raise ValueError(
                "the session is of another model, memory or chunk length than the engine: make it "
                "with the same ones."
            )
        with self.changed:
            self._check_open()
            free = sorted(set(range(self.lanes)) - set(self._live))
            if not free:
                raise ValueError(
                    f"all {self.lanes} lanes of the engine are taken ({self.nbytes:,} bytes of "
                    "state each): close a stream, or start the engine with more."
                )
            each = self.lanes // self.stepper.parts
            busy = Counter(lane // each for lane in self._live)
            lane = min(free, key=lambda lane: (busy[lane // each], lane))  # parts fill evenly
            live = self._live[lane] = Live(self, lane, session)
        carry = self.stepper.fresh if session is None else session.carry
        self.run(lambda: self.stepper.replace(live.lane, carry))
        for piece in () if session is None else session.held:
            live.feed(piece)
        return live

    def leave(self, live: Live, why: str) -> None:
        """End a stream; what it asked and is not begun fails."""
        with self.changed:
            if live.closed is not None:
                return
            live.closed = why
            self._live.pop(live.lane, None)
            failed = list(live.asked)
            live.asked.clear()
            live.ready.clear()
            self.changed.notify_all()
        for asked in failed:
            asked.answer.fail(ValueError(f"the stream has ended: {why}."))

    def read(self, live: Live) -> Carry:
        """Return a copy of a stream's carry, after every chunk that was made of it so far."""
        with self.changed:
            made = live.made
            self.changed.wait_for(lambda: live.gone >= made or live.closed is not None)
            live.check_open()
        return self.run(lambda: self.stepper.read(live.lane))

    def number_question(self) -> int:
        """Return the number of a question among all of the engine; the caller holds `changed`."""
        self._asked_in_all += 1
        return self._asked_in_all - 1

    def close(self) -> None:
        """End all streams and the thread; answers that are being written are finished."""
        with self.changed:
            self._stopping = True
            self.changed.notify_all()
        self._thread.join()
        for live in self.streams:
            self.leave(live, "the engine was closed")

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._stopping:
            raise ValueError(CLOSED)

    def run(self, job: Callable[[], Any]) -> Any:
        """Run a function on the thread that owns JAX, between two turns; return what it returns.

        Streams and answers wait meanwhile.

        Raises:
          ValueError: if the engine is closed; and what the function raises.
        """
        done: Future[Any] = Future()
        with self.changed:
            self._check_open()
            self._jobs.append((job, done))
            self.changed.notify_all()
        return done.result()

    # What the thread does.

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # nobody else can be told
            self._fail(error)

    def _turn(self) -> bool:
        """Do what there is to do, waiting for it; return False when the engine is to end."""
        with self.changed:
            self.changed.wait_for(lambda: self._stopping or self._due)
            stopping = self._stopping  # nothing is asked for from here on
            jobs, self._jobs = self._jobs, []
            asked = [] if stopping else self._questions()
        for job, done in jobs:
            _settle(job, done)
        self._answers += [one.answer for _, one in asked]
        self.stepper.begin([live.lane for live, _ in asked], [one for _, one in asked])
        if not stopping:
            self._step()
        self.stepper.go_on()
        self._answers = [answer for answer in self._answers if not answer.over]
        return not stopping or bool(self.stepper.writing)

    @property
    def _due(self) -> bool:
        waiting = any(live.ready or live.asked for live in self._live.values())
        return bool(self._jobs or self.stepper.writing) or waiting

    def _questions(self) -> list[tuple[Live, Asked]]:
        """Return questions whose chunks are written, and take them from their streams."""
        out = []
        for live in self._live.values():
            while live.asked and live.asked[0].after <= live.gone:
                out.append((live, live.asked.popleft()))
        return out

    def _step(self) -> None:
        """Write one chunk of every stream that has one."""
        with self.changed:
            taken = [(x, x.ready.popleft()) for x in self._live.values() if x.ready]
        if not taken:
            return
        self.stepper.step([live.lane for live, _ in taken], [chunk for _, chunk in taken])
        self.warm = True
        with self.changed:
            for live, _ in taken:
                live.gone += 1
                live.written += 1
            self.changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        """Tell everyone who waits that the thread has ended."""
        with self.changed:
            self._stopping = True
            jobs, self._jobs = self._jobs, []
        for _, done in jobs:
            done.set_exception(error)
        for answer in self._answers:
            answer.fail(error)
        for live in self.streams:
            self.leave(live, f"{FAILED} ({type(error).__name__}: {error})")


def _settle(job: Callable[[], Any], done: Future[Any]) -> None:
    try:
        done.set_result(job())
    except BaseException as error:  # it is the caller's
        done.set_exception(error)

"""One stream of an `Engine`: what is fed to it, asked of it, and told about it, on any thread."""

from __future__ import annotations

import threading
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxmem.decoder.program import layers_of
from jaxmem.feeding import open_for
from jaxmem.models.base import penalised_ids
from jaxmem.models.text_streamer import TextStreamer
from jaxmem.pieces import PieceLike, Preprocessor
from jaxmem.programs import asked_rows
from jaxmem.report.kept import Kept, kept_by
from jaxmem.serve.answers import Answer, Asked
from jaxmem.serve.gaps import Gaps
from jaxmem.typing import PyTree

if TYPE_CHECKING:
    from jaxmem.serve.engine import Engine
    from jaxmem.session import Session


class Stats(NamedTuple):
    """How a live stream stands."""

    seconds: float  # of stream written to the memory or dropped
    lag: float  # seconds of stream that were fed and are neither
    chunks: int  # written
    dropped: int  # chunks that were never written, because newer ones came too fast
    questions: int  # answered or being answered
    nbytes: int  # of its memory and states; never changes


class Live:
    """One stream of an engine. It may be fed on one thread and asked on others.

    Attributes:
      engine: that it is a stream of.
      lane: its place among the engine's streams.
      gaps: where chunks were dropped.
    """

    def __init__(self, engine: Engine, lane: int, session: Session | None = None):
        """Begin at a lane of an engine; `Engine.open` makes it."""
        self.engine, self.lane = engine, lane
        self._feeding = threading.RLock()  # pieces are preprocessed in their order
        self._preprocessor = Preprocessor(engine.model, engine.chunk_pieces)
        self._held: list[PieceLike] = []
        self.gaps = Gaps()
        if session is not None:
            self._preprocessor.heard = session.preprocessor.heard
        # What follows is guarded by `engine.changed`.
        self.ready: deque[PyTree] = deque()
        self.asked: deque[Asked] = deque()
        self.made = self.gone = self.written = self.dropped = self.questions = 0
        self.first = self._preprocessor.heard.pieces
        self.closed: str | None = None  # why
        self._written_before = self.first // engine.chunk_pieces  # chunks, before this began

    def feed(self, piece: PieceLike, *, wait: bool = False) -> int:
        """Take one piece of video and audio.

        Args:
          piece: in the model's format.
          wait: wait for room rather than drop what has waited longest, as for a file.

        Returns:
          How many chunks were dropped for it.

        Raises:
          ValueError: if the piece is not in the model's format, which leaves the stream as it was,
            or the stream is closed.
        """
        with self._feeding:
            self.check_open()
            held = [*self._held, piece]
            inputs, heard = self._preprocessor.peek(held)
            if len(held) < self._preprocessor.pieces:
                self._held = held
                return 0
            self._preprocessor.heard, self._held = heard, []
            return self._push(inputs, wait)

    def flush(self, *, wait: bool = False) -> int:
        """Let what does not fill a chunk be written, padded; return as `feed` does."""
        with self._feeding:
            self.check_open()
            if not self._held:
                return 0
            inputs = self._preprocessor(self._held)
            self._held = []
            return self._push(inputs, wait)

    def _push(self, inputs: PyTree, wait: bool) -> int:
        engine = self.engine
        with engine.changed:
            if wait:
                engine.changed.wait_for(lambda: self.closed or len(self.ready) < engine.waiting)
            self.check_open()
            dropped = max(len(self.ready) + 1 - engine.waiting, 0)
            if dropped:
                written = self.made - self.dropped - len(self.ready)
                self.gaps.add(self._written_before + written, dropped)
            for _ in range(dropped):
                self.ready.popleft()
            self.ready.append(inputs)
            self.made += 1
            self.gone += dropped
            self.dropped += dropped
            engine.changed.notify_all()
        return dropped

    def watch(self, source: str | Path, **options: Any) -> Live:
        """Feed a source to its end, waiting for room; return self.

        Args:
          source: file, address or device that PyAV opens, in the model's format.
          options: of `jaxmem.data.media.media.open_media`.

        Raises:
          ValueError: if the source does not open, holds nothing that the model sees or hears, or
            has frames of another size than the engine's.
        """
        with open_for(self.engine.model, source, **options) as reader:
            for piece in reader:
                self.feed(piece, wait=True)
        self.flush(wait=True)
        return self

    def ask(self, question: str, unfinished: PieceLike | None = None) -> Answer:
        """Ask about everything fed so far; the stream stays as it was, and goes on meanwhile.

        Args:
          question: in the model's words.
          unfinished: a piece that follows what was fed, as far as it has come. The question sees
            it, the stream does not.

        Raises:
          ValueError: if the question has words that the model does not know, too many questions
            wait, or the stream is closed.
        """
        engine, model = self.engine, self.engine.model
        ids = model.tokenize(question)
        with self._feeding:
            self.check_open()
            held = self._held if unfinished is None else [*self._held, unfinished]
            open_chunk = self._preprocessor.peek(held)[0] if held else None
            pieces = self._preprocessor.heard.pieces + len(held)
            rows = asked_rows(model, engine.program, ids, pieces)
            repeated = penalised_ids(model, ids, engine.sampling)
            answer = Answer(question, TextStreamer(model.detokenize))
            with engine.changed:
                self.check_open()
                number = engine.number_question()
                self.asked.append(Asked(answer, rows, self.made, repeated, number, open_chunk))
                self.questions += 1
                engine.changed.notify_all()
        return answer

    @property
    def pieces(self) -> int:
        """Return how many pieces were fed, those of the open chunk and dropped ones included."""
        with self._feeding:
            return self._preprocessor.heard.pieces + len(self._held)

    @property
    def stats(self) -> Stats:
        """Return how the stream stands."""
        engine = self.engine
        each = engine.chunk_pieces * engine.model.media.piece_seconds
        with engine.changed:
            before = self.first * engine.model.media.piece_seconds
            return Stats(
                seconds=before + self.gone * each,
                lag=len(self.ready) * each,
                chunks=self.written,
                dropped=self.dropped,
                questions=self.questions,
                nbytes=engine.nbytes,
            )

    def take_gaps(self, gaps: Any) -> None:
        """Take over the gaps (`Gaps.plain`) of the stream that this one goes on with."""
        self.gaps = Gaps(gaps)
        self._written_before = self.first // self.engine.chunk_pieces - self.gaps.total

    def kept(self) -> list[Kept]:
        """Return times and modalities of what every layer that attends holds, as a `Session`'s.

        A chunk that was dropped leaves a gap in the times, which a state knows nothing of.
        """
        engine = self.engine
        layers = layers_of(engine.program, engine.read(self)._replace(bank=None))
        each = engine.chunk_pieces * engine.model.media.piece_seconds
        written = self.stats.seconds - self.gaps.total * each
        held = kept_by(layers, engine.model, engine.program.spec, seconds=written)
        return [one._replace(time=self.gaps.stream_time(one.time, each)) for one in held]

    def session(self) -> Session:
        """Return a `Session` that goes on from here, with a copy of the stream.

        It saves, draws and tells what is held; `Engine.open(session)` gives it a lane again, which
        is how a stream is branched or comes back after a restart. It holds what was fed before.
        """
        from jaxmem.session import Session

        engine = self.engine
        with self._feeding:
            heard, held = self._preprocessor.heard, list(self._held)
            carry = engine.read(self)
            options = {"sampling": engine.sampling, "key": engine.key, "mesh": engine.mesh}
            session = Session(
                engine.model, engine.memory, chunk_pieces=engine.chunk_pieces, **options
            )
            session.carry = carry
            session.preprocessor.heard = heard
            session.hold(held)
        return session

    def close(self, why: str = "it was closed") -> None:
        """End the stream; its lane is free again, and answers that are not begun fail."""
        self.engine.leave(self, why)

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def check_open(self) -> None:
        """Raise ValueError if the stream has ended."""
        if self.closed is not None:
            raise ValueError(f"this stream has ended: {self.closed}; open another one.")

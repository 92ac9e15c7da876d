"""`Session`: one live stream of one model through one memory, for notebooks, commands and servers.

It reads media, buffers pieces into chunks, feeds them to the pure loop, and asks. Everything it
holds is reachable: `session.carry` is the live state, a plain pytree.

    session = Session(load("tiny"), OmniMem(96)).watch("talk.mp4")
    print(session.ask("what was the last shape?").text)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxmem import saving
from jaxmem.asking import ask, begin_answer, check_drawing, continue_answer, so_far
from jaxmem.bound import Bound, bind, bucket, probe_rows, question_rows
from jaxmem.data.samples import LOUDEST, plausible
from jaxmem.decoder.program import Carry, Program, layers_of
from jaxmem.decoder.sampling import Sampling
from jaxmem.finite import check_answer
from jaxmem.loop import advance, branch, start, stream
from jaxmem.memory.bank.bank import Footprint, footprint
from jaxmem.memory.base import AnyMemory, Embeds, FeatureMemory, Memory, Spec, State, nbytes
from jaxmem.models.base import Model, for_frames, penalised_ids
from jaxmem.models.text_streamer import TextStreamer
from jaxmem.pieces import Heard, PieceLike, Preprocessor, check_piece
from jaxmem.programs import compile, probes_of
from jaxmem.report.kept import Kept, kept
from jaxmem.resuming import (
    EVERY,
    Checkpoints,
    check_same,
    heard_of,
    held_of,
    identity,
    is_live,
    rest_of,
)
from jaxmem.typing import Array, Float, PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from jaxmem.data.media.live import LiveReader

TOKENS_AT_ONCE = 4
"""Written between two looks at a growing answer: about a few words."""


@dataclass(frozen=True)
class Reply:
    """An answer with what it cost.

    Attributes:
      text: the answer's words.
      seconds: from the question to the answer's last token, in seconds.
      logits: float32 [V] of the first answer token.
      first_seconds: from the question to the answer's first token, in seconds.
    """

    text: str
    seconds: float
    logits: Float[np.ndarray, "V"]
    first_seconds: float


class Event(NamedTuple):
    """Something that happened to a stream and did not end it."""

    time: float  # seconds of stream
    kind: str
    message: str


def open_for(model: Model, source: str | Path, **options: Any) -> LiveReader:
    """Return a reader of a source in a model's format.

    Args:
      model: what sees and hears.
      source: file, address or device that PyAV opens.
      options: of `jaxmem.data.media.media.open_media`.

    Raises:
      ValueError: if the source does not open, or holds sound alone and the model does not hear.
    """
    from jaxmem.data.media.media import open_media

    media = model.media
    more = {"fps": media.fps, "piece_seconds": media.piece_seconds, "size": media.size}
    reader = open_media(source, sample_rate=media.sample_rate, **more, **options)
    if reader.info.video_codec is None and not model.audio_tokens:
        reader.close()
        raise ValueError(
            f"{source}: it has sound but no pictures, and {model.name} does not hear: give a "
            "source with pictures, or a model that hears."
        )
    return reader


class Session:
    """One live stream of one model through one memory.

    It makes the prefix, the probes and the bank that model and memory ask for. It may be fed on one
    thread and asked on another.
    """

    def __init__(
        self,
        model: Model,
        memory: AnyMemory,
        *,
        chunk_pieces: int = 1,
        spec: Spec | None = None,
        sampling: Sampling | None = None,
        key: Array | None = None,
    ):
        """Start an empty stream.

        Args:
          model: what sees and answers. One whose rows depend on the size of its frames is fitted to
            the first piece.
          memory: what is kept.
          chunk_pieces: pieces that are written at once. A question sees all pieces that were fed.
          spec: sizes; None: those of the model.
          sampling: how answers are drawn, unless a question says otherwise; None: greedily.
          key: JAX key that the answers' keys are made from, with `sampling`.

        Raises:
          ValueError: if `chunk_pieces` is not positive, the memory is none or does not fit the
            model, or only one of `sampling` and `key` is given.
        """
        if chunk_pieces < 1 or chunk_pieces != int(chunk_pieces):
            raise ValueError(f"chunk_pieces must be whole and at least 1, got {chunk_pieces}.")
        if not isinstance(memory, Memory | FeatureMemory):
            raise ValueError(
                f"memory is an object such as jaxmem.OmniMem(96), got {memory!r}; names are those "
                "of the command line (jaxmem.MEMORIES[name] is the class)."
            )
        check_drawing(1, sampling, key)
        self.model, self.memory, self.chunk_pieces = model, memory, chunk_pieces
        self.sampling, self.key = sampling, key
        self.dialogue: tuple[str, str] | None = None
        self._spec = spec
        self._held: list[PieceLike] = []
        self._events: list[Event] = []
        self._answers = 0
        self._silenced = False  # whether the last piece had samples that were silenced
        self._source: dict[str, Any] | None = None  # what is watched, and from which piece on
        self._lock = threading.RLock()
        self._opened: tuple[Program, Bound] | None = None
        self._made: dict[str, str] | None = None  # `saving.made_by`, once it is saved
        self._carry: Carry | None = None
        self._peeked: Carry | None = None
        self.preprocessor = Preprocessor(model, chunk_pieces)
        if model.tokens_per_piece:
            self._open()

    def _open(self, size: tuple[int, int] | None = None) -> None:
        """Make program, arrays and an empty carry, for frames of a size where that matters."""
        if self._opened is not None:
            return
        if not self.model.tokens_per_piece:
            if size is None:
                raise ValueError(
                    f"{self.model.name} must know the size of its frames first: feed a piece, or "
                    "watch() a source."
                )
            self.model = for_frames(self.model, size)
            self.preprocessor = Preprocessor(self.model, self.chunk_pieces)
        program = compile(self.model, self.memory, chunk_pieces=self.chunk_pieces, spec=self._spec)
        bound = bind(program, self.model.params)
        self._opened = program, bound
        self._carry = jax.block_until_ready(start(program, bound))

    @property
    def program(self) -> Program:
        """Return what is static about the stream."""
        return self._need()[0]

    @property
    def bound(self) -> Bound:
        """Return weights, prefix and probes."""
        return self._need()[1]

    @property
    def spec(self) -> Spec:
        """Return the sizes of the stream."""
        return self.program.spec

    @property
    def carry(self) -> Carry:
        """Return the live state; the next chunk takes it over, so `branch` what is to stay."""
        self._need()
        assert self._carry is not None
        return self._carry

    @carry.setter
    def carry(self, carry: Carry) -> None:
        self._need()
        self._carry, self._peeked = carry, None

    def _need(self) -> tuple[Program, Bound]:
        self._open()
        assert self._opened is not None
        return self._opened

    @property
    def pieces(self) -> int:
        """Return how many pieces were fed, those of the open chunk included."""
        with self._lock:
            return self.preprocessor.heard.pieces + len(self._held)

    @property
    def seconds(self) -> float:
        """Return the length of the stream so far, in seconds."""
        return self.pieces * self.model.media.piece_seconds

    @property
    def tokens(self) -> int:
        """Return how many tokens were written to every layer, those of the open chunk included."""
        with self._lock:
            return int(self._peek().tokens)

    # Feeding.

    def feed(self, piece: PieceLike) -> bool:
        """Take one piece of video and audio; return whether a chunk was written.

        Raises:
          ValueError: if the piece is not in the model's format; the stream stays as it was.
        """
        with self._lock:
            check_piece(piece, self.model.media, self.pieces)
            if self._opened is None:
                self._open(np.shape(piece.frames)[1:3])
            _, bad = plausible(np.asarray(piece.samples))
            if bad and not self._silenced:
                message = f"samples beyond {LOUDEST:g} times full scale, or no numbers, are silence"
                self._events.append(Event(self.seconds, "damaged", message))
            self._silenced = bool(bad)
            self._held.append(piece)
            self._peeked = None
            if len(self._held) < self.chunk_pieces:
                return False
            try:
                self.flush()
            except Exception:
                self._held.pop()
                raise
            return True

    def watch(
        self,
        source: str | Path | Iterable[PieceLike],
        *,
        resume: bool = False,
        checkpoint: str | Path | None = None,
        every: float = EVERY,
        **options: Any,
    ) -> Session:
        """Stream a source to its end; return self.

        Args:
          source: file, address or device that PyAV opens, in the model's format; or pieces.
          resume: go on after what a restored session has seen of the same source and options. A
            file is read again up to there; a live source goes on with what comes now.
          checkpoint: folder that the session saves itself to, for `restore`.
          every: seconds of stream between two saves.
          options: of `jaxmem.data.media.media.open_media`, for example `stop=60.0`.

        Raises:
          ValueError: if the source does not open, holds nothing that the model sees or hears, or is
            not the one to go on with, or `checkpoint` holds another stream.
          OSError: if the session cannot be saved; what was saved before stays.
        """
        saver = None
        if checkpoint is not None:
            saver = Checkpoints(checkpoint, every, at=self.seconds, again=resume)
        if not isinstance(source, str | Path):
            self._watch(source, saver)
            return self
        if resume:
            check_same(self._source, source, "this session")
        else:
            self._source = identity(source) | {"first": self.pieces}
        fed = self.pieces - (self._source or {})["first"]
        with self.open(source, **options) as reader:
            media = self.model.media
            live = is_live(reader.info, self._source or {})
            self._watch(rest_of(reader, media, fed, live=live) if fed else reader, saver)
            self._events += [Event(e.time, e.kind, e.message) for e in reader.events]
        return self

    def _watch(self, pieces: Iterable[PieceLike], saver: Checkpoints | None) -> None:
        for piece in pieces:
            self.feed(piece)
            if saver is not None:
                with self._lock:
                    saver(self.seconds, lambda: {"stream": self.part()})
        self.flush()

    def open(self, source: str | Path, **options: Any) -> LiveReader:
        """Return a reader of a source in the model's format, and fit the model to its frames.

        Raises:
          ValueError: if the source does not open, or holds nothing that the model sees or hears.
        """
        reader = open_for(self.model, source, **options)
        self._open(reader.info.size)
        return reader

    def flush(self) -> None:
        """Write what is buffered, padded to a whole chunk."""
        with self._lock:
            if not self._held:
                return
            self._need()
            segment, heard = self._open_chunk()
            self._write(segment)
            self.preprocessor.heard, self._held = heard, []

    def write(self, inputs: PyTree, heard: Heard) -> None:
        """Write K chunks that were preprocessed elsewhere, stacked on a leading axis.

        Args:
          inputs: of the chunks (`Preprocessor`), stacked; padding altogether where K is to be kept.
          heard: what that preprocessor knows of the stream after them (`Preprocessor.heard`).
        """
        with self._lock:
            self._held = []
            self._write(inputs)
            self.preprocessor.heard = heard

    def hold(self, pieces: Sequence[PieceLike]) -> None:
        """Take pieces as the open chunk, in place of what was open: questions see them."""
        with self._lock:
            self._held, self._peeked = list(pieces), None

    def reset(self) -> None:
        """Begin anew with an empty stream; nothing compiles again."""
        with self._lock:
            self._held, self._events, self._answers, self.dialogue = [], [], 0, None
            self._source = None
            self.preprocessor = Preprocessor(self.model, self.chunk_pieces)
            self.carry = start(self.program, self.bound)

    def _open_chunk(self) -> tuple[PyTree, Heard]:
        """Return the buffered pieces as a segment of one chunk, and what is heard after them."""
        inputs, heard = self.preprocessor.peek(self._held)
        return jax.tree.map(lambda x: np.asarray(x)[None], inputs), heard

    def _write(self, segment: PyTree) -> None:
        program, bound = self._need()
        self._carry = advance(bound, self.carry, segment, program=program)
        self._peeked = None

    # Asking.

    def ask(
        self, question: str, *, sampling: Sampling | None = None, key: Array | None = None
    ) -> Reply:
        """Answer a question about everything fed so far; the stream stays as it was, bit by bit.

        Pieces of a chunk that is not full yet are written to a branch, which is asked.

        Args:
          question: in the model's words.
          sampling: how tokens are drawn; None: as the session says. `model.sampling` is the
            checkpoint's own.
          key: JAX key of the answer, with `sampling`.

        Raises:
          ValueError: if the question has words that the model does not know, or there is `sampling`
            without a key.
        """
        model, ids = self.model, self.model.tokenize(question)
        draw = self._drawing(sampling, key)
        with self._lock:
            asked, more = self._asked(ids, draw)
            begin = time.perf_counter()
            answer = ask(*asked, end=model.end, **more)
        words = np.asarray(answer.ids)[: int(answer.length)]
        seconds, text = time.perf_counter() - begin, model.detokenize(words)
        self._note(question, text)
        return Reply(text, seconds, np.asarray(answer.first), seconds)

    def answer(
        self, question: str, *, sampling: Sampling | None = None, key: Array | None = None
    ) -> Iterator[str]:
        """Yield an answer's text as it is written; the parts together are `ask(...).text`.

        The stream may go on meanwhile: the answer is about what was fed when it began. The
        generator returns the `Reply`. The arguments and errors are those of `ask`.
        """
        model, ids = self.model, self.model.tokenize(question)
        draw = self._drawing(sampling, key)
        return self._written(question, model, ids, draw)

    def _written(self, question: str, model: Model, ids: np.ndarray, draw: dict[Any, Any]) -> Any:
        with self._lock:
            asked, more = self._asked(ids, draw)
            bound, program = asked[0], more["program"]
            begin = time.perf_counter()
            answer = begin_answer(*asked, **more)
        streamer, first = TextStreamer(model.detokenize), np.array(answer.first)
        words, done = so_far(answer, model.end)
        check_answer(words, *asked, program=program)
        first_seconds = time.perf_counter() - begin
        more = {"program": program, "steps": TOKENS_AT_ONCE, "end": model.end} | draw
        # Also where the first token ends the answer: whoever ran this once compiled both programs.
        answer = continue_answer(bound, answer, **more)
        yield from streamer.push(words, done)
        while not done:
            words, done = so_far(answer, model.end)
            check_answer(words, *asked, program=program)
            yield from streamer.push(words, done)
            answer = answer if done else continue_answer(bound, answer, **more)
        text = model.detokenize(words)
        self._note(question, text)
        return Reply(text, time.perf_counter() - begin, first, first_seconds)

    def _drawing(self, sampling: Sampling | None, key: Array | None) -> dict[str, Any]:
        if sampling is None and key is None and self.sampling is not None:
            sampling = self.sampling
            key = None if self.key is None else jax.random.fold_in(self.key, self._answers)
        return {"sampling": sampling, "key": key}

    def _asked(
        self, ids: np.ndarray, draw: dict[str, Any]
    ) -> tuple[tuple[Bound, Carry, Embeds], dict[str, Any]]:
        """Return what an answer is asked with: arrays, carry and rows after all pieces; options."""
        model, (program, bound) = self.model, self._need()
        carry = self._peek()
        rows = question_rows(
            model.params,
            ids,
            program=program,
            steps=None if model.text_steps is None else model.text_steps(ids),
            start=None if model.question_start is None else model.question_start(self.pieces),
        )
        jax.block_until_ready((carry, rows))
        repeated = penalised_ids(model, ids, draw["sampling"])
        more = {"program": program, "max_new": model.max_new, "repeated": repeated}
        return (bound, carry, rows), more | draw

    def _peek(self) -> Carry:
        """Return the carry with the open chunk written to a branch; the stream is not touched."""
        if not self._held:
            return self.carry
        if self._peeked is None:
            program, bound = self._need()
            self._peeked = stream(bound, self.carry, self._open_chunk()[0], program=program)
        assert self._peeked is not None
        return self._peeked

    def _note(self, question: str, text: str) -> None:
        """Remember the dialogue, for memories that guide what they keep by it."""
        with self._lock:
            self._answers += 1
            self.dialogue = (question, text)
            if not getattr(self.memory, "dialogue", False):
                return
            program, bound = self._need()
            texts = probes_of(self.model, self.memory, self.dialogue)
            rows = probe_rows(self.model.params, texts, program=program)
            self._opened = program, bound._replace(probes=rows)

    def buckets(self, question: str) -> int:
        """Return the padded length that a question is compiled for."""
        return bucket(len(self.model.tokenize(question)))

    def rehearse(self, question: str) -> None:
        """Compile what a question of this length will run; nothing is run."""
        model, draw = self.model, self._drawing(None, None)
        with self._lock:
            asked, more = self._asked(model.tokenize(question), draw)
        if model.max_new == 1:
            ask.lower(*asked, end=model.end, **more).compile()
            return
        begin_answer.lower(*asked, **more).compile()
        begun = jax.eval_shape(lambda *a: begin_answer(*a, **more), *asked)
        more = {"program": more["program"], "steps": TOKENS_AT_ONCE, "end": model.end} | draw
        continue_answer.lower(asked[0], begun, **more).compile()

    def rehearse_chunks(self, inputs: PyTree, *, open: bool = False) -> None:
        """Compile what writing K chunks will run; nothing is run.

        Args:
          inputs: of K chunks, stacked on a leading axis; their values do not matter.
          open: compile what a question inside a chunk runs, with K = 1.
        """
        program, bound = self._need()
        (stream if open else advance).lower(bound, self.carry, inputs, program=program).compile()

    # Looking.

    def layers(self) -> list[State]:
        """Return each layer's slots, for maps and reports; none for a memory of features.

        They are a copy: the stream may go on meanwhile.
        """
        with self._lock:
            return layers_of(self.program, branch(self.carry._replace(bank=None)))

    @property
    def events(self) -> list[Event]:
        """Return what happened to the stream: of its media, and rows that were not finite."""
        with self._lock:
            events = list(self._events)
            found = None if self._carry is None else jax.device_get(self._carry.rejected)
        if found is not None:
            each = self.chunk_pieces * self.model.media.piece_seconds
            if found.rows:
                message = (
                    f"{int(found.rows)} rows were not finite and were left out, in the chunks from "
                    f"{found.first * each:g} s to {(found.last + 1) * each:g} s."
                )
                events.append(Event(float(found.first * each), "not_finite", message))
        return events

    @property
    def nbytes(self) -> int:
        """Return the bytes of the memory's state, which never change."""
        return nbytes(self.memory, self.spec)

    @property
    def footprint(self) -> Footprint:
        """Return the bytes held on the device and in host memory, bank included."""
        return footprint(self.memory, self.spec)

    def kept(self, seconds: float | None = None) -> list[Kept]:
        """Return times and modalities of what every layer holds; nothing of features.

        Args:
          seconds: length of the stream; None: as the session counts it.
        """
        layers, ticks = self.layers(), self.model.ticks_per_second
        if not layers:
            return [Kept(np.zeros(0), np.zeros(0, np.int8))] * self.spec.layers
        length = self.seconds if seconds is None else seconds
        return kept(layers, seconds=length, seconds_per_tick=None if ticks is None else 1 / ticks)

    def memory_map(self) -> Figure:
        """Return a figure of what every layer holds, over the time of the stream."""
        from jaxmem.report.maps import memory_map

        title = f"{self.memory.name}: what is held after {self.seconds:g} s"
        return memory_map(self.kept(), seconds=self.seconds, title=title)

    # Keeping.

    def save(self, path: str | Path, *, replace: bool = False, keep: int = saving.KEPT) -> None:
        """Write the whole stream to the folder `path`, all of it or nothing.

        Args:
          path: of the folder.
          replace: whether `path` may hold saved streams; the new one is what `restore` returns.
          keep: how many saves stay, the new one included.

        Raises:
          ValueError: if there is something at `path` that is not to be replaced.
          OSError: if it cannot be written; what was saved before stays.
        """
        with self._lock:
            saving.write(path, {"stream": self.part()}, replace, keep)

    def part(self) -> saving.Part:
        """Return the whole stream as it is saved, for `jaxmem.saving.write`."""
        with self._lock:
            host = {"past": self.preprocessor.heard.past}
            for i, piece in enumerate(self._held):
                host |= {f"frames_{i}": piece.frames, f"samples_{i}": piece.samples}
            size = getattr(self.model.media, "size", None)
            numbers = {
                "pieces": self.preprocessor.heard.pieces,
                "open": len(self._held),
                "answers": self._answers,
                "dialogue": self.dialogue,
                "chunk_pieces": self.chunk_pieces,
                "events": self._events,
                "size": size if isinstance(size, tuple) else None,
                "source": self._source,
            }
            if self._made is None:
                self._made = saving.made_by(self.program, self.model.params)
            return saving.part_of(self.carry, made=self._made, host=host, numbers=numbers)

    @classmethod
    def restore(
        cls,
        path: str | Path,
        model: Model,
        memory: AnyMemory,
        *,
        name: str | None = None,
        **options: Any,
    ) -> Session:
        """Return the stream that was saved last at `path`, to go on as if nothing had happened.

        Args:
          path: folder written by `save`, or by the command line's `--checkpoint`; or one save in
            it.
          model: the model that it was saved with.
          memory: the memory that it was saved with.
          name: of the memory, where a command line saved several side by side.
          options: of `Session`.

        Raises:
          ValueError: if there is nothing at `path`, it is damaged (the save before it is offered),
            or another model, memory or options wrote it.
        """
        saved = saving.read(path)
        part = saved.part(name)
        if "pieces" not in part.numbers:
            raise ValueError(
                f"the stream at {saved.where} was saved without a session: use "
                "jaxmem.restore(path, program)."
            )
        chunk_pieces = options.pop("chunk_pieces", part.numbers["chunk_pieces"])
        session = cls(model, memory, chunk_pieces=chunk_pieces, **options)
        size = part.numbers["size"]
        session._open(None if size is None else tuple(size))
        session.take(part, saved.where)
        return session

    def take(self, part: saving.Part, source: Path) -> None:
        """Go on with a saved stream in place of this one; nothing compiles again.

        Args:
          part: the stream, of a session.
          source: where it was saved, for errors.

        Raises:
          ValueError: if another model, memory or options wrote it.
        """
        with self._lock:
            numbers = part.numbers
            self.carry = saving.carry_of(part, self.program, self.model.params, source)
            held: list[PieceLike] = [*held_of(part)]
            self.preprocessor.heard, self._held = heard_of(part), held
            self._events = [Event(*event) for event in numbers["events"]]
            self._answers, self._source = numbers["answers"], numbers["source"]
            if numbers["dialogue"]:
                self._answers -= 1
                self._note(*numbers["dialogue"])

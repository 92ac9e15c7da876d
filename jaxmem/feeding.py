"""What a live stream is fed: pieces become chunks, chunks are written to the memory.

`Feeding` is the half of a `Session` that writes; the other half asks, looks and saves.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmem.asking import check_drawing
from jaxmem.bound import Bound, bind
from jaxmem.data.samples import LOUDEST, plausible
from jaxmem.decoder.program import Carry, Program, settled
from jaxmem.decoder.sampling import Sampling
from jaxmem.finite import broken_state
from jaxmem.loop import advance, start, stream
from jaxmem.memory.base import AnyMemory, FeatureMemory, Memory, Spec
from jaxmem.models.base import Model, for_frames
from jaxmem.pieces import Heard, PieceLike, Preprocessor, check_piece
from jaxmem.programs import compile
from jaxmem.typing import Array, PyTree

if TYPE_CHECKING:
    from jaxmem.data.media.live import LiveReader


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


class Feeding:
    """One live stream of one model through one memory, as far as it is written.

    It makes the prefix, the probes and the bank that model and memory ask for.
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
        mesh: Mesh | None = None,
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
          mesh: devices that weights and stream are cut over (`jaxmem.parse_mesh`).

        Raises:
          ValueError: if `chunk_pieces` is not positive, the memory is none or does not fit the
            model or the mesh, or only one of `sampling` and `key` is given.
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
        self.sampling, self.key, self.mesh = sampling, key, mesh
        self.dialogue: tuple[str, str] | None = None
        self._spec = spec
        self._held: list[PieceLike] = []
        self._events: list[Event] = []
        self._short: list[tuple[int, int]] = []  # chunks that were not full, pieces that they lack
        self._answers = 0
        self._silenced = False  # whether the last piece had samples that were silenced
        self._source: dict[str, Any] | None = None  # what is watched, and from which piece on
        self._lock = threading.RLock()
        self._opened: tuple[Program, Bound] | None = None
        self.made: dict[str, str] | None = None  # `saving.made_by`; None: not needed yet
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
        more = {"chunk_pieces": self.chunk_pieces, "spec": self._spec, "mesh": self.mesh}
        program = compile(self.model, self.memory, **more)
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
        self._carry, self._peeked = settled(self.program, carry), None

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
    def held(self) -> list[PieceLike]:
        """Return the pieces of the open chunk: fed, and not yet written."""
        with self._lock:
            return list(self._held)

    @property
    def seconds(self) -> float:
        """Return the length of the stream so far, in seconds."""
        return self.pieces * self.model.media.piece_seconds

    @property
    def tokens(self) -> int:
        """Return how many tokens were written to every layer, those of the open chunk included."""
        with self._lock:
            return int(self._peek().tokens)

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
            lack = self.chunk_pieces - len(self._held)
            short = [(int(self.carry.chunks), lack)] if lack else []
            segment, heard = self._open_chunk()
            self._write(segment)
            self.preprocessor.heard, self._held = heard, []
            self._short += short

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
            self._short, self._source = [], None
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

    def _peek(self) -> Carry:
        """Return the carry with the open chunk written to a branch; the stream is not touched."""
        if not self._held:
            return self.carry
        if self._peeked is None:
            program, bound = self._need()
            self._peeked = stream(bound, self.carry, self._open_chunk()[0], program=program)
        assert self._peeked is not None
        return self._peeked

    def _broken(self, carry: Carry) -> Event | None:
        """Return which state is not finite, and from when on; None: all are finite."""
        found = broken_state(carry, self.program)
        if found is None:
            return None
        at = self._begin(found[0])
        return Event(at, "not_finite", f"{found[1]} is not finite from {at:g} s on.")

    def _begin(self, chunk: int) -> float:
        """Return when a chunk begins, in seconds of the stream."""
        lacking = sum(lack for number, lack in self._short if number < chunk)
        return (chunk * self.chunk_pieces - lacking) * self.model.media.piece_seconds

    @property
    def events(self) -> list[Event]:
        """Return what happened to the stream: of its media, and rows that were not finite."""
        with self._lock:
            events = list(self._events)
            found = None if self._carry is None else jax.device_get(self._carry.rejected)
            broken = None if self._carry is None else self._broken(self._carry)
        if found is not None and found.rows:
            first, end = self._begin(int(found.first)), self._begin(int(found.last) + 1)
            message = (
                f"{int(found.rows)} rows were not finite and were left out, in the chunks from "
                f"{first:g} s to {end:g} s."
            )
            events.append(Event(first, "not_finite", message))
        return events if broken is None else [*events, broken]

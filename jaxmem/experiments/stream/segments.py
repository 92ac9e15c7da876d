"""Pieces of media to segments of preprocessed chunks, with the questions that are due."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxmem.data.media.media import Piece
from jaxmem.models.base import Model
from jaxmem.pieces import Heard, Preprocessor
from jaxmem.typing import PyTree

EPS = 1e-6  # s


class Segment(NamedTuple):
    """What is fed at once, and the questions that follow it."""

    inputs: PyTree | None  # K chunks or one, stacked; None: nothing new before the questions
    heard: Heard  # what the next chunk must know of the stream
    open: tuple[Piece, ...]  # pieces of a chunk that is not full yet: questions see them
    time: float  # stream time after it, open pieces included, seconds
    due: tuple[int, ...]  # numbers of the questions to ask now

    @property
    def pieces(self) -> int:
        """Return how many pieces of the stream a question sees."""
        return self.heard.pieces + len(self.open)


def segments(
    pieces: Iterable[Piece],
    model: Model,
    *,
    chunk_pieces: int,
    chunks: int,
    times: Sequence[float],
    heard: Heard | None = None,
) -> Iterator[Segment]:
    """Preprocess pieces into segments of K = `chunks`; questions never change where chunks end.

    Where a question or the end cuts a segment, its chunks come one by one: it costs what it holds.

    A question at time t knows the pieces that ended by t. Questions that are not due when the
    pieces run out are left to the caller; their `times` ascend. `heard` is of the stream before
    them, if there is one. Runs on whatever thread iterates it.
    """
    preprocessor = Preprocessor(model, chunk_pieces)
    preprocessor.heard = preprocessor.heard if heard is None else heard
    held: list[Piece] = []
    asked, time = 0, preprocessor.heard.pieces * model.media.piece_seconds

    def due_before(end: float) -> tuple[int, ...]:
        nonlocal asked
        first = asked
        while asked < len(times) and times[asked] < end - EPS:
            asked += 1
        return tuple(range(first, asked))

    def write(count: int, rest: tuple[Piece, ...] = (), due: tuple[int, ...] = ()) -> Segment:
        """Return the next `count` chunks as a segment, with what follows them."""
        mine = held[: count * chunk_pieces]
        del held[: len(mine)]
        starts = range(0, len(mine), chunk_pieces)
        inputs = stack([preprocessor(mine[i : i + chunk_pieces]) for i in starts])
        end = (rest or mine)[-1]
        return Segment(inputs, preprocessor.heard, rest, end.start + end.valid_seconds, due)

    def cut(whole: int, due: tuple[int, ...]) -> Iterator[Segment]:
        """Yield the first `whole` pieces that are held chunk by chunk; the others stay."""
        rest = tuple(held[whole:])
        if not whole:
            yield Segment(None, preprocessor.heard, rest, time, due)
        for left in range(whole, 0, -chunk_pieces):
            yield write(1) if left > chunk_pieces else write(1, rest, due)

    for piece in pieces:
        due = due_before(piece.start + len(piece.samples) / model.media.sample_rate)
        if due:
            yield from cut(len(held) // chunk_pieces * chunk_pieces, due)
        held.append(piece)
        time = piece.start + piece.valid_seconds
        if len(held) == chunk_pieces * chunks:
            yield write(chunks)
    if held:
        yield from cut(len(held), ())


def stack(chunks: Sequence[PyTree]) -> PyTree:
    """Return preprocessed chunks as one segment, with a leading axis."""
    return jax.tree.map(lambda *x: np.stack([np.asarray(leaf) for leaf in x]), *chunks)


def hold_frames(pieces: Iterable[Piece], fps: float) -> Iterator[Piece]:
    """Replace pictures so that a new one is seen only `fps` times a second; sound is untouched.

    Each picture is held until the next one is due, so the number of tokens does not change.
    """
    shown, picture = -1, None
    for piece in pieces:
        count = len(piece.frames)
        frames = np.empty_like(piece.frames)
        for i in range(count):
            number = int((piece.start + i * piece.valid_seconds / count) * fps + EPS)
            if picture is None or number > shown:
                shown, picture = number, piece.frames[i].copy()
            frames[i] = picture
        yield piece._replace(frames=frames)

"""Pieces of media to segments of packed chunks, cut where a question is due."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxmem.data.media.media import Piece
from jaxmem.models.base import Model
from jaxmem.session import Packer
from jaxmem.typing import PyTree

EPS = 1e-6  # s


class Segment(NamedTuple):
    """What is fed at once, and the questions that come behind it."""

    inputs: PyTree | None  # K packed chunks, stacked; None: nothing new before the questions
    pieces: int  # real ones; the rest is padding
    time: float  # stream time behind it, seconds
    due: tuple[int, ...]  # numbers of the questions to ask now


def segments(
    pieces: Iterable[Piece],
    model: Model,
    *,
    chunk_pieces: int,
    chunks: int,
    times: Sequence[float],
) -> Iterator[Segment]:
    """Pack pieces into segments of one shape, cut where a question is due.

    A question at time t knows the pieces that ended by t. Questions that are not due when the
    pieces run out are left to the caller. Runs on whatever thread iterates it.

    Args:
      pieces: of one reader.
      model: whose `pack` prepares them.
      chunk_pieces: pieces per chunk.
      chunks: K, chunks per segment.
      times: of the questions, ascending.
    """
    packer, padding = Packer(model, chunk_pieces), None
    held: list[Piece] = []
    asked, time = 0, 0.0

    def due_before(end: float) -> tuple[int, ...]:
        nonlocal asked
        first = asked
        while asked < len(times) and times[asked] < end - EPS:
            asked += 1
        return tuple(range(first, asked))

    for piece in pieces:
        if padding is None:
            padding = blank(model, piece.frames.shape, piece.samples.shape[0], chunk_pieces)
        due = due_before(piece.start + len(piece.samples) / model.media.sample_rate)
        if due:
            yield _pack(packer, padding, held, chunks, time, due)
            held = []
        held.append(piece)
        time = piece.start + piece.valid_seconds
        if len(held) == chunk_pieces * chunks:
            yield _pack(packer, padding, held, chunks, time, ())
            held = []
    if held:
        yield _pack(packer, padding, held, chunks, time, ())


def blank(model: Model, frames: tuple[int, ...], samples: int, pieces: int) -> PyTree:
    """Return one packed chunk that is padding altogether.

    Args:
      model: whose `pack` makes it.
      frames: shape [F, h, w, 3] of a piece's frames.
      samples: of a piece.
      pieces: C, pieces of a chunk.
    """
    return model.pack(
        np.zeros((pieces, *frames), np.uint8),
        np.zeros((pieces, samples), np.float32),
        np.zeros(pieces, bool),
        np.zeros(model.media.past_samples, np.float32),
        0,
    )


def stack(chunks: Sequence[PyTree]) -> PyTree:
    """Return packed chunks as one segment, with a leading axis."""
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


def _pack(
    packer: Packer,
    padding: PyTree,
    held: Sequence[Piece],
    chunks: int,
    time: float,
    due: tuple[int, ...],
) -> Segment:
    if not held:
        return Segment(None, 0, time, due)
    size = packer.pieces
    packed = [packer(held[i : i + size]) for i in range(0, len(held), size)]
    return Segment(stack(packed + [padding] * (chunks - len(packed))), len(held), time, due)

"""Pieces of video and audio, checked and preprocessed into chunks, on whatever thread decodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jaxmem.data.samples import plausible
from jaxmem.models.base import MediaFormat, Model
from jaxmem.typing import PyTree


class PieceLike(Protocol):
    """What a media reader yields: frames [F, h, w, 3] uint8 and samples [n] float32."""

    @property
    def frames(self) -> np.ndarray:
        """Return the piece's frames."""
        ...

    @property
    def samples(self) -> np.ndarray:
        """Return the piece's samples."""
        ...


class Heard(NamedTuple):
    """What the next chunk must know of the stream before it."""

    past: np.ndarray  # float32 [past_samples], the samples just before it
    pieces: int  # of the stream so far


def check_piece(piece: PieceLike, media: MediaFormat, number: int) -> None:
    """Refuse a piece that is not in the model's format.

    Args:
      piece: frames and samples.
      media: the format.
      number: of the piece in its stream, for the message.

    Raises:
      ValueError: naming the piece, what came, what was expected and the repair.
    """
    missing = [name for name in ("frames", "samples") if getattr(piece, name, None) is None]
    if missing:
        raise ValueError(
            f"piece {number} has no {' and no '.join(missing)}: give frames [F, h, w, 3] and "
            "samples [n]; silence is zeros."
        )
    frames, samples = np.asarray(piece.frames), np.asarray(piece.samples)
    count = round(media.fps * media.piece_seconds)
    size = media.size if isinstance(media.size, tuple) else frames.shape[1:3]
    if frames.dtype != np.uint8:
        repair = "multiply by 255 and round" if frames.dtype.kind == "f" else "convert them"
        raise ValueError(
            f"piece {number}: frames are {frames.dtype}, expected uint8 from 0 to 255; {repair}."
        )
    if frames.shape != (count, *size, 3):
        raise ValueError(
            f"piece {number}: frames have shape {frames.shape}, expected {(count, *size, 3)} "
            f"([frames, height, width, RGB]: {media.fps:g} frames a second in pieces of "
            f"{media.piece_seconds:g} s); resize them, or let jaxmem open the media."
        )
    length = round(media.sample_rate * media.piece_seconds)
    if samples.dtype.kind != "f":
        raise ValueError(
            f"piece {number}: samples are {samples.dtype}, expected float32 from -1 to 1; divide "
            "16-bit samples by 32768."
        )
    if samples.shape != (length,):
        raise ValueError(
            f"piece {number}: samples have shape {samples.shape}, expected {(length,)} (mono, "
            f"{media.sample_rate} Hz, {media.piece_seconds:g} s); resample them, or pad with zeros."
        )


class Preprocessor:
    """Makes chunks of pieces. It remembers the audio before each chunk, and how many pieces came.

    A chunk that fails leaves it as it was.
    """

    def __init__(self, model: Model, pieces: int):
        """Make chunks of at most `pieces` pieces for `model`."""
        self.model, self.pieces = model, pieces
        self.heard = Heard(np.zeros(model.media.past_samples, np.float32), 0)

    def __call__(self, held: Sequence[PieceLike]) -> PyTree:
        """Return a chunk's inputs from consecutive pieces, the missing ones padded."""
        inputs, self.heard = self.peek(held)
        return inputs

    def peek(self, held: Sequence[PieceLike]) -> tuple[PyTree, Heard]:
        """Return a chunk's inputs, and what the chunk after it must know; nothing is remembered.

        Raises:
          ValueError: if there are too many pieces, or one is not in the model's format.
        """
        if not 0 < len(held) <= self.pieces:
            raise ValueError(f"a chunk takes 1 to {self.pieces} pieces, got {len(held)}.")
        past, before = self.heard
        for i, piece in enumerate(held):
            check_piece(piece, self.model.media, before + i)
        frames = np.zeros((self.pieces, *np.shape(held[0].frames)), np.uint8)
        samples = np.zeros((self.pieces, *np.shape(held[0].samples)), np.float32)
        for i, piece in enumerate(held):
            frames[i], samples[i] = piece.frames, plausible(np.asarray(piece.samples))[0]
        valid = np.arange(self.pieces) < len(held)
        inputs = self.model.preprocess(frames, samples, valid, past, before)
        heard = np.concatenate([past, samples[: len(held)].reshape(-1)])
        return inputs, Heard(heard[len(heard) - len(past) :], before + len(held))


def blank(model: Model, size: tuple[int, int], pieces: int) -> PyTree:
    """Return one chunk of C `pieces` that is padding altogether.

    Args:
      model: whose `preprocess` makes it.
      size: (height, width) of the frames.
      pieces: C.
    """
    media = model.media
    samples = round(media.sample_rate * media.piece_seconds)
    return model.preprocess(
        np.zeros((pieces, round(media.fps * media.piece_seconds), *size, 3), np.uint8),
        np.zeros((pieces, samples), np.float32),
        np.zeros(pieces, bool),
        np.zeros(model.media.past_samples, np.float32),
        0,
    )

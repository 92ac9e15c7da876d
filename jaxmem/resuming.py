"""A live stream saves itself every so often, and goes on at the right place of its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jaxmem import saves
from jaxmem.data.media.types import MediaInfo, Piece
from jaxmem.models.base import MediaFormat
from jaxmem.pieces import Heard, PieceLike

EVERY = 60.0
"""Seconds of stream between two saves."""


class Checkpoints:
    """Saves streams to one folder when `every` seconds of stream have gone by."""

    def __init__(
        self, path: str | Path, every: float = EVERY, *, at: float = 0.0, again: bool = False
    ):
        """Save to `path` next at stream time `at` + `every`, in seconds.

        `again` says that the streams come from there, so that its saves may be replaced.

        Raises:
          ValueError: if `path` holds something else, or `every` is not positive.
        """
        if not every > 0:
            raise ValueError(f"every must be a positive number of seconds, got {every}.")
        saves.check_target(path, replace=again)
        self.path, self.every, self._last = Path(path), every, at

    def __call__(
        self,
        at: float,
        parts: Callable[[], Mapping[str, saves.Part]],
        more: Callable[[], Mapping[str, Any]] = dict,
    ) -> bool:
        """Save at stream time `at` if it is due, and return whether it was.

        Raises:
          OSError: if it cannot be written; what was saved before stays.
        """
        if at - self._last < self.every - 1e-6:
            return False
        self._last = at
        saves.write(self.path, parts(), replace=True, more=more())
        return True


def identity(source: str | Path) -> dict[str, Any]:
    """Return what a source is known by when a stream goes on with it: its name, and its bytes."""
    path = Path(source)
    return {"name": path.name, "bytes": path.stat().st_size if path.is_file() else None}


def check_same(saved: Mapping[str, Any] | None, source: str | Path, where: str | Path) -> None:
    """Refuse to go on with another source than the one that was streamed.

    Raises:
      ValueError: naming both.
    """
    mine = identity(source)
    known = {"name": None, "bytes": None} if saved is None else saved
    grown = known["bytes"] is None or (mine["bytes"] or 0) >= known["bytes"]  # it may be growing
    if known["name"] != mine["name"] or not grown:
        was = "no file" if saved is None else f"{known['name']} ({known['bytes']} bytes)"
        raise ValueError(
            f"the stream at {where} was of {was}, not of {mine['name']} ({mine['bytes']} bytes): "
            "go on with the same source."
        )


def is_live(info: MediaInfo, source: Mapping[str, Any]) -> bool:
    """Return whether an open source cannot be read again; `source` is its `identity`."""
    return info.duration is None and source["bytes"] is None


def heard_of(part: saves.Part) -> Heard:
    """Return what the next chunk must know of a session's saved stream."""
    return Heard(part.arrays["host.past"], part.numbers["pieces"])


def held_of(part: saves.Part) -> Iterator[saves.SavedPiece]:
    """Yield the pieces of the chunk that was open when a session was saved."""
    for i in range(part.numbers["open"]):
        frames, samples = (part.arrays[f"host.{name}_{i}"] for name in ("frames", "samples"))
        yield saves.SavedPiece(frames, samples)


def rest_of(
    pieces: Iterable[Piece],
    media: MediaFormat,
    fed: int,
    held: Sequence[PieceLike] = (),
    *,
    live: bool = False,
) -> Iterator[Piece]:
    """Yield what of a source follows the pieces that were fed.

    They are read again and left out, so that what follows is bit by bit what an uninterrupted
    stream sees (a decoder that begins in the middle of a file gives other numbers).

    Args:
      pieces: of the source, from its beginning; of a live one, from now on.
      media: format of the pieces.
      fed: pieces that were fed.
      held: the last of those, of a chunk that is not full; they come first.
      live: whether the source cannot be read again.
    """
    each, first = media.piece_seconds, fed - len(held)
    for i, piece in enumerate(held, first):
        yield Piece(i * each, piece.frames, piece.samples, True, True, each)
    if not live:
        yield from islice(pieces, fed, None)
        return
    for piece in pieces:
        yield piece._replace(start=piece.start + fed * each)

"""Position rules of the Qwen families: three integers (time, row, column) for every token.

A prompt is text, whose tokens advance all three axes by one, and blocks: a picture, a video, a
frame, a clip of sound. A block has positions of its own and says how far after its beginning the
next token stands. Everything is exact integers on the host; nothing is accumulated in floats, so a
stream of any length has the positions that one prompt over all of it would have.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from jaxmem.models.hf.prompt import Ids
from jaxmem.typing import Int

LIMIT = 2**31 - 1
Seconds = float | Fraction


class Block(NamedTuple):
    """Positions of tokens that belong together, from where the block begins."""

    pos: Int[np.ndarray, "n 3"]  # int64
    advance: int  # where the next token stands, on all three axes


def ticks(frames: int | np.ndarray, seconds: Seconds, per_second: int) -> Int[np.ndarray, "*F"]:
    """Return the temporal positions of frames, floor(frame * seconds * per_second), int64.

    Args:
      frames: frame numbers from 0.
      seconds: between frames. A Fraction is taken exactly. A float is multiplied as the released
        code does, in float32 from the left: it never drifts, but far into a stream it can be one
        tick early or late where the exact product is a whole number.
      per_second: ticks.
    """
    frames = np.asarray(frames, np.int64)
    if isinstance(seconds, Fraction):
        rate = seconds * per_second
        return frames * rate.numerator // rate.denominator
    product = frames.astype(np.float32) * np.float32(seconds) * np.float32(per_second)
    return product.astype(np.int64)


def grid_positions(times: np.ndarray, rows: int, columns: int) -> Int[np.ndarray, "n 3"]:
    """Return the positions of frames of rows x columns tokens each, in raster order."""
    t, r, c = np.meshgrid(times, np.arange(rows), np.arange(columns), indexing="ij")
    return np.stack([t, r, c], -1).reshape(-1, 3).astype(np.int64)


def line(count: int) -> Int[np.ndarray, "n 3"]:
    """Return the positions of text or sound: one after the other on all three axes."""
    return np.repeat(np.arange(count, dtype=np.int64)[:, None], 3, axis=1)


def gaps(seconds: Sequence[Seconds] | None, videos: Sequence[Any]) -> list[Seconds]:
    """Return the seconds between frames, one for each video (None: 1.0); ValueError if not."""
    if seconds is not None and len(seconds) != len(videos):
        raise ValueError(f"{len(videos)} videos came with {len(seconds)} seconds per frame.")
    return [1.0] * len(videos) if seconds is None else list(seconds)


def to_the_end(pos: Int[np.ndarray, "n 3"]) -> Block:
    """Return a block: text goes on after the largest position on any axis."""
    return Block(pos, int(pos.max()) + 1)


def join(
    ids: Ids, blocks: Mapping[int, Iterable[Block]], *, start: int = 0
) -> tuple[Int[np.ndarray, "T 3"], int]:
    """Return the positions of a prompt, and where the next text token would stand.

    Args:
      ids: token ids without padding.
      blocks: for every placeholder token the blocks it stands for, in their order. A run of
        placeholders is as many blocks as it takes.
      start: position of the first token.

    Raises:
      ValueError: if placeholders and blocks do not fit together, or positions exceed int32.
    """
    ids = np.asarray(ids)
    waiting = {token: list(items) for token, items in blocks.items()}
    out, at, i = np.zeros((len(ids), 3), np.int64), start, 0
    while i < len(ids):
        token = int(ids[i])
        if token not in waiting:
            out[i], at, i = at, at + 1, i + 1
            continue
        if not waiting[token]:
            raise ValueError(
                f"token {i} is a placeholder ({token}), but the inputs that it stands for are used "
                "up: pass a grid for every picture and video of the prompt."
            )
        block = waiting[token].pop(0)
        stop = i + len(block.pos)
        if stop > len(ids) or (ids[i:stop] != token).any():
            raise ValueError(
                f"token {i} begins {len(block.pos)} placeholders ({token}), but only "
                f"{int((ids[i:stop] == token).sum())} are there: prompt and grids do not fit."
            )
        out[i:stop] = at + block.pos
        at, i = at + block.advance, stop
    left = {token: len(items) for token, items in waiting.items() if items}
    if left:
        raise ValueError(f"inputs without placeholders in the prompt (token: count): {left}.")
    return as_int32(out), at


def as_int32(pos: np.ndarray) -> Int[np.ndarray, "..."]:
    """Return positions as int32; ValueError if they do not fit."""
    if pos.size and max(int(pos.max()), -int(pos.min())) > LIMIT:
        raise ValueError(f"position {int(pos.max())} does not fit int32; begin a new stream.")
    return pos.astype(np.int32)

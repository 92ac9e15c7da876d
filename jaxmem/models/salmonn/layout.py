"""Tokens and positions of video-SALMONN 2+: frames, and the sound of the time that each spans.

A frame is `temporal` pictures. Two bases, two layouts:

* Qwen2.5-VL: frame by frame its tokens, then its sound, all inside one pair of vision tokens. A
  frame stands at (tick, row, column) as in Qwen2.5-VL, token j of the sound at (j, 0, j), both
  counted from one start: a tick and a token of sound are half a second each. Text goes on after
  the largest time of the two, whatever rows and columns reached (positions as trained).
* Qwen3-VL: the time in words, `<|vision_start|>`, the tokens of the frame (or of a group of frames,
  numbered within the group; the time is its first frame's), their sound, `<|vision_end|>`. Sound
  stands like text.

Sound alone is inside one pair of vision tokens on either base. With Qwen2.5-VL its token j stands
at (j, j, 0), and text goes on after the last; with Qwen3-VL it stands like text.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxmem.kv import AUDIO, VISION
from jaxmem.models.hf.prompt import Plan, plan
from jaxmem.models.qwen.mrope import as_int32, grid_positions, join, line, ticks, to_the_end
from jaxmem.models.qwen.qwen2_5_vl import Qwen25VLConfig
from jaxmem.typing import Int

if TYPE_CHECKING:
    from jaxmem.models.salmonn.salmonn import SalmonnConfig

GROUPS = 256
"""Time stamps of a whole video at most (Qwen3-VL base)."""


SOUND_AXES = (1, 1, 0)
"""How far a token of sound alone advances the position (Qwen2.5-VL base)."""


class Video(NamedTuple):
    """The tokens of frames and their sound, in order, with positions from where they begin."""

    ids: Int[np.ndarray, "n"]
    pos: Int[np.ndarray, "n 3"]
    advance: Int[np.ndarray, "3"]  # how far they move where the frames that follow begin


def shares(
    config: SalmonnConfig, ends: Sequence[int], seconds: Fraction, sounds: int | None = None
) -> list[int]:
    """Return how many tokens of sound each of some consecutive spans of frames has.

    Args:
      ends: the first frame, then the end of every span, in frames.
      seconds: between frames.
      sounds: tokens of sound up to the end of a video whose last span takes what is left of them;
        None: the spans are of an endless one.
    """
    times = ticks(np.asarray(ends), seconds * config.per_second, 1)
    if sounds is not None:
        times = np.minimum(times, sounds)
        times[-1] = sounds
    return np.diff(times).tolist()


def even_shares(frames: int, sounds: int) -> list[int]:
    """Return the tokens of sound of every frame where they are spread evenly, the first one more.

    So did the first release (2025-07).
    """
    return [sounds // frames + (i < sounds % frames) for i in range(frames)]


def group_size(frames: int) -> int:
    """Return how many frames of a whole video share a time stamp."""
    return max(1, -(-frames // GROUPS))


def group_ends(first: int, frames: int, size: int) -> list[int]:
    """Return the first frame, and the end of every group of `size` frames."""
    return [*range(first, first + frames, size), first + frames]


def timed_video(
    config: SalmonnConfig,
    stamps: Sequence[Sequence[int]],
    ends: Sequence[int],
    sounds: Sequence[int],
    cells: tuple[int, int],
) -> Video:
    """Return frames as the Qwen3-VL base has them.

    Args:
      stamps: token ids of the time in words, of every group.
      ends: see `group_ends`.
      sounds: tokens of sound of every group.
      cells: rows and columns of tokens in a frame.
    """
    base, ids, blocks = config.base, [], []
    for words, frames, heard in zip(stamps, np.diff(ends).tolist(), sounds, strict=True):
        block = to_the_end(grid_positions(np.arange(frames), *cells))
        ids += [*words, base.vision_start, *[base.video] * len(block.pos)]
        ids += [*[config.audio] * heard, base.vision_end]
        blocks.append(block)
    pos, after = join(ids, {base.video: blocks})
    return Video(np.array(ids, np.int32), pos, np.full(3, after, np.int32))


def aligned_video(
    config: SalmonnConfig,
    ends: Sequence[int],
    sounds: Sequence[int],
    cells: tuple[int, int],
    seconds: Fraction,
) -> Video:
    """Return frames as the Qwen2.5-VL base has them.

    Positions begin at (start of the video + tick of the first frame, start, start). The columns of
    sound count its tokens from the start of the video, so they grow with the stream; rows and
    columns of the frames do not.

    Args:
      ends: consecutive numbers of frames, one more than there are.
      sounds: tokens of sound of every frame.
      cells: rows and columns of tokens in a frame.
      seconds: between frames.
    """
    base = config.base
    assert isinstance(base, Qwen25VLConfig)
    times = ticks(np.asarray(ends), seconds, base.ticks_per_second)
    heard = int(ticks(ends[0], seconds * config.per_second, 1))
    ids, pos = [], []
    for tick, count in zip(times[:-1], sounds, strict=True):
        seen = grid_positions(np.array([tick]), *cells)
        ids += [base.video] * len(seen) + [config.audio] * count
        pos += [seen, (heard + line(count)) * np.array([[1, 0, 1]])]
        heard += count
    place = np.concatenate(pos) - np.array([[times[0], 0, 0]])
    advance = as_int32(np.array([times[-1] - times[0], 0, 0]))
    return Video(np.array(ids, np.int32), as_int32(place), advance)


def text_after(config: SalmonnConfig, frames: int, seconds: Fraction) -> Int[np.ndarray, "3"]:
    """Return `Embeds.start` of text after `aligned_video`s: it stands after their largest time.

    So many `frames` were streamed, 0: text goes on at the base. Others as in `aligned_video`.
    """
    if not frames:
        return np.zeros(3, np.int32)
    assert isinstance(config.base, Qwen25VLConfig)
    last, end = ticks(np.array([frames - 1, frames]), seconds, config.base.ticks_per_second)
    heard = int(ticks(frames, seconds * config.per_second, 1))
    return as_int32(np.array([max(int(last) + 1, heard) - end, 0, 0]))


def inferred_video(
    ids: Int[np.ndarray, "n"], first: int, cells: tuple[int, int], frames: int
) -> Video:
    """Return tokens at the positions that the released `generate` of the Qwen2.5-VL base computes.

    They are not those of the training: the first `frames` x rows x columns tokens of the video, of
    pictures or of sound, are numbered as a grid of frames two ticks apart, and all after as text.

    Args:
      ids: tokens of a part of the video, in order.
      first: tokens of the video before them.
      cells: rows and columns of tokens in a frame.
      frames: of the whole video.
    """
    rows, columns = cells
    number, grid = np.arange(first, first + len(ids)), frames * rows * columns
    frame, cell = np.divmod(number, rows * columns)
    seen = np.stack([2 * frame, cell // columns, cell % columns], axis=1)
    text = _inferred_end(grid, cells) + number - grid
    pos = np.where((number < grid)[:, None], seen, text[:, None])
    times = [_inferred_base(n, cells, frames) for n in (first, first + len(ids))]
    advance = np.array([times[1] - times[0], 0, 0])
    return Video(ids, as_int32(pos - np.array([[times[0], 0, 0]])), as_int32(advance))


def text_after_inferred(count: int, cells: tuple[int, int], frames: int) -> Int[np.ndarray, "3"]:
    """Return `Embeds.start` of text after so many tokens of `inferred_video`s."""
    if not count:
        return np.zeros(3, np.int32)
    grid = frames * cells[0] * cells[1]
    end = _inferred_end(min(count, grid), cells) + max(0, count - grid)
    return as_int32(np.array([end - _inferred_base(count, cells, frames), 0, 0]))


def _inferred_base(count: int, cells: tuple[int, int], frames: int) -> int:
    """Return the time that so many tokens advance the position of the stream."""
    grid = frames * cells[0] * cells[1]
    return 2 * (min(count, grid) // (cells[0] * cells[1])) + max(0, count - grid)


def _inferred_end(count: int, cells: tuple[int, int]) -> int:
    """Return what follows the largest position of the first so many tokens of a grid."""
    rows, columns = cells
    frame, cell = divmod(count - 1, rows * columns)
    seen = (rows, columns) if frame else (cell // columns + 1, min(cell + 1, columns))
    return max(2 * frame + 1, *seen)


def video_plan(config: SalmonnConfig, video: Video, heard: int | None = None) -> Plan:
    """Return the plan of frames; features of sound begin at `heard`; None: after the frames'."""
    first = int((video.ids == config.base.video).sum()) if heard is None else heard
    features = {config.base.video: (VISION, 0), config.audio: (AUDIO, first)}
    return plan(video.ids, video.pos, video.advance, features)


def prompt_plan(
    config: SalmonnConfig, before: Sequence[int], video: Video, after: Sequence[int]
) -> Plan:
    """Return the plan of a whole prompt: text, one whole video, text.

    Features are those of all frames, then those of all sound.
    """
    end = len(before) + int(video.pos.max()) + 1
    pos = [line(len(before)), len(before) + video.pos, end + line(len(after))]
    ids = np.concatenate([np.asarray(before), video.ids, np.asarray(after)]).astype(np.int32)
    whole = Video(ids, as_int32(np.concatenate(pos)), np.full(3, end + len(after), np.int32))
    return video_plan(config, whole)

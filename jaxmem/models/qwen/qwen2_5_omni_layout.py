"""Tokens and positions of Qwen2.5-Omni: TMRoPE, and video and sound that take turns.

Time is a clock of `ticks_per_second` (25 in the released models), and a token of sound lasts one
tick. Sound stands at its tick on all three axes, a frame at (its tick, row, column). The tokens of
a video with sound alternate in chunks of `chunk_ticks`: the frames of the chunk, then its sound.
Around them `<|vision_bos|><|audio_bos|>` share one position, `<|audio_eos|><|vision_eos|>` another.
Text goes on after the largest position on any axis; after a video with sound only its last token
counts, as released, also where the sound ends before the last frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from jaxmem.kv import AUDIO, VISION
from jaxmem.models.encoders.vision_parts import Grid, Grids, as_grids
from jaxmem.models.hf.prompt import Ids, Plan, plan
from jaxmem.models.qwen import mrope
from jaxmem.typing import Bool, Int

TOGETHER = -1  # stands for a whole video with sound while positions are joined


@dataclass(frozen=True)
class OmniLayout:
    """Static description of the layout: ids of tokens, and the clock."""

    image: int  # placeholder token of pictures
    video: int  # placeholder token of videos
    audio: int  # placeholder token of sound
    vision_start: int  # token before a picture or video
    vision_end: int  # token after it
    audio_start: int  # token before a clip of sound
    audio_end: int  # token after it
    merge: int = 2  # side of the cell of patches that becomes one token
    ticks_per_second: int = 25  # of the temporal axis
    chunk_ticks: int = 50  # how long video and sound take turns


class Mixed(NamedTuple):
    """The tokens of a video with sound, in their order."""

    pos: Int[np.ndarray, "n 3"]  # from the first of them
    sound: Bool[np.ndarray, "n"]


def turns_of(times: Int[np.ndarray, "n"], every: int) -> list[slice]:
    """Cut tokens into the chunks in which video and sound take turns.

    `times` never decrease. As released: a token at or after the next boundary begins a chunk and
    moves the boundary by one chunk only. A frame that jumps over a boundary altogether is therefore
    cut after its first token, for each boundary that it jumped over.
    """
    starts, boundary, i = [0], every, 0
    while True:
        i += int(np.searchsorted(times[i:], boundary))
        if i == len(times):
            break
        starts.append(i)
        boundary, i = boundary + every, i + 1
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], len(times)], strict=True)]


def mixed(layout: OmniLayout, grid: Grid, seconds: mrope.Seconds, sounds: int) -> Mixed:
    """Return the tokens of a video of grid (F, h, w), in patches, and of so many of sound."""
    seen, heard = _frames(layout, grid, seconds), mrope.line(sounds)
    cuts = [turns_of(part[:, 0], layout.chunk_ticks) for part in (seen, heard)]
    pos, sound = [], []
    for frames, clip in zip_longest(*cuts, fillvalue=slice(0)):
        pos += [seen[frames], heard[clip]]
        sound += [np.zeros(len(pos[-2]), bool), np.ones(len(pos[-1]), bool)]
    return Mixed(np.concatenate(pos), np.concatenate(sound))


def mixed_ids(
    layout: OmniLayout, grid: Grid, seconds: mrope.Seconds, sounds: int
) -> Int[np.ndarray, "n"]:
    """Return the token ids of a video with sound, with what stands around it."""
    content = mixed(layout, grid, seconds, sounds).sound
    ids = np.where(content, layout.audio, layout.video)
    before, after = [layout.vision_start, layout.audio_start], [layout.audio_end, layout.vision_end]
    return np.concatenate([before, ids, after]).astype(np.int32)


def _frames(layout: OmniLayout, grid: Grid, seconds: mrope.Seconds) -> Int[np.ndarray, "n 3"]:
    frames, rows, columns = grid
    times = mrope.ticks(np.arange(frames), seconds, layout.ticks_per_second)
    return mrope.grid_positions(times, rows // layout.merge, columns // layout.merge)


def _around(content: Int[np.ndarray, "n 3"]) -> mrope.Block:
    """Return content with two tokens before it at one position, and two after it at another."""
    pos = np.zeros((len(content) + 4, 3), np.int64)
    pos[2:-2] = 1 + content
    pos[-2:] = pos[-3].max() + 1
    return mrope.Block(pos, int(pos[-1, 0]) + 1)


def positions(
    layout: OmniLayout,
    ids: Ids,
    *,
    images: Grids = (),
    videos: Grids = (),
    seconds: Sequence[mrope.Seconds] | None = None,
    sounds: Sequence[int] = (),
) -> tuple[Int[np.ndarray, "T 3"], int]:
    """Return the positions of a prompt, and where the next text token would stand.

    A video has sound where `<|audio_bos|>` follows its `<|vision_bos|>`. `sounds` are the tokens of
    every clip of sound, in order of appearance; other arguments as in `qwen2_5_vl.positions`.

    Raises:
      ValueError: if ids, grids and clips do not fit together.
    """
    merge = layout.merge
    images, videos = as_grids(images, merge), as_grids(videos, merge)
    ids = np.array(ids, np.int64)
    grids = list(zip(videos, mrope.gaps(seconds, videos), strict=True))
    clips = list(sounds)
    begin = (ids[:-1] == layout.vision_start) & (ids[1:] == layout.audio_start)
    both, silent, heard, done = [], [], [], 0
    for start in [*np.flatnonzero(begin).tolist(), len(ids)]:
        # What lies before this video with sound takes its own videos and clips first.
        between = ids[done:start]
        n = int((between == layout.video).sum())
        while grids and n > 0:
            silent.append(mrope.to_the_end(_frames(layout, *grids.pop(0))))
            n -= len(silent[-1].pos)
        n = int((between == layout.audio).sum())
        while clips and n > 0:
            heard.append(mrope.Block(mrope.line(clips[0]), clips[0]))
            n -= clips.pop(0)
        if start == len(ids):
            break
        if not grids or not clips:
            raise ValueError(f"token {start} begins a video with sound, but none is left.")
        (grid, gap), count = grids.pop(0), clips.pop(0)
        expected = mixed_ids(layout, grid, gap, count)
        done = start + len(expected)
        if not np.array_equal(ids[start:done], expected):
            raise ValueError(
                f"the tokens from {start} on are not those of a video of grid {grid} with {count} "
                "tokens of sound: build them with `mixed_ids`."
            )
        ids[start:done] = TOGETHER
        both.append(_around(mixed(layout, grid, gap, count).pos))
    if grids or clips:
        raise ValueError(f"{len(grids)} videos and {len(clips)} clips are not in the prompt.")
    pictures = [mrope.to_the_end(_frames(layout, grid, 0.0)) for grid in images]
    blocks = {layout.image: pictures, layout.video: silent, layout.audio: heard, TOGETHER: both}
    return mrope.join(ids, blocks)


def prompt_plan(layout: OmniLayout, ids: Ids, **media: Sequence[Any]) -> Plan:
    """Return the plan of a whole prompt; `media` as in `positions`.

    Features are those of all pictures, then of all videos, then of all clips of sound.
    """
    pos, after = positions(layout, ids, **media)
    grids = (media.get("images", ()), media.get("videos", ()))
    n = [sum(f * h * w for f, h, w in part) // layout.merge**2 for part in grids]
    features = {
        layout.image: (VISION, 0),
        layout.video: (VISION, n[0]),
        layout.audio: (AUDIO, n[0] + n[1]),
    }
    return plan(ids, pos, after, features)


def frames_of(layout: OmniLayout, chunk: int, seconds: mrope.Seconds) -> range:
    """Return the numbers of the frames whose ticks lie in a chunk.

    Raises:
      ValueError: if there are none; the released layout then cuts frames apart (`turns_of`).
    """
    guess = int(chunk * layout.chunk_ticks / (seconds * layout.ticks_per_second))
    near = int(layout.chunk_ticks / (seconds * layout.ticks_per_second)) + 3
    number = np.arange(max(guess - 2, 0), guess + near)
    at = mrope.ticks(number, seconds, layout.ticks_per_second) // layout.chunk_ticks
    mine = number[at == chunk]
    if not len(mine):
        raise ValueError(
            f"no frame lies in chunk {chunk}: take at least one frame in "
            f"{layout.chunk_ticks / layout.ticks_per_second} s."
        )
    return range(int(mine[0]), int(mine[-1]) + 1)


def video_chunk(
    layout: OmniLayout,
    chunk: int,
    rows: int,
    columns: int,
    seconds: mrope.Seconds,
    sounds: int,
    end: int | None = None,
) -> Plan:
    """Return the plan of one chunk of an endless video with sound, `chunk_ticks` long.

    The stream's position is (start + ticks of the chunks before, start, start), with start after
    the tokens that open the video. Features are those of the frames, then those of the sound.

    Args:
      chunk: its number.
      rows: of patches in a frame; `columns` likewise.
      seconds: between frames; a Fraction for a stream of hours.
      sounds: tokens of sound in this chunk, `chunk_ticks` but for the last one; 0 without sound.
      end: frames of the whole video, where it ends within this chunk.
    """
    if not 0 <= sounds <= layout.chunk_ticks:
        raise ValueError(f"a chunk has at most {layout.chunk_ticks} tokens of sound, got {sounds}.")
    ((_, rows, columns),) = as_grids([(1, rows, columns)], layout.merge)
    numbers, merge = frames_of(layout, chunk, seconds), layout.merge
    numbers = numbers if end is None else range(numbers.start, min(numbers.stop, end))
    times = mrope.ticks(np.asarray(numbers), seconds, layout.ticks_per_second)
    seen = mrope.grid_positions(times, rows // merge, columns // merge)
    heard = chunk * layout.chunk_ticks + mrope.line(sounds)
    base = np.array([chunk * layout.chunk_ticks, 0, 0])
    pos = mrope.as_int32(np.concatenate([seen, heard]) - base)
    ids = np.array([layout.video] * len(seen) + [layout.audio] * sounds, np.int32)
    features = {layout.video: (VISION, 0), layout.audio: (AUDIO, len(seen))}
    return plan(ids, pos, [layout.chunk_ticks, 0, 0], features)

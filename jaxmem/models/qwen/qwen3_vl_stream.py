"""A Qwen3-VL checkpoint directory as a `Model` that the streaming loop takes.

The processor writes every frame as its time in words, `<|vision_start|>`, its tokens,
`<|vision_end|>`, in place of the template's one video: those rows are the stream. A piece is one
frame of patches (two pictures) with its words, which are rows of kind TEXT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Embeds
from jaxmem.models.hf.chat import Chat, read_chat
from jaxmem.models.hf.checkpoint import read_json
from jaxmem.models.hf.family import Parts
from jaxmem.models.hf.prompt import Plan, fill
from jaxmem.models.qwen import qwen3_vl as family
from jaxmem.models.qwen.clip import Clip, Size, read_clip
from jaxmem.models.qwen.qwen3_vl import Qwen3VLConfig
from jaxmem.models.qwen.stream import Inputs, qwen_parts, turn_of
from jaxmem.typing import Int, Params

LONGEST = "<999999.9 seconds>"
"""Room for the words of eleven days."""


@dataclass(frozen=True)
class Layout:
    """See `qwen_model.Layout`; `words` are the tokens of the longest time stamp."""

    config: Qwen3VLConfig
    clip: Clip
    chat: Chat
    words: int

    def rows(self, size: Size) -> int:
        """Return the rows of a piece with the longest time stamps."""
        return self.clip.tokens(size) + self.clip.per_piece * (self.words + 2)

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk."""
        each = self.clip.per_piece
        times = [
            family.stamp(frame, self.clip.temporal, self.clip.fps)
            for frame in range(start * each, (start + real) * each)
        ]
        stamps = [self.chat.ids(time).tolist() for time in times]
        grid = self.clip.grid(size, real)
        return family.video_chunk(self.config, stamps, grid, pieces * self.rows(size))

    def after(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return zeros: text goes on where the last frame's closing token ended."""
        return np.zeros(3, np.int32)


def encode(config: Qwen3VLConfig, clip: Clip, params: Params, inputs: Inputs) -> Embeds:
    """Return a chunk as rows, with the features that DeepStack adds."""
    patches, grid = clip.patches(jnp.asarray(inputs.frames))
    seen = family.encode(params, config, patches, [grid])
    return fill(params["decoder"], inputs.plan, seen.tokens, seen.deep)


def read_parts(directory: str | Path, *, fps: float = 1.0, max_pixels: int | None = None) -> Parts:
    """Return the parts of a checkpoint directory; the arguments are those of `load.load`.

    Raises:
      ValueError: if something is missing or does not fit.
    """
    config, chat = family.read_config(read_json(directory)), read_chat(directory)
    clip = read_clip(directory, config.vision, fps, max_pixels=max_pixels, whole_videos=True)
    layout = Layout(config, clip, chat, len(chat.ids(LONGEST)))
    turn = turn_of(chat, config.video, drop=(config.vision_start, config.vision_end))
    parts = qwen_parts(family, config, chat, clip, layout, turn, partial(encode, config, clip))
    return replace(parts, timestamps=True)

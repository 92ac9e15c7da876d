"""A Qwen2.5-VL checkpoint directory as a `Model` that the streaming loop takes.

The prompt is the chat template's; the video between `<|vision_start|>` and `<|vision_end|>` is the
stream. A piece is one frame of patches (two pictures).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Embeds
from jaxmem.models.hf.chat import read_chat
from jaxmem.models.hf.checkpoint import read_json
from jaxmem.models.hf.family import Parts
from jaxmem.models.hf.prompt import Plan, fill
from jaxmem.models.qwen import qwen2_5_vl as family
from jaxmem.models.qwen.clip import Clip, Size, read_clip
from jaxmem.models.qwen.qwen2_5_vl import Qwen25VLConfig
from jaxmem.models.qwen.stream import Inputs, qwen_parts, turn_of
from jaxmem.typing import Int, Params


@dataclass(frozen=True)
class Layout:
    """See `qwen_model.Layout`."""

    config: Qwen25VLConfig
    clip: Clip

    def rows(self, size: Size) -> int:
        """Return the rows of a piece."""
        return self.clip.tokens(size)

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk."""
        first = start * self.clip.per_piece
        return family.video_chunk(self.config, first, self.clip.grid(size, real), self.clip.seconds)

    def after(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return `Embeds.after` of a question behind so many pieces."""
        frames, rows, columns = self.clip.grid(size, pieces)
        return family.text_after(self.config, frames, rows, columns, self.clip.seconds)


def encode(config: Qwen25VLConfig, clip: Clip, params: Params, inputs: Inputs) -> Embeds:
    """Return a chunk as rows."""
    patches, grid = clip.patches(jnp.asarray(inputs.frames))
    return fill(params["decoder"], inputs.plan, family.encode(params, config, patches, [grid]))


def read_parts(directory: str | Path, *, fps: float = 1.0, max_pixels: int | None = None) -> Parts:
    """Return the parts of a checkpoint directory; the arguments are those of `load.load`.

    Raises:
      ValueError: if something is missing or does not fit.
    """
    config, chat = family.read_config(read_json(directory)), read_chat(directory)
    clip = read_clip(directory, config.vision, fps, max_pixels=max_pixels)
    turn, make = turn_of(chat, config.video), partial(encode, config, clip)
    return qwen_parts(family, config, chat, clip, Layout(config, clip), turn, make)

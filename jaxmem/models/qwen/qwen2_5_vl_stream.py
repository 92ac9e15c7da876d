"""Qwen2.5-VL as a `Family` that streams.

The prompt is the chat template's; the video between `<|vision_start|>` and `<|vision_end|>` is the
stream. A piece is one frame of patches (two pictures).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import jax.numpy as jnp
import numpy as np

from jaxmem.memory.base import Embeds
from jaxmem.models.hf.chat import Turn
from jaxmem.models.hf.family import Files
from jaxmem.models.hf.prompt import Plan, fill
from jaxmem.models.qwen import qwen2_5_vl as family
from jaxmem.models.qwen.clip import Size, read_clip
from jaxmem.models.qwen.stream import Inputs, QwenFamily
from jaxmem.typing import Int, Params


@dataclass(frozen=True)
class Qwen25VL(QwenFamily):
    """Qwen2.5-VL; see `Family`."""

    module = family
    config: family.Qwen25VLConfig

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0, max_pixels: int | None = None) -> Self:
        """Return the member that a checkpoint holds."""
        config = family.read_config(files.config)
        clip = read_clip(files.settings, config.vision, fps, max_pixels=max_pixels)
        return cls(config, files.chat, clip)

    def turn(self, question: str) -> Turn:
        """Return the token ids around the video."""
        return self.chat.around(question, self.config.video)

    def rows(self, size: Size) -> int:
        """Return the rows of a piece."""
        return self.clip.tokens(size)

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk."""
        first = start * self.clip.per_piece
        return family.video_chunk(self.config, first, self.clip.grid(size, real), self.clip.seconds)

    def question_start(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return `Embeds.start` of a question after so many pieces."""
        frames, rows, columns = self.clip.grid(size, pieces)
        return family.text_after(self.config, frames, rows, columns, self.clip.seconds)

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        """Return a chunk as rows."""
        patches, grid = self.clip.patches(jnp.asarray(inputs.frames))
        seen = family.encode(params, self.config, patches, [grid])
        return fill(params["decoder"], inputs.plan, seen)

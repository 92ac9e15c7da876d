"""Qwen3-VL as a `Family` that streams.

The processor writes every frame as its time in words, `<|vision_start|>`, its tokens,
`<|vision_end|>`, in place of the template's one video: those rows are the stream. A piece is one
frame of patches (two pictures) with its words, which are rows of modality TEXT.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import jax.numpy as jnp

from jaxmem.memory.base import Embeds
from jaxmem.models.hf.chat import Chat, Turn
from jaxmem.models.hf.family import Files
from jaxmem.models.hf.prompt import Plan, fill
from jaxmem.models.qwen import qwen3_vl as family
from jaxmem.models.qwen.clip import Clip, Size, read_clip
from jaxmem.models.qwen.stream import Inputs, QwenFamily, without
from jaxmem.typing import Params

LONGEST = "<999999.9 seconds>"
"""Room for the words of eleven days."""


def stamps(chat: Chat, numbers: Iterable[int], temporal: int, clip: Clip) -> list[list[int]]:
    """Return the token ids of time stamps, each of `temporal` pictures."""
    return [chat.ids(family.stamp(i, temporal, clip.fps)).tolist() for i in numbers]


def stamp_rows(chat: Chat) -> int:
    """Return the rows of the longest time stamp and the two tokens around its frame."""
    return len(chat.ids(LONGEST)) + 2


@dataclass(frozen=True)
class Qwen3VL(QwenFamily):
    """Qwen3-VL; see `Family`."""

    module = family
    timestamps = True
    config: family.Qwen3VLConfig

    @classmethod
    def read(cls, files: Files, *, fps: float = 1.0, max_pixels: int | None = None) -> Self:
        """Return the member that a checkpoint holds."""
        config = family.read_config(files.config)
        more = {"max_pixels": max_pixels, "whole_videos": True}
        return cls(config, files.chat, read_clip(files.settings, config.vision, fps, **more))

    def turn(self, question: str) -> Turn:
        """Return the token ids around the frames, each of which brings its own pair."""
        turn = self.chat.around(question, self.config.video)
        return without(turn, (self.config.vision_start, self.config.vision_end))

    def rows(self, size: Size) -> int:
        """Return the rows of a piece with the longest time stamps."""
        return self.clip.tokens(size) + self.clip.per_piece * stamp_rows(self.chat)

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk."""
        each, clip = self.clip.per_piece, self.clip
        frames = range(start * each, (start + real) * each)
        words = stamps(self.chat, frames, clip.temporal, clip)
        grid = clip.grid(size, real)
        return family.video_chunk(self.config, words, grid, pieces * self.rows(size))

    def encode(self, params: Params, inputs: Inputs) -> Embeds:
        """Return a chunk as rows, with the features that DeepStack adds."""
        patches, grid = self.clip.patches(jnp.asarray(inputs.frames))
        seen = family.encode(params, self.config, patches, [grid])
        return fill(params["decoder"], inputs.plan, seen.tokens, seen.deep)

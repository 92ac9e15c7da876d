"""LLaVA-Video as a `Family` that streams.

The prompt is the chat template's with `<image>` and a line break in front of the question. As
released, the text before and after `<image>` is tokenised apart, and the video stands between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxmem.models.hf.chat import Turn
from jaxmem.models.llava import video as family
from jaxmem.models.llava.onevision_stream import LlavaFamily
from jaxmem.typing import Array, Float, Params


@dataclass(frozen=True)
class LlavaVideo(LlavaFamily):
    """LLaVA-Video: a newline vector after every row of a frame."""

    config: family.LlavaVideoConfig

    @staticmethod
    def read_config(config: Any) -> family.LlavaVideoConfig:
        """Return the model that a config.json describes."""
        return family.read_config(config)

    def turn(self, question: str) -> Turn:
        """Return the token ids around the video."""
        return self.chat.around_text(question, family.PLACEHOLDER)

    def tokens(self, params: Params, pixels: Float[Array, "F Y X C"]) -> Float[Array, "m E"]:
        """Return the tokens of normalised frames, `frame_tokens` for each."""
        return family.encode(params, self.config, pixels)

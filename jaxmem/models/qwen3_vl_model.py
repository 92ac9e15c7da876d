"""A Qwen3-VL checkpoint directory as a `Model` that the streaming loop takes.

The processor writes every frame as its time in words, `<|vision_start|>`, its tokens,
`<|vision_end|>`, in place of the template's one video: those rows are the stream. A piece is one
frame of patches (two pictures) with its words, which are rows of kind TEXT.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxmem.memory.base import Rows
from jaxmem.models import qwen3_vl as family
from jaxmem.models.base import Model
from jaxmem.models.chat import Chat, read_chat
from jaxmem.models.checkpoint import Place, read_json
from jaxmem.models.prompt import Plan, fill
from jaxmem.models.qwen3_vl import Qwen3VLConfig
from jaxmem.models.qwen_clip import Clip, Size, read_clip
from jaxmem.models.qwen_model import Inputs, Parts, as_model, read_weights, turn_of
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


def encode(config: Qwen3VLConfig, clip: Clip, params: Params, inputs: Inputs) -> Rows:
    """Return a chunk as rows, with the features that DeepStack adds."""
    patches, grid = clip.patches(jnp.asarray(inputs.frames))
    seen = family.encode(params, config, patches, [grid])
    return fill(params["decoder"], inputs.plan, seen.tokens, seen.deep)


def load_model(
    directory: str | Path,
    *,
    dtype: Any = jnp.bfloat16,
    sharding: Place | Sharding | None = None,
    fps: float = 1.0,
    max_new: int = 128,
    max_pixels: int | None = None,
) -> Model:
    """Return the model of a checkpoint directory; give `fit` the frames' size before a stream.

    Args:
      directory: with config.json, safetensors, tokenizer.json, a chat template and preprocessor
        settings.
      dtype: of the weights.
      sharding: placement of the weights, see `checkpoint.load`.
      fps: pictures per second of a stream.
      max_new: answer tokens at most.
      max_pixels: of a frame; None: what the directory leaves to a frame of the longest video.

    Raises:
      ValueError: if something is missing or does not fit; nothing large is read before that.
    """
    config, chat = family.read_config(read_json(directory)), read_chat(directory)
    clip = read_clip(directory, config.vision, fps, max_pixels=max_pixels, whole_videos=True)
    parts = Parts(
        name=Path(directory).resolve().name,
        decoder=config.decoder,
        chat=chat,
        clip=clip,
        layout=Layout(config, clip, chat, len(chat.ids(LONGEST))),
        turn=turn_of(chat, config.video, drop=(config.vision_start, config.vision_end)),
        encode=partial(encode, config, clip),
    )
    parts.turn("?")
    return as_model(parts, read_weights(directory, family, config, dtype, sharding), max_new)

"""A Qwen2.5-VL checkpoint directory as a `Model` that the streaming loop takes.

The prompt is the chat template's; the video between `<|vision_start|>` and `<|vision_end|>` is the
stream. A piece is one frame of patches (two pictures).
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
from jaxmem.models import qwen2_5_vl as family
from jaxmem.models.base import Model
from jaxmem.models.chat import read_chat
from jaxmem.models.checkpoint import Place, read_json
from jaxmem.models.prompt import Plan, fill
from jaxmem.models.qwen2_5_vl import Qwen25VLConfig
from jaxmem.models.qwen_clip import Clip, Size, read_clip
from jaxmem.models.qwen_model import Inputs, Parts, as_model, read_weights, turn_of
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
        """Return `Rows.after` of a question behind so many pieces."""
        frames, rows, columns = self.clip.grid(size, pieces)
        return family.text_after(self.config, frames, rows, columns, self.clip.seconds)


def encode(config: Qwen25VLConfig, clip: Clip, params: Params, inputs: Inputs) -> Rows:
    """Return a chunk as rows."""
    patches, grid = clip.patches(jnp.asarray(inputs.frames))
    return fill(params["decoder"], inputs.plan, family.encode(params, config, patches, [grid]))


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
      max_pixels: of a frame; None: as the directory says.

    Raises:
      ValueError: if something is missing or does not fit; nothing large is read before that.
    """
    config, chat = family.read_config(read_json(directory)), read_chat(directory)
    clip = read_clip(directory, config.vision, fps, max_pixels=max_pixels)
    parts = Parts(
        name=Path(directory).resolve().name,
        decoder=config.decoder,
        chat=chat,
        clip=clip,
        layout=Layout(config, clip),
        turn=turn_of(chat, config.video),
        encode=partial(encode, config, clip),
    )
    parts.turn("?")
    return as_model(parts, read_weights(directory, family, config, dtype, sharding), max_new)

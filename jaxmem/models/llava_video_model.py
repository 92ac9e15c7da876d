"""A LLaVA-Video checkpoint directory as a `Model` that the streaming loop takes.

The prompt is the chat template's with `<image>` and a line break in front of the question. As
released, the text before and behind `<image>` is tokenised apart, and the video stands between.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from jaxmem.models import llava_onevision, llava_video
from jaxmem.models.base import Model
from jaxmem.models.chat import Chat, read_chat, render
from jaxmem.models.checkpoint import Place, load, read_json
from jaxmem.models.llava_onevision_model import as_model, check_rate
from jaxmem.typing import Int


def around(chat: Chat, question: str) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "Q"]]:
    """Return the token ids before and behind the video of a prompt with one question.

    Raises:
      ValueError: if the question is empty, or the template does not write the placeholder once.
    """
    if not question.strip():
        raise ValueError("the question is empty; ask at least one word.")
    mark = llava_video.PLACEHOLDER
    parts = render(chat, [{"role": "user", "content": f"{mark}\n{question}"}]).split(mark)
    if len(parts) != 2:
        raise ValueError(
            f"the prompt holds {mark} {len(parts) - 1} times, expected once: leave it out of the "
            "question, and use a chat template that writes the content of messages as it is."
        )
    return chat.ids(parts[0]), chat.ids(parts[1])


def load_model(
    directory: str | Path,
    *,
    dtype: Any = jnp.bfloat16,
    sharding: Place | Sharding | None = None,
    fps: float = 1.0,
    max_new: int = 128,
) -> Model:
    """Return the model of a checkpoint directory.

    Args:
      directory: with config.json, safetensors, tokenizer.json and a chat template.
      dtype: of the weights.
      sharding: placement of the weights, see `checkpoint.load`.
      fps: frames per second of a stream; whole numbers.
      max_new: answer tokens at most.

    Raises:
      ValueError: if something is missing or does not fit; nothing large is read before that.
    """
    check_rate(fps)
    config, chat = llava_video.read_config(read_json(directory)), read_chat(directory)
    around(chat, "?")
    params = load(
        directory,
        llava_onevision.weight_table(config),
        dtype=dtype,
        sharding=sharding,
        renames=llava_onevision.RENAMES,
        ignore=llava_onevision.ignored(config),
    )
    turn, more = partial(around, chat), {"fps": fps, "max_new": max_new}
    return as_model(
        directory, config, config.decoder, params, chat, turn, llava_video.encode, **more
    )

"""A LLaVA-Video checkpoint directory as a `Model` that the streaming loop takes.

The prompt is the chat template's with `<image>` and a line break in front of the question. As
released, the text before and behind `<image>` is tokenised apart, and the video stands between.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from jaxmem.models.hf.chat import Chat, read_chat, render
from jaxmem.models.hf.checkpoint import read_json
from jaxmem.models.hf.family import Parts
from jaxmem.models.llava import video as llava_video
from jaxmem.models.llava.onevision_stream import llava_parts
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


def read_parts(directory: str | Path, *, fps: float = 1.0) -> Parts:
    """Return the parts of a checkpoint directory; the arguments are those of `load.load`.

    Raises:
      ValueError: if something is missing or does not fit.
    """
    config, chat = llava_video.read_config(read_json(directory)), read_chat(directory)
    turn = partial(around, chat)
    return llava_parts(directory, config, chat, turn, llava_video.encode, fps)

"""What a family reads of a checkpoint directory (`Parts`), and how that becomes a `Model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Sharding

from jaxmem.decoder.decoder import DecoderConfig
from jaxmem.decoder.sampling import Sampling
from jaxmem.memory.base import Embeds
from jaxmem.models.base import Fitted, MediaFormat, Model
from jaxmem.models.hf.chat import Chat
from jaxmem.models.hf.checkpoint import Place, load
from jaxmem.models.hf.config import read_json
from jaxmem.models.hf.weights import Weight
from jaxmem.typing import Params, PyTree

RATE = 16_000  # samples per second of sound that is read and dropped
PROBES = ("What is happening in the video now?", "Describe the video in detail.")

Turn = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""A question to the token ids before the video, and to those after it."""


@dataclass(frozen=True)
class Parts:
    """All of a `Model` but its weights, in the terms of `Model`.

    Attributes:
      decoder: of the language model.
      chat: tokenizer and chat template.
      turn: a question to the ids around the video.
      media: how video and audio are wanted.
      preprocess: pieces to inputs.
      encode: inputs to rows.
      table: which tensors the checkpoint must hold, see `checkpoint.load`.
      renames: older names of them.
      ignore: patterns of tensors that it may hold besides.
      tokens_per_piece: rows of a piece; 0: `for_frames` says.
      for_frames: what depends on the size of the frames.
      text_steps: how far text tokens advance.
      finalise: maps (decoder, weights) after loading; None: they stay.
      audio_tokens: audio tokens in a second.
      timestamps: whether time stamps come between the frames.
      frame: rows and columns of a frame's vision tokens; None: `for_frames` says.
    """

    decoder: DecoderConfig
    chat: Chat
    turn: Turn
    media: MediaFormat
    preprocess: Callable[..., PyTree]
    encode: Callable[[Params, Any], Embeds]
    table: Mapping[str, Weight]
    renames: Sequence[tuple[str, str]] = ()
    ignore: Sequence[str] = ()
    tokens_per_piece: int = 0
    for_frames: Callable[[tuple[int, int]], Fitted] | None = None
    text_steps: Callable[[np.ndarray], np.ndarray] | None = None
    finalise: Callable[[DecoderConfig, Params], tuple[DecoderConfig, Params]] | None = None
    audio_tokens: int = 0
    timestamps: bool = False
    frame: tuple[int, int] | None = None


def open_model(
    parts: Parts,
    directory: str | Path,
    *,
    name: str,
    dtype: Any,
    sharding: Place | Sharding | None,
    max_new: int,
    sampling: Sampling | None,
) -> Model:
    """Read the weights of a directory and return its model.

    Args:
      parts: what its family has read of it.
      directory: the checkpoint.
      name: of the model.
      dtype: of the weights.
      sharding: placement of the weights, see `checkpoint.load`.
      max_new: answer tokens at most.
      sampling: the checkpoint's own.

    Raises:
      ValueError: if the template cannot write a question, or the weights do not fit.
    """
    prefix = parts.turn("?")[0]  # before anything large is read
    names = {"renames": parts.renames, "ignore": parts.ignore}
    params = load(directory, parts.table, dtype=dtype, sharding=sharding, **names)
    decoder = parts.decoder
    if parts.finalise is not None:
        decoder, params = parts.finalise(decoder, params)
    return Model(
        name=name,
        params=params,
        decoder=decoder,
        media=parts.media,
        tokens_per_piece=parts.tokens_per_piece,
        preprocess=parts.preprocess,
        encode=parts.encode,
        tokenize=lambda question: parts.turn(question)[1],
        detokenize=lambda ids: parts.chat.text(ids).strip(),
        end=parts.chat.end,
        max_new=max_new,
        sampling=sampling,
        probes=PROBES,
        prefix=prefix,
        text_steps=parts.text_steps,
        for_frames=parts.for_frames,
        audio_tokens=parts.audio_tokens,
        timestamps=parts.timestamps,
        frame=parts.frame,
        tokenize_text=parts.chat.ids,
        answer_start=answer_start(parts.turn),
        max_position=max_position(directory),
    )


def answer_start(turn: Turn) -> np.ndarray | None:
    """Return the ids that a chat template writes between a question and its answer.

    What two prompts with different questions end in alike; None if that is nothing.
    """
    one, two = (turn(question)[1][::-1] for question in ("?", "Yes"))
    most = min(len(one), len(two))
    alike = int(np.argmin(np.append(one[:most] == two[:most], False)))
    return one[:alike][::-1].astype(np.int32) if alike else None


def max_position(directory: str | Path) -> int | None:
    """Return the largest position of the language model that config.json names."""
    config = read_json(Path(directory))
    thinker = config.get("thinker_config") or config
    for part in (thinker.get("text_config"), thinker, config):
        if part and part.get("max_position_embeddings"):
            return int(part["max_position_embeddings"])
    return None

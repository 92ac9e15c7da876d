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
from jaxmem.models.hf.weights import Weight
from jaxmem.typing import Params, PyTree

RATE = 16_000  # samples per second of sound that is read and dropped
PROBES = ("Describe the video in detail.", "What is happening in the video now?")

Turn = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""A question to the token ids before the video, and to those behind it."""


@dataclass(frozen=True)
class Parts:
    """All of a `Model` but its weights, in the terms of `Model`.

    Attributes:
      decoder: of the language model.
      chat: tokenizer and chat template.
      turn: a question to the ids around the video.
      media: how video and sound are wanted.
      pack: pieces to inputs.
      encode: inputs to rows.
      table: which tensors the checkpoint must hold, see `checkpoint.load`.
      renames: older names of them.
      ignore: patterns of tensors that it may hold besides.
      tokens_per_piece: rows of a piece; 0: `fitted` says.
      fitted: what depends on the size of the frames.
      steps: how far text tokens advance.
      settled: changes decoder and weights once they are read; None: they stay.
      audio_tokens: rows of sound in a second.
      stamps: whether words stand between the frames.
    """

    decoder: DecoderConfig
    chat: Chat
    turn: Turn
    media: MediaFormat
    pack: Callable[..., PyTree]
    encode: Callable[[Params, Any], Embeds]
    table: Mapping[str, Weight]
    renames: Sequence[tuple[str, str]] = ()
    ignore: Sequence[str] = ()
    tokens_per_piece: int = 0
    fitted: Callable[[tuple[int, int]], Fitted] | None = None
    steps: Callable[[np.ndarray], np.ndarray] | None = None
    settled: Callable[[DecoderConfig, Params], tuple[DecoderConfig, Params]] | None = None
    audio_tokens: int = 0
    stamps: bool = False


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
    if parts.settled is not None:
        decoder, params = parts.settled(decoder, params)
    return Model(
        name=name,
        params=params,
        decoder=decoder,
        media=parts.media,
        tokens_per_piece=parts.tokens_per_piece,
        pack=parts.pack,
        encode=parts.encode,
        tokenize=lambda question: parts.turn(question)[1],
        detokenize=lambda ids: parts.chat.text(ids).strip(),
        end=parts.chat.end,
        max_new=max_new,
        sampling=sampling,
        probes=PROBES,
        prefix=prefix,
        steps=parts.steps,
        fitted=parts.fitted,
        audio_tokens=parts.audio_tokens,
        stamps=parts.stamps,
    )

"""What the `Model`s of the Qwen families share: pieces to plans, the prompt, the model.

A family adds its `Layout`, how the tokens of a piece stand in the prompt, and its encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jax.sharding import Sharding

from jaxmem.memory.base import Rows
from jaxmem.models.base import Fitted, MediaFormat, Model
from jaxmem.models.chat import Chat, around
from jaxmem.models.checkpoint import Place, load
from jaxmem.models.decoder import DecoderConfig
from jaxmem.models.prompt import Plan, pad, plan
from jaxmem.models.qwen_clip import Clip, Size
from jaxmem.typing import Float, Int, Params, UInt

RATE = 16_000  # samples per second of sound that is read and dropped
PROBES = ("Describe the video in detail.", "What is happening in the video now?")

Turn = Callable[[str], tuple[np.ndarray, np.ndarray]]
"""A question to the token ids before the video, and to those behind it."""
Encode = Callable[[Params, Any], Rows]


class Inputs(NamedTuple):
    """One chunk: where its rows come from, the frames of C pieces, and their log-mel frames."""

    plan: Plan
    frames: UInt[Any, "C F Y X 3"]
    mel: Float[Any, "J M"] | None = None


class Layout(Protocol):
    """How the tokens of a piece stand in the prompt of a family."""

    def rows(self, size: Size) -> int:
        """Return the rows of a piece, the largest number."""
        ...

    def plan(self, size: Size, pieces: int, real: int, start: int) -> Plan:
        """Return the plan of a chunk.

        Args:
          size: (height, width) of the frames.
          pieces: that the chunk has room for, and features of.
          real: the first of them that are no padding, at least one.
          start: pieces before the chunk.
        """
        ...

    def after(self, size: Size, pieces: int) -> Int[np.ndarray, "3"]:
        """Return `Rows.after` of a question behind so many pieces."""
        ...


def pack(
    layout: Layout,
    hear: Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None,
    frames: np.ndarray,
    samples: np.ndarray,
    valid: np.ndarray,
    past: np.ndarray,
    start: int,
) -> Inputs:
    """Return a chunk's inputs, its plan padded to a fixed number of rows; see `Model.pack`.

    Args:
      layout: of the family.
      hear: (samples, past, start) -> log-mel frames; None: sound is not used.
      frames: uint8 [C, F, h, w, 3].
      samples: float32 [C, n].
      valid: [C] which pieces are real.
      past: float32, the samples before the chunk.
      start: pieces before the chunk.
    """
    size, pieces, real = (frames.shape[2], frames.shape[3]), len(valid), int(valid.sum())
    part = plan([], np.zeros((0, 3)), 0, {})
    if real:
        part = layout.plan(size, pieces, real, start)
    part = pad(part, pieces * layout.rows(size))
    return Inputs(part, frames, None if hear is None else hear(samples, past, start))


@dataclass(frozen=True)
class Parts:
    """What a family has read from its directory, before the weights.

    Attributes:
      name: of the model.
      decoder: of the language model.
      chat: tokenizer and chat template.
      clip: pictures to patches.
      layout: pieces to rows.
      turn: a question to the ids around the video.
      encode: `Model.encode`.
    """

    name: str
    decoder: DecoderConfig
    chat: Chat
    clip: Clip
    layout: Layout
    turn: Turn
    encode: Encode


def read_weights(
    directory: str | Path, family: Any, config: Any, dtype: Any, sharding: Place | Sharding | None
) -> Params:
    """Return the weights of a family's table."""
    table = family.weight_table(config)
    more = {"renames": family.RENAMES, "ignore": family.IGNORE}
    return load(directory, table, dtype=dtype, sharding=sharding, **more)


def media_of(clip: Clip) -> MediaFormat:
    """Return the media of a model that does not hear.

    Sound is read and dropped; its rate is one of which a piece holds a whole number of samples.
    """
    rate = clip.fps.numerator * -(-RATE // clip.fps.numerator)
    return MediaFormat(float(clip.fps), clip.resized, rate, float(clip.seconds * clip.per_piece))


def as_model(
    parts: Parts,
    params: Params,
    max_new: int,
    *,
    media: MediaFormat | None = None,
    hear: Callable[[np.ndarray, np.ndarray, int], np.ndarray] | None = None,
    steps: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Model:
    """Return the model; its rows are known once `fit` has been given the frames' size."""
    cell = parts.clip.patch * parts.clip.merge

    def fitted(size: Size) -> Fitted:
        if len(size) != 2 or min(size) < cell or any(side % cell for side in size):
            raise ValueError(
                f"frames of {parts.name} have sides that are multiples of {cell} pixels, got "
                f"{size}: resize them to model.media.size(height, width)."
            )
        return Fitted(parts.layout.rows(size), partial(parts.layout.after, size))

    return Model(
        name=parts.name,
        params=params,
        decoder=parts.decoder,
        media=media_of(parts.clip) if media is None else media,
        tokens_per_piece=0,
        pack=partial(pack, parts.layout, hear),
        encode=parts.encode,
        tokenize=lambda question: parts.turn(question)[1],
        detokenize=lambda ids: parts.chat.text(ids).strip(),
        end=parts.chat.end,
        max_new=max_new,
        probes=PROBES,
        prefix=parts.turn("?")[0],
        steps=steps,
        fitted=fitted,
    )


def turn_of(
    chat: Chat, placeholder: int, *, drop: tuple[int, int] | None = None,
    add: tuple[int, int] | None = None,
) -> Turn:  # fmt: skip
    """Return what turns a question into the ids before and behind the video.

    Args:
      chat: of the checkpoint.
      placeholder: token that the template writes for the video.
      drop: tokens right before and behind the placeholder that are left out, where they are.
      add: tokens to put between them and the video.
    """

    def turn(question: str) -> tuple[np.ndarray, np.ndarray]:
        before, behind = around(chat, question, placeholder)
        if drop is not None and (*before[-1:], *behind[:1]) == drop:
            before, behind = before[:-1], behind[1:]
        if add is not None:
            before, behind = np.append(before, add[0]), np.insert(behind, 0, add[1])
        return before.astype(np.int32), behind.astype(np.int32)

    return turn
